"""Results: each arm's metrics over seeds, its paired differences from the baseline, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedfair.bootstrap import metric_intervals
from fedfair.report._load import Experiment, Record
from fedfair.seeding import numpy_generator


@dataclass(frozen=True)
class Metric:
    """One headline metric: its key in the records, its name, which way is better, what it says."""

    key: str
    label: str
    higher_is_better: bool
    meaning: str


METRICS = (
    Metric("auc", "AUC", True, "how well scores rank patients with the condition above those without"),
    Metric("es_auc", "ES-AUC", True, "AUC / (1 + sum over groups of |group AUC - AUC|)"),
    Metric("dpd", "DPD", False, "largest difference between groups in the share called positive"),
    Metric("deodds", "DEOdds", False, "largest difference between groups in true or false positive rate"),
    Metric("worst_group_auc", "Worst-group AUC", True, "AUC of the group with the lowest one"),
)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and from how many seeds it comes; NaN for not estimable."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and does not contain 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """An arm's metric minus the baseline's, paired by seed; `better` counts seeds that improved."""

    estimate: Estimate
    better: int


def number(value: float | None) -> float:
    """Return the value, or NaN for None."""
    return math.nan if value is None else float(value)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution with `degrees` >= 1 degrees of freedom.

    With t = sqrt(degrees) tan(x) the density is proportional to cos(x)^(degrees - 1) on
    (-pi/2, pi/2), which is integrated by the trapezoidal rule; the error is below 1e-6 for
    probabilities from 0.01 to 0.99.
    """
    x = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.cos(x) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(degrees) * np.tan(np.interp(probability, mass / mass[-1], x)))


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of the known values and its 95 % t interval; one value has no interval."""
    known = np.array([value for value in values if not math.isnan(value)])
    if known.size < 2:
        return Estimate(float(known[0]) if known.size else math.nan, seeds=known.size)
    mean = float(known.mean())
    half = t_quantile(0.975, known.size - 1) * float(known.std(ddof=1)) / math.sqrt(known.size)
    return Estimate(mean, mean - half, mean + half, known.size)


def headline(experiment: Experiment) -> dict[str, dict[str, Estimate]]:
    """Return by arm and metric the mean over seeds with a t interval.

    With one seed the interval is the bootstrap's over test records, if the final evaluation is there.
    """
    results = {}
    for arm in experiment.arms:
        tests = list(experiment.compared(arm).values())
        estimates = {m.key: over_seeds([number(test[m.key]) for test in tests]) for m in METRICS}
        if len(tests) == 1:
            estimates |= _bootstrapped(experiment, arm, estimates)
        results[arm] = estimates
    return results


def _bootstrapped(experiment: Experiment, arm: str, points: dict[str, Estimate]) -> dict[str, Estimate]:
    (seed,) = experiment.compared(arm)
    evaluation = experiment.runs[seed, arm].evaluation
    if evaluation is None:
        return {}
    axis = list(experiment.attributes).index(experiment.attribute)
    intervals = metric_intervals(
        evaluation.pooled,
        experiment.cells,
        axis,
        experiment.resamples,
        numpy_generator(seed, "report", arm, experiment.attribute),
        experiment.min_count,
    )
    return {
        key: replace(point, low=intervals[key].low, high=intervals[key].high) for key, point in points.items()
    }


def differences(experiment: Experiment) -> dict[str, dict[str, Difference]]:
    """Return by arm (without the baseline) and metric the paired differences from the baseline."""
    base = experiment.compared(experiment.baseline)
    return {
        arm: {metric.key: _difference(metric, base, experiment.compared(arm)) for metric in METRICS}
        for arm in experiment.arms[1:]
    }


def _difference(metric: Metric, base: dict[int, Record], other: dict[int, Record]) -> Difference:
    changes = [
        number(other[seed][metric.key]) - number(base[seed][metric.key]) for seed in base if seed in other
    ]
    better = sum(change > 0 if metric.higher_is_better else change < 0 for change in changes)
    return Difference(over_seeds(changes), better)


def verdict(experiment: Experiment, compared: dict[str, dict[str, Difference]]) -> list[str]:
    """Return one plain statement per arm, no stronger than its intervals."""
    return [_verdict(arm, experiment.baseline, by_metric) for arm, by_metric in compared.items()]


def _verdict(arm: str, baseline: str, by_metric: dict[str, Difference]) -> str:
    seeds = max(d.estimate.seeds for d in by_metric.values())
    versus = f"{arm} against {baseline}"
    if seeds == 0:
        return f"{versus}: no seed has both, so nothing can be compared yet."
    if seeds == 1:
        return (
            f"{versus}: one seed has both, so a difference cannot be told from chance. "
            "Run more seeds before drawing a conclusion."
        )
    groups: dict[str, list[str]] = {"better in": [], "worse in": [], "no difference shown in": []}
    for metric in METRICS:
        change = by_metric[metric.key].estimate
        if not change.excludes_zero:
            groups["no difference shown in"].append(metric.label)
            continue
        better = (change.value > 0) == metric.higher_is_better
        groups["better in" if better else "worse in"].append(f"{metric.label} ({signed_interval(change)})")
    parts = [f"{words} {_listed(items)}" for words, items in groups.items() if items]
    return f"{versus}, over {seeds} seeds: {'; '.join(parts)}."


def signed_interval(estimate: Estimate) -> str:
    """Return for example ``+0.017, 95% interval +0.009 to +0.025``."""
    return f"{estimate.value:+.3f}, 95% interval {estimate.low:+.3f} to {estimate.high:+.3f}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
