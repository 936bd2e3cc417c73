"""Timing by paired, interleaved repetitions, and peak memory.

All candidates run in one process and take turns, A B C A B C ..., so that a slow moment of the
machine falls on all of them; the ratio of two candidates is judged by its spread over the turns.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Action = Callable[[], object]
# A turn shorter than this is repeated within the turn: the clock's own noise is some microseconds.
SHORTEST_TURN = 0.01


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its peer.

    Attributes
    ----------
    seconds, peer_seconds : float
        Medians over the turns.
    low, high : float
        Quartiles of the ratio of the two times of one turn.
    turns : int
        Number of turns.
    """

    seconds: float
    peer_seconds: float
    low: float
    high: float
    turns: int

    @property
    def ratio(self) -> float:
        """Ratio of the medians."""
        return self.seconds / self.peer_seconds

    def __str__(self) -> str:
        """Return the ratio and its quartiles, as the tables show them."""
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare(seconds: Sequence[float], peer_seconds: Sequence[float]) -> Comparison:
    """Return the comparison of two candidates' times, paired by turn."""
    low, high = np.quantile(np.divide(seconds, peer_seconds), [0.25, 0.75])
    return Comparison(
        float(np.median(seconds)), float(np.median(peer_seconds)), float(low), float(high), len(seconds)
    )


def interleave(actions: Sequence[Action], turns: int) -> NDArray[np.float64]:
    """Return the seconds of one call of each action in each turn, [actions, turns].

    Every action is called once before the clock starts; the garbage collector is off while it runs.
    """
    calls = [_calls(action) for action in actions]
    taken = np.zeros((len(actions), turns))
    with collector_off():
        for turn in range(turns):
            for i, (action, count) in enumerate(zip(actions, calls, strict=True)):
                taken[i, turn] = stopwatch(action, count)
    return taken


def stopwatch(action: Action, calls: int = 1) -> float:
    """Return the mean seconds of one of `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - start) / calls


def _calls(action: Action) -> int:
    action()
    return math.ceil(SHORTEST_TURN / max(stopwatch(action), 1e-6))


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage, then keep the collector from running inside a turn."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def extra_memory(action: Action) -> float:
    """Return the bytes by which one call raises the resident memory at its peak; NaN where not known."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return math.nan
    gc.collect()
    reset.write_text("5", encoding="ascii")  # the peak starts again at the present size
    before = peak_memory()
    action()
    return peak_memory() - before


def peak_memory() -> float:
    """Return the peak resident memory of this process in bytes; NaN where Linux's /proc is absent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    lines = status.read_text(encoding="ascii").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
