"""Assessment: what the report says about one model, from signals whose groups are product cells.

Signals collected for assessment keep every attribute: their group axis G is the product of the
attributes' groups in C order (``np.ravel_multi_index``), `cells` being the number of groups of each
attribute. Summing over the other attributes gives the signals by one attribute, exactly.
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
from fedfair.signals import Signals

Array = NDArray[np.float64]


def marginal(signals: Signals, cells: tuple[int, ...], axis: int) -> Signals:
    """Return the signals by the attribute at `axis`, summed over all other attributes.

    Parameters
    ----------
    signals : Signals
        With G = the product of `cells`.
    cells : tuple[int, ...]
        Number of groups of each attribute.
    axis : int
        Which attribute to keep, in ``0 .. len(cells) - 1``.

    Raises
    ------
    ShapeError
        If G is not the product of `cells` or there is no such axis.
    """
    if math.prod(cells) != signals.num_groups or not 0 <= axis < len(cells):
        raise ShapeError(
            f"`cells` must multiply to {signals.num_groups} groups and have an axis {axis}, got {cells}"
        )
    others = tuple(1 + i for i in range(len(cells)) if i != axis)

    def keep(array: Array) -> Array:
        return np.asarray(array.reshape(array.shape[0], *cells, *array.shape[2:]).sum(others))

    return Signals(
        keep(signals.counts), keep(signals.losses), keep(signals.histograms), signals.head_gradients
    )


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
    """

    counts: tuple[float, ...]
    auc: float
    log_loss: float
    selection_rate: float
    true_positive_rate: float
    false_positive_rate: float
    unimodal_auc: tuple[float, ...]


@dataclass(frozen=True)
class MetricTable:
    """What is reported of a model by one attribute; NaN for not estimable.

    Attributes
    ----------
    auc, es_auc, dpd, deodds, worst_group_auc : float
        As in `summary`, of the fused head.
    worst_group : int | None
        Index of the group with the lowest AUC.
    accuracy : float
        At threshold 0.5; NaN for more than two classes, which need more than histograms.
    log_loss : float
        Mean cross-entropy in nats.
    unimodal_auc : tuple[float, ...]
        Macro AUC of each modality's head, over the records that have the modality.
    groups : tuple[GroupMetrics, ...]
        One per group, counts included.
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
        by_group = ("auc", "log_loss", "selection_rate", "true_positive_rate", "false_positive_rate")
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


def assess(signals: Signals, cells: tuple[int, ...], axis: int, min_count: float = 1) -> MetricTable:
    """Return the metrics of a model by one attribute.

    Parameters
    ----------
    signals : Signals
        Of all sites together, by product cell.
    cells, axis
        As in `marginal`.
    min_count : float
        Records of a class (AUC) or in a denominator (rates) below which a value is NaN.
    """
    by_attribute = marginal(signals, cells, axis)
    histograms = by_attribute.histograms
    overall = metrics.macro_auc(histograms.sum(1), min_count)
    by_group = metrics.macro_auc(histograms, min_count)
    rates = metrics.rates(histograms[0], min_count)
    return MetricTable(
        **{key: float(value) for key, value in summary(overall[0], by_group[0], rates).items()},
        worst_group=None if np.isnan(by_group[0]).all() else int(np.nanargmin(by_group[0])),
        accuracy=_accuracy(histograms[0].sum(0)),
        log_loss=_mean_loss(by_attribute.losses[0].sum(), by_attribute.counts[0].sum()),
        unimodal_auc=tuple(overall[1:].tolist()),
        groups=tuple(
            GroupMetrics(
                counts=tuple(by_attribute.counts[0, g].tolist()),
                auc=float(by_group[0, g]),
                log_loss=_mean_loss(by_attribute.losses[0, g], by_attribute.counts[0, g].sum()),
                selection_rate=float(rates.selection[g].mean()),
                true_positive_rate=float(rates.true_positive[g].mean()),
                false_positive_rate=float(rates.false_positive[g].mean()),
                unimodal_auc=tuple(by_group[1:, g].tolist()),
            )
            for g in range(by_attribute.num_groups)
        ),
    )


def _mean_loss(total: float, count: float) -> float:
    return float(total / count) if count > 0 else math.nan


def _accuracy(histogram: Array) -> float:
    """Return the accuracy at 0.5 of [T, 2, Q]; NaN if T > 1 or there is no record."""
    total = histogram.sum()
    if histogram.shape[0] > 1 or total <= 0:
        return math.nan
    half = histogram.shape[-1] // 2
    return float((histogram[0, 0, :half].sum() + histogram[0, 1, half:].sum()) / total)
