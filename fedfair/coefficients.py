"""Coefficients: the multipliers a method chooses, and the extra loss terms it asks sites to add.

Axes: M modalities, G groups, C classes, T scored classes, Q bins, P features of the last layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import ShapeError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coefficients:
    """The coefficient matrix K[block, group], by the loss whose gradient it multiplies.

    Attributes
    ----------
    fused : Array
        [M + 1, G], positive: multiplies the gradient of the fused loss; row 0 in the fusion
        block, row m in the encoder of modality m.
    unimodal : Array
        [M, G], not negative: multiplies the gradient of unimodal loss m in head m and, if `live`,
        in encoder m.
    live : bool
        Whether unimodal losses reach the encoders. If not, heads are probes: they measure a
        modality and change nothing else.
    """

    fused: Array
    unimodal: Array
    live: bool = False

    def __post_init__(self) -> None:
        """Refuse values that would reverse, stop or poison a gradient."""
        if self.fused.ndim != 2 or self.unimodal.shape != (self.fused.shape[0] - 1, self.fused.shape[1]):
            raise ShapeError(
                "`fused` and `unimodal` must be [M + 1, G] and [M, G], got "
                f"{self.fused.shape} and {self.unimodal.shape}"
            )
        if not (np.isfinite(self.fused).all() and (self.fused > 0).all()):
            raise ShapeError(f"`fused` must be positive and finite, got {self.fused.tolist()}")
        if not (np.isfinite(self.unimodal).all() and (self.unimodal >= 0).all()):
            raise ShapeError(f"`unimodal` must be finite and not negative, got {self.unimodal.tolist()}")

    @classmethod
    def neutral(cls, num_modalities: int, num_groups: int, live: bool = False) -> Coefficients:
        """Return all ones: federated averaging, with heads as probes unless `live`."""
        return cls(np.ones((num_modalities + 1, num_groups)), np.ones((num_modalities, num_groups)), live)

    def near(self, others: Coefficients, ratio: float) -> Coefficients:
        """Return these coefficients, each at most `ratio` times the other's and at least a `ratio`-th of it.

        Parameters
        ----------
        others : Coefficients
            Of the same shape. Where one is zero, the result is.
        ratio : float
            At least 1, which gives `others`.
        """
        return Coefficients(
            np.clip(self.fused, others.fused / ratio, others.fused * ratio),
            np.clip(self.unimodal, others.unimodal / ratio, others.unimodal * ratio),
            self.live,
        )


@dataclass(frozen=True)
class FairnessTerm:
    """The linearised group-fairness loss F_G (methods: MultiFair).

    Attributes
    ----------
    slopes : Array
        [M, G] derivative of F_G by the surrogate AUC of head m on group g.
    histograms : Array
        [M, G, T, 2, Q] pooled score histograms that stand for the other side of each pair.
    temperature : float
        T of the pair surrogate sigmoid((u_i - u_j) / T), in logits; positive.
    """

    slopes: Array
    histograms: Array
    temperature: float


@dataclass(frozen=True)
class LossTerms:
    """Loss terms that sites add per record; each is linear in sums, so sites add up exactly.

    Attributes
    ----------
    direction : Array | None
        V [C, P + 1]: adds (p_i - e_y)^T V [q_i; 1] to record i's loss.
    fairness : FairnessTerm | None
        Adds the linearised F_G.
    """

    direction: Array | None = None
    fairness: FairnessTerm | None = None

    def __bool__(self) -> bool:
        """Return whether there is any term."""
        return self.direction is not None or self.fairness is not None
