"""A bootstrap interval of ES-AUC beside fairlearn's bootstrap of the same quantities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from fairlearn.metrics import MetricFrame
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, interleave
from fedfair.assessment import assess
from fedfair.bootstrap import metric_intervals
from fedfair.metrics import es_auc
from fedfair.signals import Signals, head_signals

RECORDS, GROUPS, RESAMPLES, BINS, TURNS = 2000, 3, 200, 128, 3
Array = NDArray[np.float64]


def tables() -> Iterator[Table]:
    """Yield time, point value and interval of both."""
    labels, groups, scores = records()
    signals = _signals(labels, groups, scores)
    binned = (np.floor(scores * BINS).clip(0, BINS - 1) + 0.5) / BINS
    results: dict[str, tuple[float, float, float]] = {}

    def ours() -> None:
        interval = metric_intervals(signals, (GROUPS,), 0, RESAMPLES, np.random.default_rng(0))["es_auc"]
        results["fedfair"] = (assess(signals, (GROUPS,), 0).es_auc, interval.low, interval.high)

    def theirs() -> None:
        results["fairlearn"] = _fairlearn(labels, groups, binned)

    taken = interleave([ours, theirs], TURNS)
    cost = compare(taken[1], taken[0])
    columns = ("candidate", "time", "ES-AUC", "95% interval")
    rows = [
        (name, milliseconds(seconds), f"{point:.4f}", f"{low:.3f} to {high:.3f}")
        for (name, (point, low, high)), seconds in zip(
            results.items(), (cost.peer_seconds, cost.seconds), strict=True
        )
    ]
    yield Table("es-auc-interval", columns, [*rows, ("fairlearn / fedfair (quartiles)", str(cost), "", "")])


def records() -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return made-up labels, groups and scores; the third group is served worse."""
    rng = np.random.default_rng(0)
    groups = rng.choice(GROUPS, RECORDS, p=[0.6, 0.25, 0.15])
    labels = rng.integers(2, size=RECORDS)
    signal = np.array([1.5, 1.3, 0.8])[groups]
    scores = 1 / (1 + np.exp(-(signal * (labels - 0.5) + rng.standard_normal(RECORDS))))
    return labels, groups, scores


def _signals(labels: NDArray[np.int64], groups: NDArray[np.int64], scores: Array) -> Signals:
    logits = torch.from_numpy(np.stack([np.log1p(-scores), np.log(scores)], axis=1))
    own = head_signals(logits, torch.from_numpy(labels), torch.from_numpy(groups), GROUPS, BINS)
    return Signals(*(part[None] for part in own))


def _fairlearn(
    labels: NDArray[np.int64], groups: NDArray[np.int64], scores: Array
) -> tuple[float, float, float]:
    """Return ES-AUC and an interval from fairlearn's resampled AUCs.

    Its frame gives quantiles of the group AUCs and of the overall one, not of what is made from
    them, so the interval here is ES-AUC at the ends of those: a rough one, at fairlearn's price.
    """
    frame = MetricFrame(
        metrics=roc_auc_score,
        y_true=labels,
        y_pred=scores,
        sensitive_features=groups,
        n_boot=RESAMPLES,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    point = float(es_auc(np.asarray(frame.overall), frame.by_group.to_numpy()))
    low, high = (
        float(es_auc(np.asarray(overall), by_group.to_numpy()))
        for overall, by_group in zip(frame.overall_ci, frame.by_group_ci, strict=True)
    )
    return point, min(low, high), max(low, high)
