"""The interval of the equity-scaled AUC beside fairlearn's bootstrap of the same records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._table import Table, milliseconds
from benchmarks._timing import collector_off, compare, stopwatch
from fedfair.assessment import assess
from fedfair.bootstrap import metric_intervals
from fedfair.signals import Signals, head_signals

RECORDS, GROUPS, RESAMPLES, BINS, TURNS = 2000, 3, 200, 128, 3
LEVEL = 0.95


def tables() -> Iterator[Table]:
    """Yield the times, and what both found."""
    labels, groups, scores = records()
    found: dict[str, Any] = {}

    def own() -> None:
        found["own"] = intervals(labels, groups, scores)

    def peer() -> None:
        found["peer"] = frame(labels, groups, scores)

    own()
    with collector_off():
        turns = [(stopwatch(own, calls=20), stopwatch(peer)) for _ in range(TURNS)]
    mine, theirs = zip(*turns, strict=True)
    cost = compare(theirs, mine)
    columns = ("fedfair, all metrics", "fairlearn, AUC", "fairlearn / fedfair (quartiles)")
    cells = (milliseconds(cost.peer_seconds), milliseconds(cost.seconds))
    ratio = f"{cost.ratio:.0f} ({cost.low:.0f} to {cost.high:.0f})"
    yield Table("es-auc-time", columns, [(*cells, ratio)])
    yield _agreement(found["own"], found["peer"])


def records() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return labels, groups and scores; the scores stand at centres of bins, so that no AUC is rounded."""
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(2, size=RECORDS), rng.integers(GROUPS, size=RECORDS)
    raw = rng.standard_normal(RECORDS) + labels * np.array([0.8, 1.2, 1.6])[groups]
    scores = 1 / (1 + np.exp(-raw))
    return labels, groups, (np.floor(scores * BINS) + 0.5) / BINS


def intervals(
    labels: NDArray[np.int64], groups: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, tuple[float, float, float]]:
    """Return (value, low, high) by metric: the histograms are counted, then resampled."""
    logit = torch.tensor(np.log(scores / (1 - scores)))
    counted = head_signals(
        torch.stack([torch.zeros_like(logit), logit], 1),
        torch.tensor(labels),
        torch.tensor(groups),
        GROUPS,
        BINS,
    )
    counts, losses, histograms = (part[None] for part in counted)
    signals = Signals(counts, losses, histograms)
    table = assess(signals, (GROUPS,), 0)
    ranges = metric_intervals(signals, (GROUPS,), 0, RESAMPLES, np.random.default_rng(1), level=LEVEL)
    values = {"AUC": "auc", "ES-AUC": "es_auc"}
    result = {name: (getattr(table, key), ranges[key].low, ranges[key].high) for name, key in values.items()}
    for g, group in enumerate(table.groups):
        interval = ranges[f"group_auc/{g}"]
        result[f"AUC of group {g}"] = (group.auc, interval.low, interval.high)
    return result


def frame(
    labels: NDArray[np.int64], groups: NDArray[np.int64], scores: NDArray[np.float64]
) -> dict[str, tuple[float, float, float]]:
    """Return (value, low, high) by metric from MetricFrame, which has no ES-AUC and so no interval of it."""
    from fairlearn.metrics import MetricFrame  # type: ignore[import-untyped]
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    quantiles = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = MetricFrame(
        metrics=roc_auc_score,
        y_true=labels,
        y_pred=scores,
        sensitive_features=groups,
        n_boot=RESAMPLES,
        ci_quantiles=quantiles,
        random_state=1,
    )
    low, high = found.overall_ci
    result = {"AUC": (float(found.overall), float(low), float(high))}
    lows, highs = found.by_group_ci
    for g in range(GROUPS):
        result[f"AUC of group {g}"] = (float(found.by_group[g]), float(lows[g]), float(highs[g]))
    auc = result["AUC"][0]
    gaps = sum(abs(result[f"AUC of group {g}"][0] - auc) for g in range(GROUPS))
    return {**result, "ES-AUC": (auc / (1 + gaps), float("nan"), float("nan"))}


def _agreement(own: dict[str, Any], peer: dict[str, Any]) -> Table:
    columns = ("metric", "fedfair", "fairlearn", "values differ by")
    rows = [
        (name, _interval(mine), _interval(peer[name]), f"{abs(mine[0] - peer[name][0]):.1g}")
        for name, mine in own.items()
    ]
    return Table("es-auc-values", columns, rows)


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.4f}" if np.isnan(low) else f"{value:.4f} ({low:.3f} to {high:.3f})"
