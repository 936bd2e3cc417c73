"""The best model and the end of patience, against their definitions on whole sequences of figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.assessment import assess
from fedfair.config import Config, apply, parse
from fedfair.monitor import Monitor
from fedfair.record import Made, RoundRecord
from fedfair.sections import MONITORED
from fedfair.signals import Signals

# Few values, so that there are ties; what cannot be estimated comes as NaN or, in a table, as None.
figures = st.lists(
    st.sampled_from([0.1, 0.2, 0.2 + 1e-12, 0.5, 1, 0, -0.0, math.nan, math.inf, -math.inf]), max_size=20
)
names = st.sampled_from(sorted(MONITORED))
modes = st.sampled_from([None, "max", "min"])
patiences = st.sampled_from([None, 1, 2, 3])


def configured(name: str | None, mode: str | None = None, patience: int | None = None) -> Config:
    shown = ["null" if x is None else x for x in (name, mode, patience)]
    keys = ["server.monitor", "server.monitor_mode", "server.patience"]
    overrides = [f"{key}={value}" for key, value in zip(keys, shown, strict=True)]
    return parse(apply({}, ["data.validation_fraction=0.2", *overrides]))


def record(name: str, value: float) -> RoundRecord:
    """Return a record in which all else is worse or better, as it may be."""
    table: dict[str, Any] = dict.fromkeys(MONITORED, 0.3) | {
        name: None if math.isnan(value) else value,
        "site_auc": {},
    }
    loss = value if name == "train_loss" else 0.3
    del table["train_loss"]
    return RoundRecord(0, loss, table, Made(), 0.0)


def better(name: str, mode: str | None) -> str:
    return mode or ("max" if name in ("auc", "es_auc", "worst_group_auc", "accuracy") else "min")


def best_of(values: Sequence[float], mode: str) -> int | None:
    """Return where the first of the best finite values stands."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return None
    wanted = max(finite) if mode == "max" else min(finite)
    return next(i for i, v in enumerate(values) if v == wanted)


@given(names, modes, patiences, figures)
def test_best_and_patience_are_as_defined(
    name: str, mode: str | None, patience: int | None, values: list[float]
) -> None:
    monitor, direction = Monitor(configured(name, mode, patience)), better(name, mode)
    assert (monitor.best_round, monitor.exhausted) == (None, False)
    for i, value in enumerate(values):
        improved = monitor.see(i, record(name, value))
        best, before = best_of(values[: i + 1], direction), best_of(values[:i], direction)
        assert improved == (best != before)
        assert monitor.best_round == best
        since = i - best if best is not None else i + 1
        assert monitor.exhausted == (patience is not None and since >= patience)


@given(names, modes, patiences, figures, st.integers(0, 20))
def test_a_monitor_that_was_restored_goes_on_as_if_nothing_were(
    name: str, mode: str | None, patience: int | None, values: list[float], cut: int
) -> None:
    config = configured(name, mode, patience)
    whole, first, second = Monitor(config), Monitor(config), Monitor(config)
    told = [whole.see(i, record(name, value)) for i, value in enumerate(values)]
    for i, value in enumerate(values[:cut]):
        assert first.see(i, record(name, value)) == told[i]
    second.restore(json.loads(json.dumps(first.state())))
    for i, value in list(enumerate(values))[cut:]:
        assert second.see(i, record(name, value)) == told[i]
    assert second.state() == whole.state()
    assert (second.best_round, second.exhausted) == (whole.best_round, whole.exhausted)


@given(figures)
def test_without_a_figure_to_watch_nothing_is_best_and_nothing_ends(values: list[float]) -> None:
    monitor = Monitor(configured(None))
    assert not any(monitor.see(i, record("auc", value)) for i, value in enumerate(values))
    assert (monitor.best_round, monitor.exhausted) == (None, False)


def test_a_round_in_which_nothing_was_released_is_no_improvement() -> None:
    monitor = Monitor(configured("auc", None, 1))
    assert not monitor.see(0, RoundRecord(0, math.nan, {}, Made(), 0.0))
    assert monitor.exhausted


def test_the_figures_are_those_of_a_record() -> None:
    """All that is a number in a record's metrics can be watched, and nothing else."""
    rng = np.random.default_rng(0)
    histograms = rng.integers(20, 90, size=(2, 2, 1, 2, 8)).astype(float)
    counts = histograms[:, :, 0].sum(-1)
    table = assess(Signals(counts, counts.sum(-1), histograms), (2,), 0).to_dict(["a"], ["f", "m"])
    numbers = {key for key, value in table.items() if isinstance(value, int | float)}
    assert {*numbers, "train_loss"} == set(MONITORED)


@pytest.mark.parametrize(("name", "direction"), sorted(MONITORED.items()))
def test_the_better_direction_is_that_of_the_figure(name: str, direction: str) -> None:
    monitor = Monitor(configured(name))
    monitor.see(0, record(name, 0.5))
    assert monitor.see(1, record(name, 0.6 if direction == "max" else 0.4))
    assert not monitor.see(2, record(name, 0.5))
    assert direction == better(name, None)
