"""Assessment: what the report says about one model, from signals whose groups are product cells.

Signals collected for assessment keep every attribute: their group axis G is the product of the
attributes' groups in C order (``np.ravel_multi_index``), `cells` being the number of groups of each
attribute. Summing over the other attributes gives the signals by one attribute, exactly. Released
signals carry noise in every cell: what it hides is not estimable (`fedfair.resolution`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfair import metrics
from fedfair.errors import ShapeError
from fedfair.resolution import (
    macro_auc_sd,
    resolved_auc,
    resolved_loss,
    resolved_rates,
    resolved_share,
)
from fedfair.signals import Signals, Variance

Array = NDArray[np.float64]

EXACT = Variance(0.0, 0.0)


def marginal(signals: Signals, cells: tuple[int, ...], axis: int | tuple[int, ...]) -> Signals:
    """Return the signals by the attribute at `axis`, or by several crossed, summed over all others.

    The variance of released signals adds up with the cells.

    Parameters
    ----------
    signals : Signals
        With G = the product of `cells`.
    cells : tuple[int, ...]
        Number of groups of each attribute.
    axis : int | tuple[int, ...]
        Which attribute to keep, in ``0 .. len(cells) - 1``; of several, the last one's groups vary fastest.

    Raises
    ------
    ShapeError
        If G is not the product of `cells` or there is no such axis.
    """
    kept = (axis,) if isinstance(axis, int) else axis
    if math.prod(cells) != signals.num_groups or not set(kept) <= set(range(len(cells))):
        raise ShapeError(
            f"`cells` must multiply to {signals.num_groups} groups and have an axis {axis}, got {cells}"
        )
    variance = signals.variance
    if variance is not None:
        summed = signals.num_groups // math.prod(cells[i] for i in kept)
        variance = Variance(summed * variance.histograms, summed * variance.losses, variance.head_gradients)
    return Signals(
        kept_groups(signals.counts, cells, kept),
        kept_groups(signals.losses, cells, kept),
        kept_groups(signals.histograms, cells, kept),
        signals.head_gradients,
        variance,
    )


def kept_groups(array: Array, cells: tuple[int, ...], kept: Sequence[int]) -> Array:
    """Return [N, groups, ...] by the attributes at `kept` from [N, cells, ...], summed over the others."""
    others = tuple(1 + i for i in range(len(cells)) if i not in kept)
    # Where each attribute stands among those that are left.
    places = [1 + sorted(kept).index(i) for i in kept]
    summed = array.reshape(array.shape[0], *cells, *array.shape[2:]).sum(others)
    ordered = np.moveaxis(summed, places, range(1, len(kept) + 1))
    return np.asarray(ordered.reshape(array.shape[0], -1, *array.shape[2:]))


def summary(overall: Array, by_group: Array, rates: metrics.Rates) -> dict[str, Array]:
    """Return the five headline metrics, each [...]: auc, es_auc, dpd, deodds, worst_group_auc.

    Parameters
    ----------
    overall, by_group : Array
        Macro AUC [...] and [..., G].
    rates : metrics.Rates
        By group and class, [..., G, T]; differences are taken per class, then averaged, since
        differences of opposite sign in two classes would cancel in an average rate.
    """
    return {
        "auc": overall,
        "es_auc": metrics.es_auc(overall, by_group),
        "dpd": metrics.demographic_parity_difference(rates, axis=-2).mean(-1),
        "deodds": metrics.equalized_odds_difference(rates, axis=-2).mean(-1),
        "worst_group_auc": metrics.worst_group_auc(by_group),
    }


@dataclass(frozen=True)
class GroupMetrics:
    """What the fused head does on one group; NaN for not estimable.

    Attributes
    ----------
    counts : tuple[float, ...]
        Records per class.
    auc, log_loss : float
        Macro AUC, and mean cross-entropy in nats.
    selection_rate, true_positive_rate, false_positive_rate : float
        At threshold 0.5, averaged over classes where there are more than two.
    unimodal_auc : tuple[float, ...]
        Macro AUC of each modality's head.
    count_sd, auc_sd : float
        Standard deviation under the noise of a release, of one class count and, to first order, of
        the AUC, also where that is NaN for it; 0 for exact signals.
    """

    counts: tuple[float, ...]
    auc: float
    log_loss: float
    selection_rate: float
    true_positive_rate: float
    false_positive_rate: float
    unimodal_auc: tuple[float, ...]
    count_sd: float = 0.0
    auc_sd: float = 0.0


@dataclass(frozen=True)
class MetricTable:
    """What is reported of a model by one attribute; NaN for not estimable.

    Attributes
    ----------
    auc, es_auc, dpd, deodds, worst_group_auc : float
        As in `summary`, of the fused head.
    worst_group : int | None
        Index of the known group with the lowest AUC.
    accuracy : float
        At threshold 0.5; NaN for more than two classes, which need more than histograms.
    log_loss : float
        Mean cross-entropy in nats.
    unimodal_auc : tuple[float, ...]
        Macro AUC of each modality's head, over the records that have the modality.
    groups : tuple[GroupMetrics, ...]
        One per group, counts included, whether it is known or not.
    """

    auc: float
    es_auc: float
    dpd: float
    deodds: float
    worst_group_auc: float
    worst_group: int | None
    accuracy: float
    log_loss: float
    unimodal_auc: tuple[float, ...]
    groups: tuple[GroupMetrics, ...]

    def to_dict(self, modalities: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
        """Return JSON-safe values keyed by name; None stands for not estimable.

        Parameters
        ----------
        modalities, groups : Sequence[str]
            The M and G names.
        """
        named = dict(zip(groups, self.groups, strict=True))
        scalars = ("auc", "es_auc", "dpd", "deodds", "worst_group_auc", "accuracy", "log_loss")
        by_group = ["auc", "log_loss", "selection_rate", "true_positive_rate", "false_positive_rate"]
        if any(group.count_sd for group in self.groups):
            by_group += ["count_sd", "auc_sd"]
        return {
            **{key: json_safe(getattr(self, key)) for key in scalars},
            "worst_group": None if self.worst_group is None else groups[self.worst_group],
            "unimodal_auc": _named(modalities, self.unimodal_auc),
            "group_counts": {name: [json_safe(n) for n in group.counts] for name, group in named.items()},
            **{
                f"group_{key}": {name: json_safe(getattr(group, key)) for name, group in named.items()}
                for key in by_group
            },
            "group_unimodal_auc": {
                name: _named(modalities, group.unimodal_auc) for name, group in named.items()
            },
        }


def json_safe(value: float) -> float | int | None:
    """Return None for NaN, an int for a whole number, else the value."""
    if math.isnan(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float | int | None]:
    return {name: json_safe(value) for name, value in zip(names, values, strict=True)}


def assess(
    signals: Signals,
    cells: tuple[int, ...],
    axis: int | tuple[int, ...],
    min_count: float = 1,
    known: NDArray[np.bool_] | None = None,
) -> MetricTable:
    """Return the metrics of a model by one attribute, or by several crossed.

    Parameters
    ----------
    signals : Signals
        Of all sites together, by product cell.
    cells, axis
        As in `marginal`.
    min_count : float
        Records of a class (AUC) or in a denominator (rates) below which a value is NaN.
    known : NDArray[np.bool_] | None
        [groups] that are compared with each other, see `fedfair.data.crossing.known`; None for all. The
        others count in what is over all records, and have figures of their own.
    """
    by_attribute = marginal(signals, cells, axis)
    everyone = _everyone(by_attribute)
    overall, by_group = (_aucs(s, min_count) for s in (everyone, by_attribute))
    noise = by_attribute.variance or EXACT
    rates = resolved_rates(by_attribute.histograms[0], min_count, noise.histograms)
    compared = metrics.masked(by_group[0], known)
    spread = metrics.Rates(*(metrics.masked(rate, known, axis=-2) for rate in rates))
    return MetricTable(
        **{key: float(value) for key, value in summary(overall[0, 0], compared, spread).items()},
        worst_group=None if np.isnan(compared).all() else int(np.nanargmin(compared)),
        accuracy=_accuracy(everyone),
        log_loss=mean_loss(by_attribute),
        unimodal_auc=tuple(overall[1:, 0].tolist()),
        groups=_group_metrics(by_attribute, by_group, rates),
    )


def mean_loss(signals: Signals) -> float:
    """Return the fused head's mean cross-entropy over all groups, in nats; NaN for not estimable."""
    return float(_mean_losses(_everyone(signals))[0])


