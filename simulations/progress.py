"""Progress over rounds, fed by the strategy's log records: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedfair.record import RoundRecord

LINE_EVERY = 10


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
        self._logger = logging.getLogger("fedfair.rounds")

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

    def start(self, arm: str, seed: int) -> None:
        """Name the run that the next records belong to."""
        self._label = f"{arm} seed {seed}"

    def emit(self, record: logging.LogRecord) -> None:
        """Show one round, or a warning such as a failed site."""
        round_record: RoundRecord | None = getattr(record, "round_record", None)
        if round_record is None:
            if record.levelno >= logging.WARNING:
                self._console.print(f"{self._label}: {record.getMessage()}", highlight=False, markup=False)
            return
        text = f"{self._label}  {describe(round_record)}"
        self._progress.update(self._task, advance=1, description=text)
        if not self._live and round_record.round % LINE_EVERY == 0:
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
