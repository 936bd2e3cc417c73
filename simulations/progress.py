"""Progress over rounds or whole runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import logging
import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedfair.record import RoundRecord

LINE_EVERY = 10
ROUNDS = "fedfair.rounds"
"""The logger of all that happens in rounds."""


class RoundProgress(logging.Handler):
    """Shows arm, seed, round, training loss, AUC and worst group.

    The strategy logs one line per round with the round's record attached, so progress needs no
    path of its own through Flower.

    Parameters
    ----------
    total : int
        Rounds of all runs together, initial models included.
    """

    def __init__(self, total: int) -> None:
        super().__init__(logging.INFO)
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("starting", total=total)
        self._label = ""
        self._warned: set[str] = set()
        self._logger = logging.getLogger(ROUNDS)

    def __enter__(self) -> Self:
        """Listen to the strategy's log."""
        self._before = (self._logger.level, self._logger.propagate)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        self._progress.stop()
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before

    def start(self, run: str) -> None:
        """Name the run that the next records belong to, unless they say so themselves."""
        self._label = run

    def emit(self, record: logging.LogRecord) -> None:
        """Show one round, or a warning such as a failed site."""
        round_record: RoundRecord | None = getattr(record, "round_record", None)
        run = getattr(record, "run", self._label)
        if round_record is None:
            if record.levelno >= logging.WARNING:
                self._warn(f"{run}: {record.getMessage()}")
            return
        text = f"{run}  {describe(round_record)}"
        self._progress.update(self._task, advance=1, description=text)
        if not self._live and round_record.round % LINE_EVERY == 0:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _warn(self, text: str) -> None:
        # A round that is tried again may well fail as before.
        if text not in self._warned:
            self._warned.add(text)
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def describe(record: RoundRecord) -> str:
    """Return one line on a model: round, loss, AUC, worst group."""

    def number(value: float | None) -> str:
        return "n/e" if value is None or math.isnan(value) else f"{value:.3f}"

    loss = "n/e" if math.isnan(record.train_loss) else f"{record.train_loss:.3f}"
    if not record.test:
        return f"round {record.round:3d}  loss {loss}  test metrics not released"
    worst = f"{number(record.test['worst_group_auc'])} ({record.test['worst_group'] or 'no group'})"
    return f"round {record.round:3d}  loss {loss}  AUC {number(record.test['auc'])}  worst group {worst}"


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
