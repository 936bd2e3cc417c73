"""Signals: what modulation and evaluation need from a site, as sums over its records.

Every array here is a sum over records, so signals of two sites add up to the signals of the
two sites' records together: merging is associative and commutative, and merged equals pooled.
Axes: H = M + 1 heads (0 is the fused head, m >= 1 the unimodal head of modality m), G groups,
C classes, T = 1 score per record for C = 2 and C one-versus-rest scores otherwise, Q bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfair.errors import InconsistentUpdates, ShapeError

Array = NDArray[np.float64]


class Variance(NamedTuple):
    """Known variance of the noise in each cell of released signals; it adds up over sites.

    Attributes
    ----------
    histograms, losses, head_gradients : float
        Per cell of the array of that name; `counts` are sums of cells of the histograms.
    """

    histograms: float
    losses: float
    head_gradients: float = 0.0


def signal_shapes(
    heads: int, groups: int, classes: int, bins: int, width: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of signals; `width` is P + 1 if head gradients are among them."""
    shapes: dict[str, tuple[int, ...]] = {
        "counts": (heads, groups, classes),
        "losses": (heads, groups),
        "histograms": (heads, groups, 1 if classes == 2 else classes, 2, bins),
    }
    return shapes if width is None else {**shapes, "head_gradients": (heads, classes, width)}


