"""Intervals for any statistic of histograms, by resampling the records behind them.

A record of a histogram is one count in one cell, so drawing n records with replacement is one
multinomial draw over the cells with their counts as weights: the ordinary nonparametric bootstrap
of the binned records (Efron and Tibshirani 1993, chapter 6), at the cost of the occupied cells
rather than of the records. It speaks of the sampling of test records, not of training again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair import metrics
from fedfair.assessment import marginal, summary
from fedfair.errors import ShapeError
from fedfair.signals import Signals

Array = NDArray[np.float64]

# Cells held at a time: 32 MB of float64, which the statistic's temporaries multiply a few times.
CHUNK_CELLS = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A range of a statistic.

    Attributes
    ----------
    low, high : float
        NaN if not estimable.
    estimable : float
        Share of the resamples in [0, 1] for which the statistic was defined.
    """

    low: float
    high: float
    estimable: float


def bootstrap(
    histograms: Array,
    statistic: Callable[[Array], Array],
    resamples: int,
    generator: np.random.Generator,
) -> Array:
    """Return the statistic of resampled records, [resamples, ...].

    Parameters
    ----------
    histograms : Array
        Counts of any shape, not negative; each record in exactly one cell.
    statistic : Callable[[Array], Array]
        Maps [r, *histograms.shape] to [r, ...], for any r.
    resamples : int
        Number of resamples, at least 1. Each has the number of records of `histograms`.
    generator : np.random.Generator
        The source of the draws.

    Raises
    ------
    ShapeError
        If a cell is negative, not a whole number, or there is no resample to draw.
    """
    cells = histograms.ravel()
    if resamples < 1 or (cells < 0).any() or (cells != np.round(cells)).any():
        raise ShapeError("`histograms` must be counts of records and `resamples` at least 1")
    step = max(1, CHUNK_CELLS // max(1, cells.size))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return np.concatenate(
        [statistic(_resample(cells, r, generator).reshape(r, *histograms.shape)) for r in sizes]
    )


def _resample(cells: Array, resamples: int, generator: np.random.Generator) -> Array:
    occupied = np.flatnonzero(cells)
    drawn = np.zeros((resamples, cells.size))
    total = int(cells.sum())
    if total:
        drawn[:, occupied] = generator.multinomial(total, cells[occupied] / total, size=resamples)
    return drawn


def percentile_interval(samples: Array, level: float = 0.95) -> Interval:
    """Return the central interval that holds `level` of the samples [R]; NaN samples are left out."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return Interval(np.nan, np.nan, 0.0)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), known.size / samples.size)
