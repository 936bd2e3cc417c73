"""Settling released signals: a group differs from the pool only as far as it can be told from noise.

The noise of a release is known, so the gap of a group to the pool of all groups, and that of a
modality to all modalities, has a known standard deviation sd, to first order. A gap is kept in the share

    w = max(0, 1 - (2 sd / gap)^2),

which is 0 up to two standard deviations and tends to 1 beyond. Methods that act on gaps then rest
where there is nothing but noise to act on. All of it follows from released sums, so it costs no
privacy; it belongs after the sums over sites and rounds, since shares of noise do not average out.
Cells are used as they are: clipping them at zero would pull small groups' AUCs towards one half.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.metrics import auc_noise_sd, auc_slopes, macro_auc
from fedfair.resolution import AUC_SD, EVIDENT
from fedfair.signals import Array, Signals

Mask = NDArray[np.bool_]


def settle(signals: Signals) -> tuple[Signals, dict[str, Array]]:
    """Return the signals with all gaps shrunk to their evident part, and what decided it.

    Losses and labels follow the gap in relative loss (to the entropy of the labels) of a unimodal head
    to all of them, then of a group to its head; histograms follow the group's gap in (macro) AUC. An
    AUC with a predicted standard deviation above 0.06, and whatever rests on a class count below twice
    its own, has no evident gap. At w = 0 a group keeps its size and gets the pool's prevalence,
    relative loss, and score distribution of each class.

    Parameters
    ----------
    signals : Signals
        Released sums, pooled over sites. Exact ones are returned as they are.

    Returns
    -------
    tuple[Signals, dict[str, Array]]
        Settled signals, all finite: zeros for a group or a class whose total is not positive, for the
        histograms of a head whose total is not evident, and for head gradients of a norm that noise
        alone explains. Diagnostics: [H, G] `auc` as released with `auc_sd`, whether that is `resolved`,
        and for each gap, `auc_gap` and `loss_gap`, its `..._sd` and w as `auc_weight`, `loss_weight`;
        [M] `head_gap`, `head_gap_sd`, `head_weight` in relative loss. Empty for exact signals.
    """
    variance = signals.variance
    if variance is None or not any(variance):
        return signals, {}
    total = variance.histograms * signals.histograms.shape[-1]  # variance of a class count
    kept: Mask = signals.counts.sum(-1) > 0
    counts, losses, by_loss = _settle_losses(signals, variance.losses, total, kept)
    kept = kept & _evident_heads(signals.counts, total)
    histograms, by_auc = _settle_histograms(signals.histograms, variance.histograms, kept)
    gradients = signals.head_gradients
    if gradients is not None:
        gradients = _evident_gradients(gradients, variance.head_gradients)
    settled = replace(signals, counts=counts, losses=losses, histograms=histograms, head_gradients=gradients)
    return settled, {**by_auc, **by_loss}


def _evident_heads(counts: Array, variance: float) -> Mask:
    """Return [H, 1]: heads that certainly scored records; `variance` is that of a count."""
    total = counts.sum((1, 2))
    evident: Mask = total > EVIDENT * np.sqrt(counts[0].size * variance)
    return evident[:, None]


def _weight(gap: Array, variance: Array, usable: Mask) -> Array:
    """Return w; zero where the gap is not known."""
    square = gap**2
    evident = usable & (square > EVIDENT**2 * variance)
    noise = np.divide(EVIDENT**2 * variance, square, out=np.ones_like(gap), where=evident)
    return 1.0 - noise


def _gap_variance(own: Array, pool: Array, cell: float) -> Array:
    """Return the variance [H, G] of f(group) - f(pool) from derivatives by cell.

    The pool is the sum of the groups, so a group's own noise is in both.

    Parameters
    ----------
    own, pool : Array
        [H, G, ...] and [H, 1, ...].
    cell : float
        Variance of each cell's noise.
    """
    axes = tuple(range(2, own.ndim))
    others = (own.shape[1] - 1) * (pool**2).sum(axes)
    result: Array = cell * (((own - pool) ** 2).sum(axes) + others)
    return result


class _Risk(NamedTuple):
    """Relative loss r = L / E, E = n times the entropy of the labels, with its derivatives."""

    prevalence: Array  # [..., C]
    relative: Array
    by_loss: Array
    by_count: Array  # [..., C]


def _entropy(prevalence: Array) -> Array:
    # Zero for a class of zero records, whose logarithm is left out.
    entropy: Array = -(prevalence * _log(prevalence)).sum(-1)
    return entropy


def _log(prevalence: Array) -> Array:
    return np.log(prevalence, out=np.zeros_like(prevalence), where=prevalence > 0)


def _risk(counts: Array, losses: Array) -> _Risk:
    """Return the risk of counts [..., C]; NaN unless there are two classes."""
    counts = np.maximum(counts, 0.0)
    size = counts.sum(-1, keepdims=True)
    prevalence = np.divide(counts, size, out=np.zeros_like(counts), where=size > 0)
    weighed = size[..., 0] * _entropy(prevalence)
    by_loss = np.divide(1.0, weighed, out=np.full_like(weighed, np.nan), where=weighed > 0)
    relative = losses * by_loss
    return _Risk(prevalence, relative, by_loss, (relative * by_loss)[..., None] * _log(prevalence))


class _Evidence(NamedTuple):
    """Gaps in relative loss, their standard deviations, and the shares w that are kept."""

    gap: Array
    gap_sd: Array
    weight: Array

    @classmethod
    def of(cls, counts: Array, own: _Risk, pool: _Risk, cells: tuple[float, float]) -> _Evidence:
        """Return [H, G] for own [H, G] and pool [H, 1]; `cells`: variances of a loss and of a count."""
        gap = own.relative - pool.relative
        variance = _gap_variance(own.by_loss, pool.by_loss, cells[0])
        variance = variance + _gap_variance(own.by_count, pool.by_count, cells[1])
        usable: Mask = (counts >= EVIDENT * np.sqrt(cells[1])).all(-1)
        return cls(gap, np.sqrt(variance), _weight(gap, variance, usable))

    def settle(self, own: Array, prevalence: Array, relative: Array) -> tuple[Array, Array]:
        """Return prevalence and relative loss, moved from the given ones by the evident gap."""
        prevalence = prevalence + self.weight[..., None] * (own - prevalence)
        return prevalence, relative + np.where(self.weight > 0, self.weight * self.gap, 0.0)


def _settle_losses(
    signals: Signals, loss: float, count: float, kept: Mask
) -> tuple[Array, Array, dict[str, Array]]:
    """Return counts, losses and diagnostics: heads settle at their pool, and groups at their head."""
    counts, losses, groups = signals.counts, signals.losses, signals.num_groups
    own, pool = _risk(counts, losses), _risk(counts.sum(1, keepdims=True), losses.sum(1, keepdims=True))
    gaps = _Evidence.of(counts, own, pool, (loss, count))
    head_gaps, *level = _settle_heads(counts.sum(1), losses.sum(1), (loss * groups, count * groups))
    prevalence, relative = gaps.settle(own.prevalence, *level)
    # Nothing is relative to labels of one class: the pool's mean loss itself.
    size = np.maximum(counts.sum(1), 0.0).sum(-1, keepdims=True)
    pooled = np.divide(losses.sum(1, keepdims=True), size, out=np.zeros_like(size), where=size > 0)
    mean = np.where(np.isfinite(relative), _entropy(prevalence) * relative, pooled)
    sizes = np.where(kept, counts.sum(-1), 0.0)
    diagnostics = {f"loss_{name}": value for name, value in gaps._asdict().items()}
    diagnostics |= {f"head_{name}": value[0] for name, value in head_gaps._asdict().items()}
    return sizes[..., None] * prevalence, sizes * mean, diagnostics


def _settle_heads(counts: Array, losses: Array, cells: tuple[float, float]) -> tuple[_Evidence, Array, Array]:
    """Return gaps [1, M] of the unimodal heads, and all heads' prevalence [H, 1, C] and loss [H, 1].

    Only unimodal heads are compared with each other; the fused head keeps its level.
    """
    fused, own = _risk(counts[:1], losses[:1]), _risk(counts[None, 1:], losses[None, 1:])
    pool = _risk(counts[1:].sum(0)[None, None], losses[1:].sum()[None, None])
    gaps = _Evidence.of(counts[None, 1:], own, pool, cells)
    prevalence, relative = gaps.settle(own.prevalence, pool.prevalence, pool.relative)
    return (
        gaps,
        np.concatenate([fused.prevalence, prevalence[0]])[:, None],
        np.concatenate([fused.relative, relative[0]])[:, None],
    )


def _settle_histograms(histograms: Array, cell: float, kept: Mask) -> tuple[Array, dict[str, Array]]:
    """Return histograms and diagnostics: per class w * own + (1 - w) * own total * pool's shares."""
    scored, bins = histograms.shape[2], histograms.shape[-1]
    pool = histograms.sum(1, keepdims=True)
    totals = histograms.sum(-1, keepdims=True)
    auc = macro_auc(histograms)
    # The macro AUC is a mean over independent histograms.
    sd = np.sqrt((auc_noise_sd(histograms, cell) ** 2).sum(-1)) / scored
    variance = _gap_variance(auc_slopes(histograms), auc_slopes(pool), cell) / scored**2
    known = (totals >= EVIDENT * np.sqrt(bins * cell)).all((2, 3, 4))
    resolved = kept & known & (sd <= AUC_SD)
    gap = auc - macro_auc(pool)
    weight = _weight(gap, variance, resolved)
    share = weight[..., None, None, None]
    pooled = pool.sum(-1, keepdims=True)
    shares = np.divide(pool, pooled, out=np.zeros_like(pool), where=pooled > 0)
    settled = share * histograms + (1 - share) * np.maximum(totals, 0.0) * shares
    diagnostics = {
        **{"auc": auc, "auc_sd": sd, "resolved": resolved.astype(np.float64)},
        **{"auc_gap": gap, "auc_gap_sd": np.sqrt(variance), "auc_weight": weight},
    }
    return np.where(kept[..., None, None, None], settled, 0.0), diagnostics


def _evident_gradients(gradients: Array, variance: float) -> Array:
    """Return [H, C, P + 1] with zeros for a head whose norm is below twice that of the noise."""
    noise = variance * gradients[0].size
    evident = (gradients**2).sum((1, 2), keepdims=True) > EVIDENT**2 * noise
    return np.where(evident, gradients, 0.0)
