"""The arms of a privacy-budget experiment: each leaves out a part of privacy, so each prices a part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedfair.budget import resolve
from fedfair.config import Config, parse
from fedfair.modulation import METHODS, FedAvg
from fedfair.privacy.settings import PrivacyConfig

NEUTRAL = FedAvg.name
REFERENCE = "none"

_EXACT = ["gradients", "statistics"]
_UNCLIPPED = {"max_grad_norm": math.inf, "clipping": "flat"}


@dataclass(frozen=True)
class Arm:
    """One way to run the base configuration.

    Attributes
    ----------
    name, meaning : str
        For folders and tables; `meaning` says what it leaves out.
    calibrated : bool
        Whether it has a run per epsilon; if not, it has no noise at all.
    neutral, modulated : bool
        Whether it runs with federated averaging, and with each method.
    privacy : Mapping[str, Any]
        What differs from the base's privacy section.
    gate : bool | None
        Whether methods are kept from reacting to noise; None as in the base.
    """

    name: str
    meaning: str
    calibrated: bool = True
    neutral: bool = False
    modulated: bool = True
    privacy: Mapping[str, Any] = field(default_factory=dict)
    gate: bool | None = None

    def methods(self, methods: Sequence[str]) -> list[str]:
        """Return with which of the methods, federated averaging included, the arm runs."""
        return [NEUTRAL] * self.neutral + list(methods) * self.modulated


_ALL = (
    Arm(
        REFERENCE,
        "no privacy: nothing is clipped, nothing is noised",
        calibrated=False,
        neutral=True,
        privacy={"exact": _EXACT, **_UNCLIPPED},
    ),
    Arm(
        "clip_only",
        "gradients are clipped, nothing is noised: not private",
        calibrated=False,
        neutral=True,
        privacy={"exact": _EXACT},
    ),
    Arm(
        "noisy_statistics",
        "statistics are noised, gradients are exact and not clipped: not private",
        privacy={"exact": ["gradients"], **_UNCLIPPED},
    ),
    Arm(
        "neutral_flat",
        "federated averaging, one clipping bound for the whole gradient",
        neutral=True,
        modulated=False,
        privacy={"clipping": "flat"},
    ),
    Arm(
        "neutral_block",
        "federated averaging, a clipping bound for each block",
        neutral=True,
        modulated=False,
        privacy={"clipping": "block"},
    ),
    Arm(
        "gated",
        "the method acts on noised statistics, as far as they can be told from noise",
        privacy={"clipping": "block"},
        gate=True,
    ),
    Arm(
        "ungated",
        "the method acts on noised statistics as they are",
        privacy={"clipping": "block"},
        gate=False,
    ),
    Arm(
        "oracle_statistics",
        "gradients as in gated, statistics exact: not private",
        privacy={"clipping": "block", "exact": ["statistics"]},
    ),
)
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ALL}

# (arm, minus this arm, what the difference says)
PAIRS = (
    ("gated", "neutral_block", "what modulation changes, paid from the same budget"),
    ("ungated", "neutral_block", "the same without the gate"),
    ("gated", "oracle_statistics", "what private statistics cost"),
    ("neutral_block", "neutral_flat", "what clipping by block changes"),
    ("clip_only", REFERENCE, "what clipping costs"),
)


@dataclass(frozen=True)
class Setting:
    """One arm with one method at one epsilon (infinite without noise), to be run with every seed."""

    arm: str
    method: str
    epsilon: float
    config: Config

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.arm}-{self.method}-eps{self.epsilon:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads back."""
        plain = {
            "arm": self.arm,
            "method": self.method,
            "epsilon": f"{self.epsilon:g}",
            "folder": self.folder,
        }
        return {**plain, "config": self.config.to_dict()}

    def calibrated(self) -> Setting:
        """Return it with noise multipliers in place of a target.

        They are those of a run in which nothing is exact, so that arms at one epsilon differ in what
        their names say and in nothing else.

        Raises
        ------
        ConfigError
            If no noise reaches the target.
        """
        privacy = self.config.privacy
        if privacy.target_epsilon is None:
            return self
        # The bound scales the noise and has no part in its multiplier.
        whole = dataclasses.replace(privacy, exact=[], max_grad_norm=1.0)
        noise = resolve(dataclasses.replace(self.config, privacy=whole)).privacy
        sigma = noise.statistics.noise_multiplier
        privacy = dataclasses.replace(
            privacy,
            target_epsilon=None,
            noise_multiplier=noise.noise_multiplier,
            statistics=dataclasses.replace(privacy.statistics, noise_multiplier=sigma),
        )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, privacy=privacy))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Setting:
        """Return the setting of plain data."""
        return cls(plain["arm"], plain["method"], float(plain["epsilon"]), parse(plain["config"]))


def settings(
    base: Config, arms: Iterable[str], methods: Sequence[str], epsilons: Sequence[float]
) -> list[Setting]:
    """Return the settings of an experiment, their noise still to be calibrated.

    Parameters
    ----------
    base : Config
        A private configuration.
    arms, methods : Iterable[str], Sequence[str]
        Names; methods that modulate.
    epsilons : Sequence[float]
        Finite ones for the arms with noise, infinity for those without.

    Raises
    ------
    ConfigError
        If an arm does not fit the base.
    """
    return [
        Setting(arm.name, method, epsilon, _configured(base, arm, method, epsilon))
        for arm in map(ARMS.__getitem__, arms)
        for method in arm.methods(methods)
        for epsilon in epsilons
        if math.isfinite(epsilon) == arm.calibrated
    ]


def _configured(base: Config, arm: Arm, method: str, epsilon: float) -> Config:
    chosen = base.method if method == base.method.name else METHODS[method]()
    return dataclasses.replace(base, method=chosen, privacy=_privacy(base.privacy, arm, epsilon))


def _privacy(base: PrivacyConfig, arm: Arm, epsilon: float) -> PrivacyConfig:
    statistics = base.statistics
    if arm.gate is not None:
        statistics = dataclasses.replace(statistics, gate=arm.gate)
    noise: dict[str, Any] = {"target_epsilon": epsilon, "noise_multiplier": None}
    if not arm.calibrated:
        # Multipliers that do not act, so that there is nothing to calibrate.
        noise = {"target_epsilon": None, "noise_multiplier": 1.0}
        statistics = dataclasses.replace(statistics, noise_multiplier=1.0)
    changes = dict(arm.privacy)
    if changes.get("clipping") == "flat" and isinstance(base.max_grad_norm, Mapping):
        # The same sensitivity over all blocks together.
        changes = {"max_grad_norm": math.hypot(*base.max_grad_norm.values()), **changes}
    # Each cell has accounts of its own and the noise of its target, so there is nothing to cap.
    return dataclasses.replace(base, **{**noise, "statistics": statistics, "max_epsilon": None, **changes})
