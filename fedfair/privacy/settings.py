"""The privacy section of a configuration: what is promised, and the public constants it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedfair.errors import ConfigError
from fedfair.privacy.accounting import Event

MODES = ("off", "sample", "site")
CLIPPING = ("block", "flat")
UNITS = ("isotropic", "proportional", "optimal")
EVALUATIONS = ("released", "exact", "none")
ENGINES = ("functional", "opacus")
EXACT = ("gradients", "statistics")

_SAMPLE_ONLY = ("sample_rate", "local_steps", "expected_batch", "max_grad_norm")
_SITE_ONLY = ("clipping_norm",)


@dataclass(frozen=True)
class StatisticsConfig:
    """What is released for modulation, and for evaluation if that is ``released``.

    `every` r: in rounds 1, 1 + r, ...; coefficients rest in between. `bins` per score histogram.
    `noise_multiplier` of one release (null: such that all releases alone would cost `share` of
    `privacy.target_epsilon`). `loss_bound` in nats and `gradient_norm` bound one record's part in
    the loss sums and the last layers' gradients. `memory` in [0, 1) is the weight of earlier
    releases. `gate` false lets methods react to noise.
    """

    every: int = 5
    bins: int = 8
    noise_multiplier: float | None = None
    share: float = 0.2
    loss_bound: float = 3.0
    gradient_norm: float = 1.0
    memory: float = 0.5
    gate: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(self.every >= 1, "statistics.every", "at least 1", self.every)
        _require(self.bins >= 2 and self.bins % 2 == 0, "statistics.bins", "even and at least 2", self.bins)
        _require(0 < self.share < 1, "statistics.share", "in (0, 1)", self.share)
        _require(0 <= self.memory < 1, "statistics.memory", "in [0, 1)", self.memory)
        for name in ("loss_bound", "gradient_norm"):
            _require(getattr(self, name) > 0, f"statistics.{name}", "positive", getattr(self, name))
        if self.noise_multiplier is not None:
            _require(
                self.noise_multiplier > 0, "statistics.noise_multiplier", "positive", self.noise_multiplier
            )


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy: whom it protects, and the public constants of the mechanism.

    `mode` off: none; sample: one patient of one site is protected from everyone else, the server
    included; site: one whole site is protected from those who see the model, not from the server.
    Nothing has a default that a promise rests on: a missing one is refused.
    """

    mode: str = "off"
    target_epsilon: float | None = None
    target_delta: float | None = None
    noise_multiplier: float | None = None
    max_epsilon: float | None = None
    sample_rate: float | None = None
    local_steps: int | None = None
    expected_batch: float | None = None
    max_grad_norm: float | Mapping[str, Any] | None = None
    clipping: str = "block"
    noise_units: str = "optimal"
    clipping_norm: float | None = None
    engine: str = "functional"
    evaluation: str = "released"
    exact: Sequence[str] = field(default_factory=list)
    noise_seed: int | None = None
    dataset: str | None = None
    ledger: str | None = None
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)

    def __post_init__(self) -> None:
        """Check names, ranges, and that all of the mode's constants are given."""
        for name, known in (
            ("mode", MODES),
            ("clipping", CLIPPING),
            ("noise_units", UNITS),
            ("engine", ENGINES),
            ("evaluation", EVALUATIONS),
        ):
            _require(getattr(self, name) in known, name, f"one of {known}", getattr(self, name))
        _require(set(self.exact) <= set(EXACT), "exact", f"a list of {EXACT}", list(self.exact))
        if self.mode == "off":
            return
        _check_ranges(self)
        _check_given(self)

    def is_exact(self, part: str) -> bool:
        """Return whether `part` (``gradients`` or ``statistics``) leaves without noise: not private."""
        return part in self.exact

    @property
    def on(self) -> bool:
        """Whether anything is protected."""
        return self.mode != "off"

    @property
    def not_private(self) -> str | None:
        """Why the figures of this run are no promise, or None."""
        reasons = [f"{part} leave without noise (`privacy.exact`)" for part in self.exact]
        if self.noise_seed is not None:
            reasons.append("the noise can be drawn again from `privacy.noise_seed`")
        return "; ".join(reasons) or None


def training_event(privacy: PrivacyConfig) -> Event:
    """Return one round's training of one site."""
    sigma = 0.0 if privacy.is_exact("gradients") else float(privacy.noise_multiplier or 0.0)
    if privacy.mode == "site":
        return Event(sigma, 1.0, 1)
    return Event(sigma, float(privacy.sample_rate or 0.0), int(privacy.local_steps or 0))


def statistics_event(privacy: PrivacyConfig) -> Event:
    """Return one release of statistics."""
    exact = privacy.is_exact("statistics")
    return Event(0.0 if exact else float(privacy.statistics.noise_multiplier or 0.0), 1.0, 1)


def _check_given(config: PrivacyConfig) -> None:
    sample = config.mode == "sample"
    needed = ["target_delta", *(_SAMPLE_ONLY if sample else _SITE_ONLY)]
    for name in needed:
        _require(
            getattr(config, name) is not None,
            name,
            f"given in mode {config.mode}: it is a public constant",
            None,
        )
    for name in _SITE_ONLY if sample else _SAMPLE_ONLY:
        if (value := getattr(config, name)) is not None:
            raise ConfigError(
                f"`privacy.{name}` does not act in mode {config.mode}, got {value!r}; remove it"
            )
    both = (config.target_epsilon, config.noise_multiplier)
    if all(x is None for x in both) or all(x is not None for x in both):
        raise ConfigError(
            "one of `privacy.target_epsilon` and `privacy.noise_multiplier` must be given, the other is "
            f"derived from it; got {both[0]!r} and {both[1]!r}"
        )
    if not sample and config.evaluation == "released":
        raise ConfigError(
            "`privacy.evaluation` must be exact or none in mode site, got 'released'; test figures are not "
            "part of what that mode protects"
        )


def _check_ranges(config: PrivacyConfig) -> None:
    positive = (
        "target_epsilon",
        "noise_multiplier",
        "max_epsilon",
        "expected_batch",
        "clipping_norm",
        "local_steps",
    )
    for name in positive:
        if (value := getattr(config, name)) is not None:
            _require(value > 0, name, "positive", value)
    if config.target_delta is not None:
        # Above, a mechanism that publishes one record in a hundred would keep the promise.
        _require(0 < config.target_delta <= 0.01, "target_delta", "in (0, 0.01]", config.target_delta)
    if config.sample_rate is not None:
        _require(0 < config.sample_rate <= 1, "sample_rate", "in (0, 1]", config.sample_rate)
    if isinstance(config.max_grad_norm, Mapping):
        for block, value in config.max_grad_norm.items():
            good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
            _require(good, f"max_grad_norm.{block}", "positive", value)
        _require(
            config.clipping == "block", "clipping", "block if max_grad_norm is by block", config.clipping
        )
    elif config.max_grad_norm is not None:
        # Only gradients that leave without noise may be unbounded.
        finite = math.isfinite(config.max_grad_norm) or config.is_exact("gradients")
        _require(
            config.max_grad_norm > 0 and finite, "max_grad_norm", "positive and finite", config.max_grad_norm
        )


def _require(condition: bool, key: str, wanted: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"`privacy.{key}` must be {wanted}, got {value!r}")