def _everyone(signals: Signals) -> Signals:
    """Return the signals of all groups as those of one."""
    return marginal(signals, (1, signals.num_groups), 0)


def _aucs(signals: Signals, min_count: float) -> Array:
    """Return the macro AUCs [H, G]."""
    return resolved_auc(signals.histograms, min_count, (signals.variance or EXACT).histograms)


def _mean_losses(signals: Signals) -> Array:
    """Return the fused head's mean cross-entropies [G]."""
    noise = signals.variance or EXACT
    cells = signals.num_classes * signals.histograms.shape[-1]  # that a number of records adds up
    return resolved_loss(signals.losses[0], signals.counts[0].sum(-1), noise.losses, cells * noise.histograms)


def _group_metrics(signals: Signals, aucs: Array, rates: metrics.Rates) -> tuple[GroupMetrics, ...]:
    noise, losses = signals.variance or EXACT, _mean_losses(signals)
    count_sd = math.sqrt(signals.histograms.shape[-1] * noise.histograms)
    auc_sd = macro_auc_sd(signals.histograms[0], noise.histograms) if count_sd else np.zeros(len(losses))
    return tuple(
        GroupMetrics(
            counts=tuple(signals.counts[0, g].tolist()),
            auc=float(aucs[0, g]),
            log_loss=float(losses[g]),
            selection_rate=float(rates.selection[g].mean()),
            true_positive_rate=float(rates.true_positive[g].mean()),
            false_positive_rate=float(rates.false_positive[g].mean()),
            unimodal_auc=tuple(aucs[1:, g].tolist()),
            count_sd=count_sd,
            auc_sd=float(auc_sd[g]),
        )
        for g in range(signals.num_groups)
    )


def _accuracy(everyone: Signals) -> float:
    """Return the fused head's accuracy at 0.5; NaN for T > 1, without records, or where noise hides it."""
    histogram, noise = everyone.histograms[0, 0], everyone.variance or EXACT
    total = histogram.sum()
    if histogram.shape[0] > 1 or total <= 0:
        return math.nan
    half = histogram.shape[-1] // 2
    right = (histogram[0, 0, :half].sum() + histogram[0, 1, half:].sum()) / total
    return float(resolved_share(right, total, histogram.size * noise.histograms))