@dataclass(frozen=True)
class Signals:
    """Sums over records, by head and group.

    Attributes
    ----------
    counts : Array
        [H, G, C] records that head h scored, by group and label. A record counts for a
        unimodal head only if it has the modality.
    losses : Array
        [H, G] sums of cross-entropy in nats.
    histograms : Array
        [H, G, T, 2, Q] counts of scores in Q equal bins of [0, 1]; index 1 on the fourth axis
        holds the records of the class (class 1 when T = 1), index 0 all others.
    head_gradients : Array | None
        [H, C, P + 1] sums of the gradient of the loss with respect to head h's last linear layer
        (weights, then bias); only methods with a direction term ask for it.
    variance : Variance | None
        Of the noise that a private release added; None for exact sums.
    """

    counts: Array
    losses: Array
    histograms: Array
    head_gradients: Array | None = None
    variance: Variance | None = None

    @property
    def num_heads(self) -> int:
        """H = M + 1."""
        return int(self.counts.shape[0])

    @property
    def num_groups(self) -> int:
        """Number of groups G."""
        return int(self.counts.shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return int(self.counts.shape[2])

    def __add__(self, other: Signals) -> Signals:
        """Return the signals of both record sets together.

        Raises
        ------
        InconsistentUpdates
            If the shapes differ, or only one side has head gradients or noise.
        """
        own, others = self._arrays(), other._arrays()
        if own.keys() != others.keys():
            raise InconsistentUpdates("`head_gradients` must come from every site or from none")
        for name, value in own.items():
            if value.shape != others[name].shape:
                raise InconsistentUpdates(
                    f"`{name}` must have one shape at every site, got {value.shape} and {others[name].shape}"
                )
        return Signals(
            **{name: value + others[name] for name, value in own.items()},
            variance=self._joined_variance(other),
        )

    def blend(self, newer: Signals, memory: float) -> Signals:
        """Return ``memory * self + (1 - memory) * newer``, both released, with its noise variance.

        Sums are blended, never ratios of sums: their noise averages out, that of a ratio does not.
        """
        old, new = self._arrays(), newer._arrays()
        variance = None
        if self.variance is not None and newer.variance is not None:
            pairs = zip(self.variance, newer.variance, strict=True)
            variance = Variance(*(memory**2 * a + (1 - memory) ** 2 * b for a, b in pairs))
        return Signals(
            **{name: memory * old[name] + (1 - memory) * value for name, value in new.items()},
            variance=variance,
        )

    def _joined_variance(self, other: Signals) -> Variance | None:
        if self.variance is None and other.variance is None:
            return None
        if self.variance is None or other.variance is None:
            raise InconsistentUpdates("released signals must come from every site or from none")
        return Variance(*(a + b for a, b in zip(self.variance, other.variance, strict=True)))

    def _arrays(self) -> dict[str, Array]:
        arrays = {"counts": self.counts, "histograms": self.histograms, "losses": self.losses}
        if self.head_gradients is not None:
            arrays["head_gradients"] = self.head_gradients
        return arrays

    def check(self, owner: str) -> None:
        """Refuse signals that cannot be sums over records.

        Parameters
        ----------
        owner : str
            Whose signals these are, for the message.

        Raises
        ------
        InconsistentUpdates
            If the shapes do not fit together, an entry is not finite, a variance is negative, or exact
            signals have a negative count or a histogram that does not sum to its count.
        """
        self._check_shapes(owner)
        for name, value in self._arrays().items():
            if not np.isfinite(value).all():
                raise InconsistentUpdates(f"`{name}` of {owner} must be finite, got NaN or infinity")
        if self.variance is not None:
            if not all(0 <= value < np.inf for value in self.variance):
                raise InconsistentUpdates(
                    f"`variance` of {owner} must be finite and not negative, got {tuple(self.variance)}"
                )
            # Noised cells may be negative, and counts are derived from them.
            return
        if (self.counts < 0).any() or (self.histograms < 0).any():
            raise InconsistentUpdates(f"`counts` of {owner} must not be negative")
        members = self.histograms[:, :, :, 1].sum(-1)
        expected = self.counts[:, :, 1:] if self.histograms.shape[2] == 1 else self.counts
        totals = self.histograms.sum((-1, -2))
        records = np.repeat(self.counts.sum(-1)[..., None], totals.shape[-1], axis=-1)
        if not (np.array_equal(members, expected) and np.array_equal(totals, records)):
            raise InconsistentUpdates(f"`histograms` of {owner} must sum to `counts`, they do not")

    def _check_shapes(self, owner: str) -> None:
        axes = self.counts.ndim, self.histograms.ndim
        if axes != (3, 5):
            raise InconsistentUpdates(
                f"`counts` and `histograms` of {owner} must have 3 and 5 axes, got {axes[0]} and {axes[1]}"
            )
        gradients = self.head_gradients
        width = None if gradients is None else gradients.shape[-1] if gradients.ndim == 3 else -1
        wanted = signal_shapes(
            self.num_heads, self.num_groups, self.num_classes, self.histograms.shape[-1], width
        )
        for name, value in self._arrays().items():
            if value.shape != wanted[name]:
                raise InconsistentUpdates(
                    f"`{name}` of {owner} must be {wanted[name]} beside the other arrays, got {value.shape}"
                )


def score_bins(probabilities: Tensor, bins: int) -> Tensor:
    """Return the bin index in ``0 .. bins-1`` of each score in [0, 1] (1 falls in the last bin)."""
    return (probabilities * bins).long().clamp_(0, bins - 1)


def bin_logits(bins: int) -> Array:
    """Return the logit of each bin's centre, [Q]."""
    centre = (np.arange(bins) + 0.5) / bins
    result: Array = np.log(centre / (1.0 - centre))
    return result


@torch.no_grad()
def head_signals(
    logits: Tensor,
    labels: Tensor,
    groups: Tensor,
    num_groups: int,
    bins: int,
    loss_bound: float | None = None,
) -> tuple[Array, Array, Array]:
    """Return (counts [G, C], losses [G], histograms [G, T, 2, Q]) of one head's records.

    Parameters
    ----------
    logits : Tensor
        [n, C], of records the head scored.
    labels, groups : Tensor
        Int64 [n].
    num_groups, bins : int
        G and Q.
    loss_bound : float | None
        Largest loss of one record, if any. A record with a logit that is not finite then has
        probability zero of every class: it is counted in the first bins, and its loss is the bound.

    Raises
    ------
    ShapeError
        If `logits` is not [n, C].
    """
    if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
        raise ShapeError(f"`logits` must be [{labels.shape[0]}, C], got {tuple(logits.shape)}")
    classes = logits.shape[1]
    scored = (1,) if classes == 2 else tuple(range(classes))
    log_p = torch.log_softmax(logits.double(), dim=1)
    if loss_bound is not None:
        log_p = torch.where(torch.isfinite(logits).all(1, keepdim=True), log_p, -torch.inf)
    own = -log_p.gather(1, labels[:, None])[:, 0]
    counts = torch.bincount(groups * classes + labels, minlength=num_groups * classes)
    losses = torch.zeros(num_groups, dtype=torch.float64, device=logits.device)
    losses.index_add_(0, groups, own if loss_bound is None else own.clamp(0.0, loss_bound))
    histograms = [
        torch.bincount(
            (groups * 2 + (labels == c)) * bins + score_bins(log_p[:, c].exp(), bins),
            minlength=num_groups * 2 * bins,
        ).reshape(num_groups, 2, bins)
        for c in scored
    ]
    return (
        counts.reshape(num_groups, classes).double().cpu().numpy(),
        losses.cpu().numpy(),
        torch.stack(histograms, dim=1).double().cpu().numpy(),
    )
