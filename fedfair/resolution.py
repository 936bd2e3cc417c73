"""What of released sums can be told from the noise that was added to them.

Every cell of a private release carries noise of known variance, so a ratio of sums has a known
standard deviation under noise, to first order. Where that is large, or a denominator is not clear of its
own noise, the ratio is no longer linear in the noise and can come out as anything: it is not
estimable, NaN. A value that remains is cut to its range, which moves it towards the truth or not at
all. With a variance of zero everything is as in `fedfair.metrics`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfair import metrics
from fedfair.metrics import Rates

Array = NDArray[np.float64]

# Largest standard deviations under noise: of an AUC (beyond it is not linear), a rate, a loss in nats.
AUC_SD, RATE_SD, LOSS_SD = 0.06, 0.05, 0.05
# A total is known from this many of its standard deviations on.
EVIDENT = 2.0


def macro_auc_sd(histogram: Array, variance: float | Array) -> Array:
    """Return the standard deviation of `metrics.macro_auc` under noise, to first order.

    Parameters
    ----------
    histogram : Array
        [..., T, 2, Q].
    variance : float | Array
        Of the noise in each cell, [...] or one for all.

    Returns
    -------
    Array
        [...]; NaN if a class is empty.
    """
    by_class = metrics.auc_noise_sd(histogram, np.asarray(variance)[..., None])
    return np.asarray(np.sqrt((by_class**2).sum(-1)) / histogram.shape[-3])


def resolved_auc(histogram: Array, min_count: float, variance: float | Array) -> Array:
    """Return `metrics.macro_auc` [...] in [0, 1], NaN where noise does not let it be told.

    Parameters
    ----------
    histogram : Array
        [..., T, 2, Q].
    min_count : float
        As in `metrics.auc`, of the noised totals.
    variance : float | Array
        Of the noise in each cell, [...] or one for all.
    """
    variance = np.asarray(variance)
    least = EVIDENT * np.sqrt(histogram.shape[-1] * variance)
    known = (histogram.sum(-1) >= least[..., None, None]).all((-1, -2))
    known &= macro_auc_sd(histogram, variance) <= AUC_SD
    return np.where(known, np.clip(metrics.macro_auc(histogram, min_count), 0.0, 1.0), np.nan)


def resolved_rates(histogram: Array, min_count: float, variance: float) -> Rates:
    """Return `metrics.rates` of [..., 2, Q] in [0, 1], NaN where noise does not let them be told."""
    bins = histogram.shape[-1]
    others, members = histogram[..., 0, :].sum(-1), histogram[..., 1, :].sum(-1)
    totals, cells = (others + members, members, others), (2 * bins, bins, bins)
    found = metrics.rates(histogram, min_count)
    return Rates(*(resolved_share(r, n, k * variance) for r, n, k in zip(found, totals, cells, strict=True)))


def resolved_share(share: Array, total: Array, variance: float) -> Array:
    """Return a share [...] of a total in [0, 1], NaN where noise does not let it be told.

    Parameters
    ----------
    share, total : Array
        Share and denominator, half of whose cells are in the numerator.
    variance : float
        Of the noise in the total.
    """
    # d(a / n) = ((1 - r) da - r db) / n for n = a + b, each with half the noise.
    moved = variance / 2 * (share**2 + (1 - share) ** 2)
    return np.where(_told(moved, total, variance, RATE_SD), np.clip(share, 0.0, 1.0), np.nan)


def resolved_loss(losses: Array, counts: Array, variance: float, count_variance: float) -> Array:
    """Return mean losses [...] of at least 0, NaN where noise does not let them be told.

    Parameters
    ----------
    losses, counts : Array
        Sums of losses, and records.
    variance, count_variance : float
        Of the noise in a sum of losses and in a count.
    """
    mean = np.divide(losses, counts, out=np.full(np.shape(losses), np.nan), where=counts > 0)
    known = _told(variance + mean**2 * count_variance, counts, count_variance, LOSS_SD)
    return np.where(known, np.maximum(mean, 0.0), np.nan)


def _told(moved: Array, total: Array, variance: float, limit: float) -> NDArray[np.bool_]:
    """Return where a ratio over `total`, of variance `moved` / total^2, and the total itself are known."""
    return np.asarray((moved <= (limit * total) ** 2) & (total >= EVIDENT * np.sqrt(variance)))
