"""Dual-level MIMO: tilted risks over groups (fused loss) and over modality x group (unimodal losses).

Ours. Its weights are the derivatives, by r, of two KL-regularised worst cases,
    mu log sum_g pi_g exp(r_0g / mu)          on the fused loss and
    mu log sum_mg (pi_mg / M) exp(r_mg / mu)  on the unimodal losses,
with r the loss relative to the group's base rate, shrunk towards the mean of all groups; they
multiply the gradients of the losses themselves, so the step is exact for equal base rates. One
group gives MIMO (arXiv 2511.06686); one modality and lambda = 0 give tilted empirical risk
minimisation over groups (TERM, arXiv 2007.01162); mu to 0 the worst (modality, group). With the
group shares as prior the weights are neutral exactly when all groups are served equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients
from fedfair.modulation._base import Memory, Modulation, check_range, mean_losses, shares
from fedfair.signals import Signals

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DualMimo:
    """Coefficients v_g / pi_g on the fused loss, lambda w_mg / pi_mg on unimodal loss m.

    Attributes
    ----------
    penalty : float
        lambda >= 0 of the unimodal losses.
    mu : float
        Temperature of both tilts, in relative loss, positive; to infinity gives equal weights.
    shrinkage : float
        kappa >= 0, in records: a group of kappa records is shrunk half way to the mean.
    coefficient_min, coefficient_max : float
        Clamp of the fused coefficients; 0 < min <= 1 <= max.
    unimodal_max : float
        Cap of w_mg / pi_mg, at least 1 / M in effect.
    """

    penalty: float = 1.0
    mu: float = 0.05
    shrinkage: float = 100.0
    coefficient_min: float = 0.5
    coefficient_max: float = 2.0
    unimodal_max: float = 3.0

    name: ClassVar[str] = "dual_mimo"
    modulates: ClassVar[bool] = True
    live: ClassVar[bool] = True
    needs_head_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("penalty", self.penalty, 0.0)
        check_range("mu", self.mu, 1e-6)
        check_range("shrinkage", self.shrinkage, 0.0)
        check_range("coefficient_min", self.coefficient_min, 1e-3, 1.0)
        check_range("coefficient_max", self.coefficient_max, 1.0)
        check_range("unimodal_max", self.unimodal_max, 1e-3)

    def modulate(self, signals: Signals, memory: Memory) -> Modulation:
        """Return the coefficients; groups without records or with one class only are neutral."""
        del memory
        relative = shrink(relative_losses(signals), signals.counts.sum(-1), self.shrinkage)
        share = shares(signals.counts.sum(-1))
        modalities = signals.num_heads - 1
        scored = int((signals.counts[1:].sum((-1, -2)) > 0).sum()) or modalities
        fused = np.clip(tilt_ratio(relative[:1], share[:1], self.mu)[0], *self._clamp)
        unimodal = np.minimum(
            tilt_ratio(relative[1:], share[1:] / scored, self.mu) / scored, self.unimodal_max
        )
        return Modulation(
            Coefficients(np.repeat(fused[None], modalities + 1, axis=0), self.penalty * unimodal, live=True),
            diagnostics={"relative_loss": relative},
        )

    @property
    def _clamp(self) -> tuple[float, float]:
        return self.coefficient_min, self.coefficient_max


def relative_losses(signals: Signals) -> Array:
    """Return r [H, G] = mean cross-entropy / entropy of the group's pooled labels.

    1 means no better than knowing the base rate, so that a group is not called badly served only
    because its prevalence is near one half. NaN for an empty group or one with a single class.
    """
    prevalence = shares(signals.counts)
    entropy = -np.where(prevalence > 0, prevalence * np.log(np.where(prevalence > 0, prevalence, 1.0)), 0.0)
    base = entropy.sum(-1)
    mean = mean_losses(signals.losses, signals.counts.sum(-1))
    result: Array = np.divide(mean, base, out=np.full_like(mean, np.nan), where=base > 0)
    return result


def shrink(relative: Array, counts: Array, kappa: float) -> Array:
    """Return r [H, G] moved to its share-weighted mean by kappa / (n + kappa); NaN stays NaN."""
    known = np.isfinite(relative)
    share = shares(np.where(known, counts, 0.0))
    mean = (share * np.where(known, relative, 0.0)).sum(-1, keepdims=True)
    trust = np.divide(counts, counts + kappa, out=np.zeros_like(counts), where=counts > 0)
    shrunk: Array = mean + trust * (relative - mean)
    return shrunk


def tilt_ratio(relative: Array, prior: Array, mu: float) -> Array:
    """Return (posterior / prior) * sum(prior), posterior proportional to prior * exp(r / mu).

    All axes are normalised together; equal r gives ones. Entries that are NaN or without prior
    mass take part in nothing and get one.
    """
    part = np.isfinite(relative) & (prior > 0)
    if not part.any():
        return np.ones_like(relative)
    exponent = np.exp(np.where(part, (relative - relative[part].max()) / mu, -np.inf))
    weight = np.where(part, prior, 0.0)
    return np.where(part, exponent * weight.sum() / (weight * exponent).sum(), 1.0)
