"""Metrics of binned scores, overall and by group, from additive histograms only.

A histogram [..., 2, Q] counts the scores of one class in Q equal bins of [0, 1]: index 0 holds the
records that are not of the class, index 1 those that are. Leading axes are kept. NaN means not
estimable and is never replaced by a value. Cells may be noisy: fractional or slightly negative ones
are used as they are, since clamping them would bias the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import ShapeError

Array = NDArray[np.float64]


def _ratio(numerator: Array, denominator: Array, where: NDArray[np.bool_]) -> Array:
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=where)
    return out


def _split(histogram: Array) -> tuple[Array, Array]:
    """Return the bins of (other records, members)."""
    if histogram.ndim < 2 or histogram.shape[-2] != 2:
        raise ShapeError(f"`histogram` must be [..., 2, Q], got {histogram.shape}")
    return histogram[..., 0, :], histogram[..., 1, :]


def _estimable(histogram: Array, min_count: float) -> NDArray[np.bool_]:
    # Noise can make a total negative, and two negative totals have a positive product.
    totals = histogram.sum(-1)
    return np.asarray(((totals >= min_count) & (totals > 0)).all(-1))


def _mid_cumulative(cells: Array) -> Array:
    """Return the mass below each bin plus half the bin's own: a tie is worth one half."""
    return np.asarray(np.cumsum(cells, -1) - cells / 2)


def auc(histogram: Array, min_count: float = 1) -> Array:
    """Return the area under the ROC curve of the binned scores.

    A = sum_b h+_b (sum_{b' < b} h-_b' + h-_b / 2) / (n+ n-)

    It is exact for scores rounded to their bins, and within `auc_bound` of the unrounded one.

    Parameters
    ----------
    histogram : Array
        [..., 2, Q].
    min_count : float
        Records of each class below which the AUC is NaN.

    Returns
    -------
    Array
        [...] in [0, 1] for histograms of counts; 0.5 if both classes have one distribution.

    Raises
    ------
    ShapeError
        If the second last axis is not 2.
    """
    others, members = _split(histogram)
    wins = (members * _mid_cumulative(others)).sum(-1)
    return _ratio(wins, histogram.sum(-1).prod(-1), _estimable(histogram, min_count))


def auc_bound(histogram: Array) -> Array:
    """Return half the tie mass, 1/2 sum_b (h+_b / n+) (h-_b / n-).

    The AUC of the exact scores differs from `auc` by no more than this [...]; it tends to zero
    as Q grows unless scores are equal. NaN if a class is empty.
    """
    others, members = _split(histogram)
    return _ratio((members * others).sum(-1) / 2, histogram.sum(-1).prod(-1), _estimable(histogram, 1))


def auc_standard_error(histogram: Array) -> Array:
    """Return DeLong's standard error of `auc`, computed on the bins.

    SE^2 = Var_{h+}(F-) / n+ + Var_{h-}(F+) / n-, F the mid-distribution function of the other
    class and Var with denominator n - 1, which makes it equal to DeLong's estimator on the binned
    scores (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988).

    Returns
    -------
    Array
        [...]; NaN if a class has fewer than two records or noise made the variance negative.
        Zero for perfect separation, which says nothing about the uncertainty there.
    """
    others, members = _split(histogram)
    enough = _estimable(histogram, 2)
    variance = _mean_variance(members, others, enough) + _mean_variance(others, members, enough)
    return np.sqrt(variance, out=np.full_like(variance, np.nan), where=variance >= 0)


def _mean_variance(own: Array, other: Array, where: NDArray[np.bool_]) -> Array:
    """Return the variance of the mean over `own` records of the share of `other` below them."""
    size = own.sum(-1, keepdims=True)
    keep = where[..., None]
    share = _ratio(_mid_cumulative(other), other.sum(-1, keepdims=True), keep)
    mean = _ratio((own * share).sum(-1, keepdims=True), size, keep)
    squares = (own * (share - mean) ** 2).sum(-1)
    return _ratio(squares, size[..., 0] * (size[..., 0] - 1), where)


def auc_slopes(histogram: Array) -> Array:
    """Return the derivative of `auc` by each cell, [..., 2, Q]; NaN if a class is empty.

    dA/dh+_b = (F-_b - A) / n+ and dA/dh-_b = (1 - F+_b - A) / n-, F the mid-distribution functions.
    """
    keep = _estimable(histogram, 0)[..., None, None]
    totals = histogram.sum(-1, keepdims=True)
    others, members = _split(_ratio(_mid_cumulative(histogram), totals, keep))
    return _ratio(np.stack([1 - members, others], -2) - auc(histogram, 0)[..., None, None], totals, keep)


def auc_noise_sd(histogram: Array, variance: float | Array) -> Array:
    """Return the standard deviation of `auc` [...] under noise in the cells, to first order.

    sd^2 = variance (sum_b (F-_b - A)^2 / n+^2 + sum_b (1 - F+_b - A)^2 / n-^2), for independent noise
    of one variance [...] per cell, as a private release adds. Trust it up to about 0.06: beyond, the
    AUC is no longer linear in the noise. NaN if a class is empty.
    """
    return np.asarray(np.sqrt(variance * (auc_slopes(histogram) ** 2).sum((-1, -2))))


