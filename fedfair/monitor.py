"""Which model of a run was the best by one figure of the round records, and when to stop waiting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedfair.config import Config
from fedfair.record import RoundRecord
from fedfair.sections import MONITORED


class Monitor:
    """Compares each model with the best one before it, by `server.monitor`.

    A figure that is not estimable is no improvement, nor is an equal one: of equals the earliest is
    the best. Without `server.monitor` no model is.

    Parameters
    ----------
    config : Config
        The run's configuration.

    Attributes
    ----------
    best_round : int | None
        Rounds that made the best model; None before any figure was estimable.
    """

    def __init__(self, config: Config) -> None:
        server = config.server
        self._name, self._patience = server.monitor, server.patience
        direction = server.monitor_mode or MONITORED.get(str(server.monitor))
        self._sign = 1.0 if direction == "max" else -1.0
        self._best: float | None = None
        self._waited = 0
        self.best_round: int | None = None

    def see(self, number: int, record: RoundRecord) -> bool:
        """Take the figure of the model after `number` rounds; return whether it is the best so far."""
        if self._name is None:
            return False
        value = _figure(self._name, record)
        improved = math.isfinite(value) and (
            self._best is None or self._sign * value > self._sign * self._best
        )
        if improved:
            self._best, self.best_round = value, number
        self._waited = 0 if improved else self._waited + 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether the last `server.patience` models were no improvement."""
        return self._patience is not None and self._waited >= self._patience

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain JSON data."""
        return {"best": self._best, "best_round": self.best_round, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._best, self.best_round, self._waited = state["best"], state["best_round"], state["waited"]


def _figure(name: str, record: RoundRecord) -> float:
    value = record.train_loss if name == "train_loss" else record.test.get(name)
    return math.nan if value is None else float(value)
