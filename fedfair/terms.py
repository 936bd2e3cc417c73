"""The extra loss terms, evaluated on a site's own records; sums over records, so sites add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.coefficients import FairnessTerm, LossTerms
from fedfair.errors import ShapeError
from fedfair.models import Scores


def direction_loss(scores: Scores, labels: Tensor, matrix: Tensor) -> Tensor:
    """Return sum_i (p_i - e_y)^T V [q_i; 1].

    Parameters
    ----------
    scores : Scores
        Fused logits [B, C] and features [B, P].
    labels : Tensor
        Int64 [B].
    matrix : Tensor
        V [C, P + 1].

    Raises
    ------
    ShapeError
        If V does not fit the last layer.
    """
    classes, width = scores.logits.shape[1], scores.features.shape[1]
    if matrix.shape != (classes, width + 1):
        raise ShapeError(f"`direction` must be [{classes}, {width + 1}], got {tuple(matrix.shape)}")
    # A row of the identity rather than `one_hot`, which looks at the labels and so cannot be mapped by vmap.
    residual = torch.softmax(scores.logits, 1) - torch.eye(classes).to(scores.logits)[labels]
    return (residual * (scores.features @ matrix[:, :-1].T + matrix[:, -1])).sum()


@dataclass(frozen=True)
class PairWeights:
    """dF_G/du per record, tabulated against the pooled histograms of the other class.

    Attributes
    ----------
    slopes : Tensor
        [M, G, T, 2] N_m slope_mg / (T n+ n-) with its sign by class; zero where not estimable.
    opposite : Tensor
        [M, G, T, 2, Q] pooled histogram of the other class.
    logits : Tensor
        [Q] logit of each bin.
    temperature : float
        T of the surrogate.
    """

    slopes: Tensor
    opposite: Tensor
    logits: Tensor
    temperature: float

    @classmethod
    def build(cls, term: FairnessTerm, bin_logits: Tensor) -> PairWeights:
        """Prepare the tables on the device and in the dtype of `bin_logits`.

        The factor N_m, the records that have modality m, cancels the mean that aggregation takes
        over them: the pooled result is the gradient of F_G itself.
        """
        histograms = torch.as_tensor(term.histograms, dtype=torch.float64)
        counts = histograms.sum(-1)
        pairs = counts.prod(-1, keepdim=True)
        records = counts[:, :, :1].sum((1, 2, 3))[:, None, None, None]
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        slopes = torch.as_tensor(term.slopes)[:, :, None, None] * sign * records / histograms.shape[2]
        # Noise can make both totals negative, and their product positive.
        slopes = torch.where((counts > 0).all(-1, keepdim=True), slopes / pairs.clamp_min(1.0), 0.0)
        return cls(slopes.to(bin_logits), histograms.flip(3).to(bin_logits), bin_logits, term.temperature)

    def loss(self, m: int, logits: Tensor, batch: MultimodalBatch) -> Tensor:
        """Return sum_i weight_i u_i for the records that have modality m, weights held constant."""
        log_p = torch.log_softmax(logits, 1)
        scored = [1] if self.slopes.shape[2] == 1 else range(logits.shape[1])
        total = logits.new_zeros(())
        for t, c in enumerate(scored):
            others = torch.cat([log_p[:, :c], log_p[:, c + 1 :]], 1)
            margin = log_p[:, c] - torch.logsumexp(others, 1)
            member = (batch.labels == c).long()
            gate = torch.sigmoid((margin.detach()[:, None] - self.logits) / self.temperature)
            slope = (gate * (1 - gate) * self.opposite[m, batch.groups, t, member]).sum(1) / self.temperature
            weight = slope * self.slopes[m, batch.groups, t, member] * batch.present[:, m]
            total = total + (weight * margin).sum()
        return total


@dataclass(frozen=True)
class PreparedTerms:
    """Loss terms as tensors, ready for every batch of one site's training."""

    direction: Tensor | None
    fairness: PairWeights | None

    @classmethod
    def build(cls, terms: LossTerms, bin_logits: Tensor) -> PreparedTerms:
        """Move the terms to the device and dtype of `bin_logits` [Q]."""
        direction = None
        if terms.direction is not None:
            direction = torch.as_tensor(terms.direction).to(bin_logits)
        fairness = None if terms.fairness is None else PairWeights.build(terms.fairness, bin_logits)
        return cls(direction, fairness)

    def loss(self, fused: Scores, unimodal: Sequence[Scores], batch: MultimodalBatch) -> Tensor:
        """Return the sum of all terms over the batch's records."""
        total = fused.logits.new_zeros(())
        if self.direction is not None:
            total = total + direction_loss(fused, batch.labels, self.direction)
        if self.fairness is not None:
            for m, scores in enumerate(unimodal):
                total = total + self.fairness.loss(m, scores.logits, batch)
        return total
