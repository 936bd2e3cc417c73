"""Results: each arm's metrics over seeds, its paired differences from the baseline, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedfair.bootstrap import Interval, metric_intervals
from fedfair.data.crossing import axes, known
from fedfair.errors import counted
from fedfair.report._load import Experiment, Record
from fedfair.seeding import numpy_generator
from fedfair.signals import Signals


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

FEWEST_SEEDS = 3  # an interval from two values exists, but nobody should act on it


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and from how many seeds it comes; NaN for not estimable.

    `noise` is the standard deviation that the noise of a release gives the value, 0 if none.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    noise: float = 0.0

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


def level_over_seeds(values: Sequence[float]) -> Estimate:
    """Return `over_seeds` of a metric in [0, 1], its interval cut to that range."""
    mean = over_seeds(values)
    return replace(mean, low=float(np.clip(mean.low, 0, 1)), high=float(np.clip(mean.high, 0, 1)))


def headline(experiment: Experiment) -> dict[str, dict[str, Estimate]]:
    """Return by arm and metric the mean over seeds with a t interval.

    With one seed the interval is the bootstrap's over test records, if the final evaluation is there.
    """
    results = {}
    for arm in experiment.arms:
        tests = list(experiment.compared(arm).values())
        estimates = {m.key: level_over_seeds([number(t[m.key]) for t in tests]) for m in METRICS}
        if len(tests) == 1:
            estimates |= _bootstrapped(experiment, arm, estimates)
        results[arm] = estimates
    return results


def _bootstrapped(experiment: Experiment, arm: str, points: dict[str, Estimate]) -> dict[str, Estimate]:
    (seed,) = experiment.compared(arm)
    evaluation = experiment.runs[seed, arm].evaluation
    if evaluation is None:
        return {}
    intervals = resampled(experiment, evaluation.pooled, experiment.attribute, arm)
    return {
        key: replace(point, low=intervals[key].low, high=intervals[key].high) for key, point in points.items()
    }


def resampled(experiment: Experiment, signals: Signals, attribute: str, *labels: str) -> dict[str, Interval]:
    """Return bootstrap intervals of one model's metrics by one attribute.

    Parameters
    ----------
    experiment : Experiment
        Says how many resamples, and how many records are too few.
    signals : Signals
        By product cell, of all sites or of one.
    attribute : str
        The attribute or crossing.
    *labels : str
        What the signals are of; each place draws its own resamples.
    """
    return metric_intervals(
        signals,
        experiment.cells,
        axes(experiment.attributes, attribute),
        experiment.resamples,
        numpy_generator(experiment.shown_seed, "report", attribute, *labels),
        experiment.min_count,
        known=known(experiment.attributes, attribute),
    )


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


@dataclass(frozen=True)
class Verdict:
    """What may be said of one arm against the baseline, no more than its intervals carry.

    Attributes
    ----------
    heading : str
        Which arms, over how many seeds.
    better, worse : Sequence[tuple[Metric, Estimate]]
        Metrics whose interval of the difference does not contain zero.
    not_shown, not_known : Sequence[Metric]
        Metrics whose interval does, and those whose difference is not estimable.
    remark : str
        Why nothing can be said, if so.
    """

    heading: str
    better: Sequence[tuple[Metric, Estimate]] = ()
    worse: Sequence[tuple[Metric, Estimate]] = ()
    not_shown: Sequence[Metric] = ()
    not_known: Sequence[Metric] = ()
    remark: str = ""


def verdicts(experiment: Experiment, compared: dict[str, dict[str, Difference]]) -> list[Verdict]:
    """Return a verdict per arm other than the baseline."""
    if experiment.untested:
        heading = f"{', '.join(compared)} against {experiment.baseline}"
        remark = "Test figures are not released (`privacy.evaluation: none`), so nothing can be compared."
        return [Verdict(heading, remark=remark)] if compared else []
    return [_verdict(f"{arm} against {experiment.baseline}", changes) for arm, changes in compared.items()]


def _verdict(versus: str, by_metric: dict[str, Difference]) -> Verdict:
    seeds = max(difference.estimate.seeds for difference in by_metric.values())
    if seeds == 0:
        return Verdict(versus, remark="No seed has a known metric of both, so nothing can be compared.")
    heading = f"{versus}, over {counted(seeds, 'seed')}"
    if seeds < FEWEST_SEEDS:
        remark = f"Fewer than {FEWEST_SEEDS} seeds cannot tell a difference from chance; run more seeds."
        return Verdict(heading, remark=remark)
    changes = [(metric, by_metric[metric.key].estimate) for metric in METRICS]
    clear = [(metric, change) for metric, change in changes if change.excludes_zero]
    return Verdict(
        heading,
        better=[(m, change) for m, change in clear if (change.value > 0) == m.higher_is_better],
        worse=[(m, change) for m, change in clear if (change.value > 0) != m.higher_is_better],
        not_shown=[
            metric for metric, change in changes if not (change.excludes_zero or math.isnan(change.value))
        ],
        not_known=[metric for metric, change in changes if math.isnan(change.value)],
    )
