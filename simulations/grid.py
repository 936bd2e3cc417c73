"""The in-process Flower grid: the unmodified ServerApp and ClientApp without any other process.

Flower's `Grid` is the public interface between a ServerApp and its nodes. This one calls the
ClientApp directly, or hands messages to a pool of processes; the replies are the same to the
last bit, since sites draw from generators of their own and run on one thread.
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Since 1.38 a ServerApp's messages take their origin from this private place, which the engine
# around it must fill; every Flower engine does the same.
from flwr.supercore.task_identity import TaskIdentity

from fedfair.errors import FedfairError, RunError
from fedfair.processes import KILLED, start_worker, starting_workers

_SERVER = 1
_run_ids = itertools.count(1)
_APP_FAILED = 2  # Flower's code for an exception inside a ClientApp


class InProcessGrid(Grid):
    """A grid of virtual sites in this process or in a pool of worker processes.

    Parameters
    ----------
    client_app : ClientApp
        The app that every site runs.
    num_sites : int
        K virtual sites; their partition ids are ``0 .. K-1``.
    workers : int
        Processes; 0 runs everything here. It does not change any result.
    """

    def __init__(self, client_app: ClientApp, num_sites: int, workers: int = 0) -> None:
        run_id = next(_run_ids)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SERVER, 1
        self._contexts = {
            _SERVER + 1 + k: Context(
                run_id=run_id,
                node_id=_SERVER + 1 + k,
                node_config={"partition-id": k, "num-partitions": num_sites},
                state=RecordDict(),
                run_config={},
            )
            for k in range(num_sites)
        }
        self._client_app = client_app
        self._sent = 0
        self._jobs: dict[str, Callable[[], Message] | Future[tuple[Message, RecordDict]]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Workers must not inherit threads or generators from this process.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=start_worker)

    def __enter__(self) -> Self:
        """Return the grid itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all virtual sites."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand the messages to the sites; without workers each works when its reply is pulled."""
        ids = []
        for message in map(self._prepare, messages):
            number, node = message.metadata.message_id, message.metadata.dst_node_id
            job = (message, self._contexts[node])
            if self._pool is None:
                self._jobs[number] = functools.partial(_call, self._client_app, *job)
            else:
                self._jobs[number] = self._submitted(*job)
            ids.append(number)
        return ids

    def _submitted(self, message: Message, context: Context) -> Future[tuple[Message, RecordDict]]:
        if self._pool is None:
            raise RunError("a grid must have worker processes to submit to, got none")
        try:
            with starting_workers():
                return self._pool.submit(_call_in_worker, message, context)
        except BrokenProcessPool as error:
            raise RunError(KILLED) from error

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready; an exception in the app becomes an error reply, as in Flower."""
        replies = []
        for number in message_ids:
            job = self._jobs[number]
            if isinstance(job, Future):
                if not job.done():
                    continue
                try:
                    reply, state = job.result()
                except BrokenProcessPool as error:
                    raise RunError(KILLED) from error
                # The worker had a copy of the context.
                self._contexts[reply.metadata.src_node_id].state = state
            else:
                reply = job()
            del self._jobs[number]
            replies.append(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return one reply per message; those that are late are left out, as on Flower's other engines."""
        pending = list(self.push_messages(messages))
        end = math.inf if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while pending and time.monotonic() <= end:
            for number in pending:
                replies.extend(self.pull_messages([number]))
            pending = [number for number in pending if number in self._jobs]
            time.sleep(0.01 if pending else 0)
        return replies

    def _prepare(self, message: Message) -> Message:
        """Return the message with an id, which elsewhere the SuperLink gives it."""
        self._sent += 1
        old = message.metadata
        metadata = Metadata(
            run_id=old.run_id,
            message_id=str(self._sent),
            src_node_id=old.src_node_id,
            dst_node_id=old.dst_node_id,
            reply_to_message_id="",
            group_id=old.group_id,
            created_at=old.created_at,
            ttl=old.ttl,
            message_type=old.message_type,
        )
        return Message(content=message.content, metadata=metadata)  # type: ignore[call-overload,no-any-return]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run per grid."""
        del run

    @property
    def run(self) -> object:  # type: ignore[override]
        """There is no run object in process."""
        return None


def _call(client_app: ClientApp, message: Message, context: Context) -> Message:
    try:
        return client_app(message, context)
    except FedfairError as error:
        return Message(Error(_APP_FAILED, str(error)), reply_to=message)
    except Exception as error:
        # The boundary of a site: whatever went wrong there must not end the others' round.
        return Message(Error(_APP_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


def _call_in_worker(message: Message, context: Context) -> tuple[Message, RecordDict]:
    from client.app import app

    return _call(app, message, context), context.state
