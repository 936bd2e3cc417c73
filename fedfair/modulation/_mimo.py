"""MIMO: minimise the fused loss while the worst unimodal loss has priority.

arXiv 2511.06686, the smoothed penalty form: Phi = f_0 + lambda mu log sum_m exp(f_m / mu), whose
gradient is grad f_0 + lambda sum_m w_m grad f_m with w = softmax(f / mu). Federated: the weights
come from the pooled losses; a mean of the sites' own softmaxes would be another objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients
from fedfair.modulation._base import Memory, Modulation, check_range, mean_losses
from fedfair.signals import Signals

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mimo:
    """Coefficients: one for the fused loss, lambda w_m for unimodal loss m, alike in all groups.

    Attributes
    ----------
    penalty : float
        lambda >= 0. Zero gives federated averaging of the fused model.
    mu : float
        Smoothing of the maximum, in nats, positive. Large gives equal weights lambda / M,
        small puts all weight on the worst modality.
    """

    penalty: float = 1.0
    mu: float = 0.1

    name: ClassVar[str] = "mimo"
    modulates: ClassVar[bool] = True
    live: ClassVar[bool] = True
    needs_head_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("penalty", self.penalty, 0.0)
        check_range("mu", self.mu, 1e-6)

    def modulate(self, signals: Signals, memory: Memory) -> Modulation:
        """Return the coefficients; a modality that no record has gets weight zero.

        Without any signal (before the first round) all modalities weigh the same.
        """
        del memory
        losses = mean_losses(signals.losses[1:].sum(-1), signals.counts[1:].sum((-1, -2)))
        weights = softmax_present(losses / self.mu)
        groups = signals.num_groups
        return Modulation(
            Coefficients(
                np.ones((len(losses) + 1, groups)),
                np.repeat(self.penalty * weights[:, None], groups, axis=1),
                live=True,
            ),
            diagnostics={"unimodal_loss": losses, "weights": weights},
        )


def softmax_present(values: Array) -> Array:
    """Return the softmax over the finite entries of [M]; the others get zero, or all 1 / M."""
    present = np.isfinite(values)
    if not present.any():
        return np.full_like(values, 1.0 / len(values))
    exponent = np.exp(np.where(present, values - values[present].max(), -np.inf))
    result: Array = exponent / exponent.sum()
    return result
