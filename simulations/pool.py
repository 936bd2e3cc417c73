"""Cells of a sweep: whole runs in a pool of processes, each on an in-process grid of its own."""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.app import Context, Message, RecordDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.app import app as client_app
from fedfair.errors import FedfairError, RunError
from server.app import app as server_app
from simulations.grid import InProcessGrid

Told = Callable[[Path, str | None], None]

_stop: Event | None = None  # of this worker process


class _Stopped(Exception):
    """The user wants no further round."""


class _StoppableGrid(InProcessGrid):
    """A grid that ends its run between two exchanges, where the checkpoint is whole."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand the messages to the sites, unless the sweep is being stopped."""
        if _stop is not None and _stop.is_set():
            raise _Stopped
        return super().push_messages(messages)


class CellProgress:
    """Shows how many cells are done, how many failed and when the rest will be.

    Parameters
    ----------
    total : int
        Cells to run.
    """

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Cells take minutes, and a rate over the last half minute would know of none.
        self._bar = Progress(
            *columns, console=self._console, disable=not self._live, speed_estimate_period=3600
        )
        self._task = self._bar.add_task("cells", total=total)
        self._total, self._done, self._failed = total, 0, 0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def told(self, cell: str, error: str | None) -> None:
        """Count a finished cell; say which failed, or without a terminal each."""
        self._done += 1
        self._failed += error is not None
        self._bar.update(
            self._task, advance=1, description=f"cells, {self._failed} failed" if self._failed else "cells"
        )
        if error is not None:
            self._say(f"{cell} failed: {error}")
        elif not self._live:
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            self._say(
                f"{self._done}/{self._total}  {cell}  about {datetime.timedelta(seconds=round(left))} left"
            )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_cells(folders: Sequence[Path], sites: int, workers: int, told: Told) -> bool:
    """Run the cells whose ``config.yaml`` lie in `folders`; return whether Ctrl-C ended it.

    Parameters
    ----------
    folders : Sequence[Path]
        One per cell; a checkpoint in it is resumed.
    sites : int
        K virtual sites.
    workers : int
        Processes, at least 1.
    told : Callable[[Path, str | None], None]
        Called for each finished cell, with one sentence if it failed.

    Raises
    ------
    RunError
        If a process was killed.
    """
    # Workers must not inherit threads or generators from this process.
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    with ProcessPoolExecutor(workers, spawn, _start_worker, (stop,)) as pool:
        try:
            futures = {pool.submit(_run_cell, folder, sites): folder for folder in folders}
            for future in as_completed(futures):
                told(futures[future], future.result())
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(cancel_futures=True)
            return True
        except BrokenProcessPool as error:
            raise RunError(
                "every worker process must live until the end, one was killed (memory?); what was done "
                "is kept; go on with --resume and fewer --workers"
            ) from error
    return False


def _start_worker(stop: Event) -> None:
    global _stop  # noqa: PLW0603, how a pool hands something to its processes
    _stop = stop
    # Ctrl-C reaches every process of a terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    # What warnings say stands in the records; here they would tear the progress bar.
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("flwr").setLevel(logging.WARNING)


def _run_cell(folder: Path, sites: int) -> str | None:
    """Return None, or in one sentence why the cell failed."""
    run_config: dict[str, bool | float | int | str] = {
        "config": str(folder / "config.yaml"),
        "overrides": "",
        "output": str(folder),
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    try:
        with _StoppableGrid(client_app, sites) as grid:
            server_app(grid, context)
    except _Stopped:
        return None
    except FedfairError as error:
        return str(error)
    except Exception as error:
        # The boundary of a cell: whatever went wrong there must not end the others.
        return f"{type(error).__name__}: {error}"
    return None
