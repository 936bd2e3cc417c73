"""MultiFair: a factor per modality from learning progress, a factor per (modality, group) from AUC.

arXiv 2510.07328, whose modality level is CGGM (arXiv 2411.01409, eq. 1-4); federated over pooled
histograms. docs/methods/multifair.md lists what differs from the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.errors import ConfigError
from fedfair.metrics import auc_noise_sd, auc_standard_error, macro_auc
from fedfair.modulation._base import Memory, Modulation, check_range, shares
from fedfair.modulation._direction import direction_matrix
from fedfair.modulation._fairness import gap_slopes, surrogate_auc
from fedfair.signals import Signals

Array = NDArray[np.float64]
PROGRESS = ("positive", "absolute", "signed")
FORMS = ("per_group", "scalar")


@dataclass(frozen=True)
class MultiFair:
    """Encoder coefficient B_m f_mg, everything else one.

    B_m = rho (sum_k r_k - r_m) / sum_k r_k with r the progress of head m's AUC since last round;
    f_mg = 1 + gamma (mean_g A_mg - A_mg) / tau. A factor moves from one only if its evidence
    exceeds `gate` standard errors. gamma = direction = fairness = 0 with equal progress and the
    default rho gives federated averaging.

    Attributes
    ----------
    rho : float
        Scale of B; 0 means M / (M - 1), for which equal progress gives B = 1.
    progress : str
        ``positive`` part of the change (default), ``absolute`` (as released) or ``signed`` (CGGM).
    gamma, tau : float
        Strength >= 0 and reference gap > 0 of the group factor.
    form : str
        ``per_group`` uses f_mg; ``scalar`` uses sum_g pi_g f_mg for all groups (as in the paper).
    gate : float
        z >= 0: standard errors a change or a gap must exceed. Zero turns the gate off.
    direction, fairness : float
        Weights lambda and beta >= 0 of the direction term and of F_G; zero leaves the term out.
    direction_max : float
        Largest norm of lambda V. V grows as 1 / ||G|| near a stationary point, where the term would
        drown the loss; to the features it acts like a change V of the last layer's weights (ours).
    one_sided : bool
        F_G pushes only groups below the mean (ours) or, if false, both sides (paper).
    temperature : float
        T > 0 of F_G's surrogate AUC, in logits.
    decay : float
        Decay in [0, 1) of the moving averages over rounds.
    group_min : int
        Records of each class below which a group's AUC is not estimated.
    warmup : int
        Rounds with neutral coefficients and without terms.
    balance_min, balance_max, group_factor_min, group_factor_max : float
        Clamps of B and f.
    """

    rho: float = 0.0
    progress: str = "positive"
    gamma: float = 0.5
    tau: float = 0.05
    form: str = "per_group"
    gate: float = 2.0
    direction: float = 0.1
    fairness: float = 0.3
    direction_max: float = 0.2
    one_sided: bool = True
    temperature: float = 1.0
    decay: float = 0.9
    group_min: int = 10
    warmup: int = 1
    balance_min: float = 0.5
    balance_max: float = 2.0
    group_factor_min: float = 0.5
    group_factor_max: float = 2.0

    name: ClassVar[str] = "multifair"
    modulates: ClassVar[bool] = True
    live: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.progress not in PROGRESS or self.form not in FORMS:
            raise ConfigError(
                f"`method.progress` must be one of {PROGRESS} and `method.form` one of {FORMS}, "
                f"got {self.progress!r} and {self.form!r}"
            )
        for name in ("rho", "gamma", "gate", "direction", "direction_max", "fairness"):
            check_range(name, getattr(self, name), 0.0)
        for name in ("tau", "temperature"):
            check_range(name, getattr(self, name), 1e-6)
        check_range("decay", self.decay, 0.0, 1.0 - 1e-9)
        for name in ("balance", "group_factor"):
            check_range(f"{name}_min", getattr(self, f"{name}_min"), 1e-3, 1.0)
            check_range(f"{name}_max", getattr(self, f"{name}_max"), 1.0)

    @property
    def needs_head_gradients(self) -> bool:
        """The direction term compares the last layers' gradients."""
        return self.direction > 0

    def modulate(self, signals: Signals, memory: Memory) -> Modulation:
        """Return B_m f_mg for the encoders, and the loss terms of the next training."""
        unimodal = signals.histograms[1:]
        by_head = unimodal.sum(1)
        auc, group_auc = macro_auc(by_head), macro_auc(unimodal, self.group_min)
        state = {
            "rounds": memory.get("rounds", np.zeros(1)) + 1,
            "auc": self._average(memory.get("auc"), auc),
            "group_auc": self._average(memory.get("group_auc"), group_auc),
        }
        # Only a head that is scored in both rounds has progressed; NaN otherwise.
        change = np.where(np.isfinite(auc), state["auc"] - memory.get("auc", np.nan), np.nan)
        noise = 0.0 if signals.variance is None else signals.variance.histograms
        balance = self._balance(change, _error(by_head, noise * signals.num_groups))
        error = _error(unimodal, noise)
        group = self._group_factors(state["group_auc"], error, signals.counts[1:].sum(-1))
        diagnostics = {**state, "balance": balance, "group_factors": group}
        neutral = Coefficients.neutral(len(balance), signals.num_groups)
        if state["rounds"][0] <= self.warmup:
            return Modulation(neutral, memory=state, diagnostics=diagnostics)
        terms, cosines = self._terms(signals, balance, np.isfinite(group_auc))
        fused = np.concatenate([neutral.fused[:1], balance[:, None] * group])
        return Modulation(
            Coefficients(fused, neutral.unimodal),
            terms,
            state,
            {**diagnostics, "cosines": cosines},
        )

    def _average(self, before: Array | None, now: Array) -> Array:
        # An undefined entry keeps its last value: an average with a stand-in would invent evidence.
        if before is None:
            return now
        blended = self.decay * before + (1 - self.decay) * now
        return np.where(np.isnan(now), before, np.where(np.isnan(before), now, blended))

    def _balance(self, change: Array, error: Array) -> Array:
        known = np.isfinite(change)
        count = int(known.sum())
        if count < 2:
            return np.ones_like(change)
        change = np.where(known, change, 0.0)
        progress = {"positive": np.maximum(change, 0.0), "absolute": np.abs(change), "signed": change}
        rate = progress[self.progress]
        total = rate.sum()
        # The averaged change has a share (1 - decay) of the noise of two independent AUCs.
        noise = (1 - self.decay) * np.sqrt(2.0 * (error[known] ** 2).sum())
        evident = abs(total) > (self.gate * noise if self.gate else 0.0)
        rho = self.rho or count / (count - 1)
        share = (total - rate) / total if evident else (count - 1) / count
        return np.clip(np.where(known, rho * share, 1.0), self.balance_min, self.balance_max)

    def _group_factors(self, auc: Array, error: Array, counts: Array) -> Array:
        known = np.isfinite(auc)
        mean = np.where(known, auc, 0.0).sum(-1, keepdims=True) / np.maximum(known.sum(-1, keepdims=True), 1)
        gap = np.where(known, mean - auc, 0.0)
        noise = np.where(np.isfinite(error), self.gate * error, np.inf if self.gate else 0.0)
        seen = np.abs(gap) > noise
        factors = np.clip(
            1.0 + self.gamma * np.where(seen, gap, 0.0) / self.tau,
            self.group_factor_min,
            self.group_factor_max,
        )
        if self.form == "per_group":
            return factors
        mixed = (shares(counts) * factors).sum(-1, keepdims=True)
        return np.repeat(np.where(counts.sum(-1, keepdims=True) > 0, mixed, 1.0), auc.shape[1], axis=1)

    def _terms(
        self, signals: Signals, balance: Array, estimable: NDArray[np.bool_]
    ) -> tuple[LossTerms, Array]:
        direction, cosines = None, np.full(len(balance), np.nan)
        if signals.head_gradients is not None and self.direction > 0:
            matrix, cosines = direction_matrix(signals.head_gradients, signals.counts.sum((-1, -2)), balance)
            norm = self.direction * float(np.linalg.norm(matrix))
            direction = self.direction * matrix * min(1.0, self.direction_max / max(norm, 1e-300))
        fairness = None
        if self.fairness > 0:
            surrogate = surrogate_auc(signals.histograms[1:], self.temperature).mean(-1)
            slopes = self.fairness * gap_slopes(np.where(estimable, surrogate, np.nan), self.one_sided)
            fairness = FairnessTerm(slopes, signals.histograms[1:], self.temperature)
        return LossTerms(direction, fairness), cosines


def _error(histograms: Array, variance: float) -> Array:
    """Return the standard error of the macro AUC [...]; the mean over classes is an upper bound.

    `variance` is that of the noise in each cell, which counts like the sampling error.
    """
    error: Array = np.hypot(auc_standard_error(histograms), auc_noise_sd(histograms, variance)).mean(-1)
    return error
