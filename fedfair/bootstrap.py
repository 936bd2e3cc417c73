"""Intervals for metrics of histograms, by resampling the records behind them.

A record of a histogram is one count in one cell, so drawing n records with replacement is one
multinomial draw over the cells with their counts as weights: the ordinary nonparametric bootstrap
of the binned records (Efron and Tibshirani 1993, chapter 6), at the cost of the occupied cells
rather than of the records. It speaks of the sampling of test records, not of training again.

A maximum of differences between groups is never negative, and resampling noise makes it larger: the
percentiles of resampled differences lie above zero even where groups are equal, so the percentile
interval of a parity difference would never contain zero. Each interval here is therefore the
observed value plus or minus a quantile of how far resampled groups move from the observed ones,

    |metric(r) - metric(r^)| <= deviation(r, r^),    for example range(r - r^) for a parity difference,

which keeps its level for equal and for unequal groups alike, and is wider than needed where three or
more groups differ.

A released histogram has lost its records, but the variance of its noise is known. Its cells are drawn
from normal distributions about the released ones instead, with the variance of a count, max(cell, 0),
plus that of the noise: the intervals then speak of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair import metrics
from fedfair.assessment import EXACT, MetricTable, assess, marginal
from fedfair.errors import ShapeError
from fedfair.resolution import resolved_rates
from fedfair.signals import Signals

Array = NDArray[np.float64]

HEADLINE = ("auc", "es_auc", "dpd", "deodds", "worst_group_auc")
# Cells held at a time: 32 MB of float64, which the statistic's temporaries multiply a few times.
CHUNK_CELLS = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A range of a metric.

    Attributes
    ----------
    low, high : float
        NaN if not estimable.
    estimable : float
        Share in [0, 1] of the resamples for which the metric was defined.
    """

    low: float
    high: float
    estimable: float


def bootstrap(
    histograms: Array,
    statistic: Callable[[Array], Array],
    resamples: int,
    generator: np.random.Generator,
    variance: float = 0.0,
) -> Array:
    """Return the statistic of resampled records, [resamples, ...].

    Parameters
    ----------
    histograms : Array
        Counts of any shape, not negative, each record in exactly one cell; or released ones.
    statistic : Callable[[Array], Array]
        Maps [r, *histograms.shape] to [r, ...], for any r.
    resamples : int
        Number of resamples, at least 1. Each has the number of records of exact `histograms`.
    generator : np.random.Generator
        The source of the draws.
    variance : float
        Of the noise in each cell of released histograms; 0 for exact ones.

    Raises
    ------
    ShapeError
        If a cell of exact histograms is negative or not a whole number, or there is no resample to
        draw.
    """
    cells = histograms.ravel()
    counts = bool((cells >= 0).all() and (cells == np.round(cells)).all())
    if resamples < 1 or not (counts or variance > 0):
        raise ShapeError(
            f"`histograms` must be counts of records and `resamples` at least 1, got {resamples} "
            "resamples; noisy histograms cannot be resampled without the `variance` of their noise"
        )
    draw = _redraw if variance > 0 else _resample
    step = max(1, CHUNK_CELLS // max(1, cells.size))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate(
        [statistic(draw(cells, r, generator, variance).reshape(r, *histograms.shape)) for r in sizes]
    )


def _resample(cells: Array, resamples: int, generator: np.random.Generator, variance: float) -> Array:
    del variance  # exact
    occupied = np.flatnonzero(cells)
    drawn = np.zeros((resamples, cells.size))
    total = int(cells.sum())
    if total:
        drawn[:, occupied] = generator.multinomial(total, cells[occupied] / total, size=resamples)
    return drawn


def _redraw(cells: Array, resamples: int, generator: np.random.Generator, variance: float) -> Array:
    spread = np.sqrt(np.maximum(cells, 0.0) + variance)
    drawn: Array = cells + spread * generator.standard_normal((resamples, cells.size))
    return drawn


def deviation_interval(point: float, deviations: Array, level: float = 0.95) -> Interval:
    """Return `point` plus or minus a quantile of the deviations, within [0, 1].

    Parameters
    ----------
    point : float
        The observed metric; NaN gives a NaN interval.
    deviations : Array
        [R, T] absolute deviations in R resamples for each of T classes; NaN ones are left out.
        The quantiles of the classes are averaged: histograms do not say how scores of two classes
        vary together, and the mean is as wide as if they varied fully together.
    level : float
        Nominal coverage in (0, 1).
    """
    known = ~np.isnan(deviations)
    estimable = float(known.mean())
    if np.isnan(point) or not known.any(0).all():
        return Interval(np.nan, np.nan, estimable)
    half = float(np.nanquantile(deviations, level, axis=0).mean())
    return Interval(max(0.0, point - half), min(1.0, point + half), estimable)


