"""Worker processes: silent at Ctrl-C, and never left behind by the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection

KILLED = (
    "every worker process must live until the end, one was killed (memory?); use fewer --workers, and where "
    "rounds were done go on with --resume"
)


def start_worker() -> None:
    """Make this process a worker: the parent decides what follows Ctrl-C, and its end is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C from their first moment on, as this one does so long.

    A terminal tells all processes, and one that is still importing would print where it was.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