def macro_auc(histogram: Array, min_count: float = 1) -> Array:
    """Return the mean AUC over classes, one class against the rest.

    Parameters
    ----------
    histogram : Array
        [..., T, 2, Q]; T = 1 gives the AUC of that class.
    min_count : float
        As in `auc`.

    Returns
    -------
    Array
        [...]; NaN unless every class is estimable: a mean over fewer classes is another quantity,
        and would make groups incomparable.
    """
    return np.asarray(auc(histogram, min_count).mean(-1))


def within_site_auc(histogram: Array, axis: int = 0) -> Array:
    """Return the AUC over pairs of records of the same site.

    sum_k n+_k n-_k A_k / sum_k n+_k n-_k over the sites on `axis` (not one of the last two). Far
    from `auc` of the summed histograms, it says that sites differ in prevalence or score level.
    """
    by_site = auc(histogram)
    pairs = np.where(np.isnan(by_site), 0.0, histogram.sum(-1).prod(-1))
    total = pairs.sum(axis)
    return _ratio((pairs * np.nan_to_num(by_site)).sum(axis), total, total > 0)


def es_auc(overall: Array, by_group: Array, axis: int = -1) -> Array:
    """Return the equity-scaled AUC, AUC / (1 + sum_g |AUC_g - AUC|).

    The sum grows with the number of groups, so values compare only between equal groupings.
    FairVision, arXiv 2310.02492; FairCLIP, arXiv 2403.19949.

    Parameters
    ----------
    overall : Array
        [...] AUC of all records pooled, not the mean of the groups.
    by_group : Array
        The groups' AUCs along `axis`. A group that is NaN is left out: show how many are.

    Returns
    -------
    Array
        [...], at most `overall` and equal to it if all groups are; NaN if no group is estimable.
    """
    gaps = np.abs(by_group - np.expand_dims(overall, axis))
    scaled = overall / (1 + np.nansum(gaps, axis))
    return np.where(np.isnan(by_group).all(axis), np.nan, scaled)


def worst_group_auc(by_group: Array, axis: int = -1) -> Array:
    """Return the lowest group AUC; NaN groups are left out, all NaN gives NaN."""
    lowest = np.where(np.isnan(by_group), np.inf, by_group).min(axis)
    return np.where(np.isinf(lowest), np.nan, lowest)


def _share_above_half(cells: Array, min_count: float) -> Array:
    if cells.shape[-1] % 2:
        raise ShapeError(f"Q must be even for 0.5 to be an edge of the bins, got {cells.shape[-1]}")
    total = cells.sum(-1)
    above = cells[..., cells.shape[-1] // 2 :].sum(-1)
    return _ratio(above, total, (total >= min_count) & (total > 0))


def masked(by_group: Array, known: NDArray[np.bool_] | None, axis: int = -1) -> Array:
    """Return the values with NaN, which no comparison counts, for groups that are not known.

    Parameters
    ----------
    by_group : Array
        With the groups along `axis`.
    known : NDArray[np.bool_] | None
        [G]; None, or all true, returns the values themselves.
    """
    if known is None or known.all():
        return by_group
    along = np.moveaxis(by_group, axis, -1)
    return np.moveaxis(np.where(known, along, np.nan), -1, axis)


class Rates(NamedTuple):
    """Shares of records called positive, each [...] in [0, 1] or NaN.

    Attributes
    ----------
    selection : Array
        Of all records.
    true_positive : Array
        Of the records of the class.
    false_positive : Array
        Of the other records.
    """

    selection: Array
    true_positive: Array
    false_positive: Array


def rates(histogram: Array, min_count: float = 1) -> Rates:
    """Return the rates at threshold 0.5 of a histogram [..., 2, Q].

    A score of 0.5 or more is positive. For more than two classes each class is set against the
    rest at 0.5, which is not the same as taking the most probable class.

    Parameters
    ----------
    histogram : Array
        [..., 2, Q] with Q even.
    min_count : float
        Records in the denominator below which a rate is NaN.

    Raises
    ------
    ShapeError
        If Q is odd or the second last axis is not 2.
    """
    others, members = _split(histogram)
    return Rates(*(_share_above_half(cells, min_count) for cells in (others + members, members, others)))


def _spread(values: Array, axis: int) -> Array:
    known = ~np.isnan(values)
    spread = np.where(known, values, -np.inf).max(axis) - np.where(known, values, np.inf).min(axis)
    return np.where(known.sum(axis) >= 2, spread, np.nan)


def demographic_parity_difference(by_group: Rates, axis: int = -1) -> Array:
    """Return the largest difference in selection rate between two groups on `axis`.

    In [0, 1]; 0 means one selection rate for all. NaN groups are left out; NaN if fewer than two
    remain.
    """
    return _spread(by_group.selection, axis)


def equalized_odds_difference(by_group: Rates, axis: int = -1) -> Array:
    """Return the larger of the largest differences in true and in false positive rate.

    In [0, 1]; 0 means equal error rates. NaN groups are left out of each difference; NaN if either
    difference has fewer than two groups, since the larger of a known and an unknown is unknown.
    """
    return np.maximum(_spread(by_group.true_positive, axis), _spread(by_group.false_positive, axis))