def metric_intervals(
    signals: Signals,
    cells: tuple[int, ...],
    axis: int | tuple[int, ...],
    resamples: int,
    generator: np.random.Generator,
    min_count: float = 1,
    level: float = 0.95,
    known: NDArray[np.bool_] | None = None,
) -> dict[str, Interval]:
    """Return intervals of the fused head's metrics by one attribute.

    Which groups are estimable is decided on the observed records, as `assess` does; a resample
    uses those of them that it can.

    Parameters
    ----------
    signals : Signals
        Of all sites together, by product cell; exact, or released with their variance.
    cells, axis, min_count
        As in `fedfair.assessment.assess`.
    resamples : int
        R >= 1.
    generator : np.random.Generator
        The source of the draws.
    level : float
        Nominal coverage in (0, 1).
    known : NDArray[np.bool_] | None
        As in `fedfair.assessment.assess`.

    Returns
    -------
    dict[str, Interval]
        Keys `auc`, `es_auc`, `dpd`, `deodds`, `worst_group_auc`, and `group_auc/0` ... by group.
    """
    table = assess(signals, cells, axis, min_count, known)
    by_attribute = marginal(signals, cells, axis)
    variance = (by_attribute.variance or EXACT).histograms
    deviations = np.stack(
        [
            bootstrap(
                by_class,
                _deviation(table, by_class, min_count, variance, known),
                resamples,
                generator,
                variance,
            )
            for by_class in np.moveaxis(by_attribute.histograms[0], 1, 0)
        ],
        axis=-1,
    )
    points = {key: getattr(table, key) for key in HEADLINE}
    points |= {f"group_auc/{g}": group.auc for g, group in enumerate(table.groups)}
    return {
        key: deviation_interval(point, deviations[:, i], level)
        for i, (key, point) in enumerate(points.items())
    }


def _deviation(
    table: MetricTable,
    histogram: Array,
    min_count: float,
    variance: float,
    known: NDArray[np.bool_] | None,
) -> Callable[[Array], Array]:
    """Return a function from resamples [r, G, 2, Q] to how far each metric moves at most, [r, 5 + G]."""
    observed = metrics.auc(histogram.sum(0), min_count)
    observed_groups, found = _observed(table, histogram, min_count, variance)
    observed_rates = metrics.Rates(*(metrics.masked(rate, known) for rate in found))
    apart = np.array([abs(group.auc - table.auc) for group in table.groups])
    scale = 1 + np.nansum(metrics.masked(apart, known))

    def statistic(drawn: Array) -> Array:
        overall = metrics.auc(drawn.sum(1)) - observed
        groups = metrics.auc(drawn) - observed_groups
        rates = metrics.Rates(
            *(new - old for new, old in zip(metrics.rates(drawn), observed_rates, strict=True))
        )
        compared = metrics.masked(groups, known)
        gaps = np.nansum(np.abs(compared - overall[:, None]), -1)
        headline = (
            np.abs(overall),
            # First-order bound on the change of A / (1 + S) when A and the sum of gaps S move.
            (np.abs(overall) + table.es_auc * gaps) / scale,
            metrics.demographic_parity_difference(rates),
            metrics.equalized_odds_difference(rates),
            -metrics.worst_group_auc(-np.abs(compared)),
        )
        return np.column_stack([*headline, np.abs(groups)])

    return statistic


def _observed(
    table: MetricTable, histogram: Array, min_count: float, variance: float
) -> tuple[Array, metrics.Rates]:
    """Return the AUCs and rates of the groups that count, those of others NaN; not cut to [0, 1]."""
    aucs, rates = metrics.auc(histogram, min_count), metrics.rates(histogram, min_count)
    if variance == 0:
        return aucs, rates
    told = resolved_rates(histogram, min_count, variance)
    pairs = zip(rates, told, strict=True)
    hidden = np.isnan([group.auc for group in table.groups])
    return np.where(hidden, np.nan, aucs), metrics.Rates(
        *(np.where(np.isnan(cut), np.nan, rate) for rate, cut in pairs)
    )
