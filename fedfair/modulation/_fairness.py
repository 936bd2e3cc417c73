"""The group-fairness loss F_G of MultiFair, as slopes that sites can apply record by record.

F_G = (1 / (M G)) sum_mg |A_mg - mean_g A_mg|, A_mg the surrogate AUC of head m on group g,
    A = mean over pairs (i positive, j negative) of sigmoid((u_i - u_j) / T), u in logits.
Its gradient is sum_mg slope_mg grad A_mg; the pairs cross sites, so each site sets its own
records against the pooled histograms of the other class (see `fedfair.terms`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfair.signals import bin_logits

Array = NDArray[np.float64]
ROUNDING = 1e-9


def surrogate_auc(histograms: Array, temperature: float) -> Array:
    """Return the surrogate AUC [...] of binned scores [..., 2, Q]; NaN if a class is empty.

    It lies in (0, 1), is 1/2 for equal score distributions, and tends to the AUC as the
    temperature goes to zero.
    """
    logit = bin_logits(histograms.shape[-1])
    # The logistic function; exp would overflow at a small temperature.
    pair = (1.0 + np.tanh((logit[:, None] - logit[None, :]) / (2.0 * temperature))) / 2.0
    wins = np.einsum("...i,ij,...j->...", histograms[..., 1, :], pair, histograms[..., 0, :])
    totals = histograms.sum(-1)
    # Noise can make both totals negative, and their product positive.
    known = (totals > 0).all(-1)
    result: Array = np.divide(wins, totals.prod(-1), out=np.full_like(wins, np.nan), where=known)
    return result


def gap_slopes(group_auc: Array, one_sided: bool) -> Array:
    """Return dF_G/dA [M, G]; zero where a group is not estimable.

    Parameters
    ----------
    group_auc : Array
        [M, G] surrogate AUCs, NaN for not estimable.
    one_sided : bool
        If true, F_G = (1 / (M G)) sum max(0, mean - A) with the mean held constant: only groups
        below it are pushed (ours). If false, the two-sided gap above, which also pushes the
        better groups down.
    """
    known = np.isfinite(group_auc)
    count = known.sum(-1, keepdims=True)
    filled = np.where(known, group_auc, 0.0)
    mean = filled.sum(-1, keepdims=True) / np.maximum(count, 1)
    gap = filled - mean
    # Groups settled at one distribution differ by rounding, which must not choose a side.
    sign = np.where(known & (np.abs(gap) > ROUNDING), np.sign(gap), 0.0)
    if one_sided:
        slopes = np.minimum(sign, 0.0)
    else:
        slopes = np.where(known, sign - sign.sum(-1, keepdims=True) / np.maximum(count, 1), 0.0)
    estimable_heads = max(1, int((count[:, 0] > 0).sum()))
    result: Array = slopes / (np.maximum(count, 1) * estimable_heads)
    return result
