"""The in-process Flower grid: the unmodified ServerApp and ClientApp without any other process.

Flower's `Grid` is the public interface between a ServerApp and its nodes. This one calls the
ClientApp directly, or hands messages to a pool of processes; the replies are the same to the
last bit, since sites draw from generators of their own and run on one thread.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from types import TracebackType
from typing import Self

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

# Since 1.38 a ServerApp's messages take their origin from this private place, which the engine
# around it must fill; every Flower engine does the same.
from flwr.supercore.task_identity import TaskIdentity

from fedfair.errors import FedfairError, RunError

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
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Workers must not inherit threads or generators from this process.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker)

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

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return one reply per message; an exception in the app becomes an error reply, as in Flower."""
        prepared = [self._prepare(message) for message in messages]
        jobs = [(message, self._contexts[message.metadata.dst_node_id]) for message in prepared]
        if self._pool is None:
            return [_call(self._client_app, *job) for job in jobs]
        futures = [self._pool.submit(_call_in_worker, *job) for job in jobs]
        # A site that is late is left out, as on Flower's other engines.
        done = wait(futures, timeout).done
        return [future.result() for future in futures if future in done]

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

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: this grid answers at once."""
        raise RunError(f"`push_messages` must not be used in process, got {len(list(messages))} messages")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: this grid answers at once."""
        raise RunError(f"`pull_messages` must not be used in process, got {len(list(message_ids))} ids")

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


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def _call_in_worker(message: Message, context: Context) -> Message:
    from client.app import app

    return _call(app, message, context)
