"""Whole runs in a pool of processes, each run on an in-process grid of its own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from logging.handlers import QueueHandler
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from fedfair.errors import FedfairError, RunError
from fedfair.processes import KILLED, start_worker, starting_workers
from server.app import app as server_app
from simulations.grid import InProcessGrid
from simulations.progress import ROUNDS

Told = Callable[[Path, str | None], None]

# Of this worker process.
_stop: Event | None = None
_records: Queue[logging.LogRecord] | None = None


LAST_WORDS_SECONDS = 10.0


class _Stopped(Exception):
    """The user wants no further round."""


class _Named(QueueHandler):
    """Sends records to the parent, with the name of the run that they are of."""

    def __init__(self, records: Queue[logging.LogRecord], run: str) -> None:
        super().__init__(records)
        self._run = run

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return what can be sent."""
        prepared: logging.LogRecord = super().prepare(record)
        prepared.run = self._run
        return prepared


class _News:
    """Hands the workers' records on to a handler in a thread, and goes on reading if the handler fails.

    Were the records not read, workers would wait for ever to be rid of them.
    """

    def __init__(self, records: Queue[logging.LogRecord], handler: logging.Handler, stop: Event) -> None:
        self.failure: Exception | None = None
        self._records, self._handler, self._stop = records, handler, stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="fedfair-news", daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand on what is left; half a record of a worker that was killed is not waited for."""
        self._ended.set()
        self._thread.join(LAST_WORDS_SECONDS)

    def _listen(self) -> None:
        while True:
            try:
                record = self._records.get(timeout=0.1)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            if self.failure is None:
                self._hand_on(record)

    def _hand_on(self, record: logging.LogRecord) -> None:
        try:
            self._handler.handle(record)
        except Exception as error:
            # Whatever it is, such as a terminal that is gone, it is raised where runs are awaited.
            self.failure = error
            self._stop.set()


class _StoppableGrid(InProcessGrid):
    """A grid that ends its run between two exchanges, where the checkpoint is whole."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand the messages to the sites, unless the pool is being stopped."""
        if _stop is not None and _stop.is_set():
            raise _Stopped
        return super().push_messages(messages)


def run_in_pool(
    runs: Mapping[Path, str], sites: int, workers: int, told: Told, news: logging.Handler | None = None
) -> bool:
    """Run what lies prepared in folders; return whether Ctrl-C ended it, here or in a worker.

    Parameters
    ----------
    runs : Mapping[Path, str]
        Folders with a ``config.yaml`` each, and what to call their runs; a checkpoint is resumed.
    sites : int
        K virtual sites.
    workers : int
        Processes, at least 1.
    told : Callable[[Path, str | None], None]
        Called for each finished run, with one sentence if it failed. What it raises ends the others.
    news : logging.Handler | None
        Given what the runs log: a record for each round, and warnings. None where told at the end is enough.

    Raises
    ------
    RunError
        If a process was killed.
    """
    # Workers must not inherit threads or generators from this process.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    records: Queue[logging.LogRecord] | None = None if news is None else spawn.Queue()
    interrupted = False
    with (
        # Workers that have ended have sent all their records, so the listener is left last.
        contextlib.nullcontext() if records is None or news is None else _News(records, news, stop) as heard,
        ProcessPoolExecutor(min(workers, len(runs)), spawn, _start_worker, (stop, records)) as pool,
    ):
        try:
            with starting_workers():
                futures = {pool.submit(_run, folder, name, sites): folder for folder, name in runs.items()}
            for future in as_completed(futures):
                told(futures[future], future.result())
        except (KeyboardInterrupt, _Stopped):
            interrupted = True
        except BrokenProcessPool as error:
            raise RunError(KILLED) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    if heard is not None and heard.failure is not None:
        raise heard.failure
    return interrupted


def _start_worker(stop: Event, records: Queue[logging.LogRecord] | None) -> None:
    global _stop, _records  # noqa: PLW0603, how a pool hands something to its processes
    _stop, _records = stop, records
    start_worker()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger(ROUNDS).setLevel(logging.INFO)


def _run(folder: Path, name: str, sites: int) -> str | None:
    """Return None, or in one sentence why the run failed.

    Raises
    ------
    _Stopped
        If it was interrupted.
    """
    run_config: dict[str, bool | float | int | str] = {
        "config": str(folder / "config.yaml"),
        "overrides": "",
        "output": str(folder),
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    try:
        # Ctrl-C reaches every process of a terminal: a run ends at once, an idle process is not loud.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with _logging_as(name), _StoppableGrid(client_app, sites) as grid:
            server_app(grid, context)
    except KeyboardInterrupt:
        raise _Stopped from None
    except _Stopped:
        raise
    except FedfairError as error:
        return str(error)
    except Exception as error:
        # The boundary of a run: whatever went wrong there must not end the others.
        return f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return None


@contextlib.contextmanager
def _logging_as(run: str) -> Iterator[None]:
    # Where nobody listens, warnings stand in the run's records; here they would tear the progress bar.
    handler = logging.NullHandler() if _records is None else _Named(_records, run)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
