"""What a method is: parameters, what it needs from sites, and one pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients, LossTerms
from fedfair.errors import ConfigError
from fedfair.signals import Signals

Array = NDArray[np.float64]
Memory = Mapping[str, Array]


@dataclass(frozen=True)
class Modulation:
    """A method's answer to one round's pooled signals.

    Attributes
    ----------
    coefficients : Coefficients
        The matrix K.
    terms : LossTerms
        Loss terms for the sites' next training.
    memory : Memory
        What the method wants back in the next round; arrays only, so that a checkpoint holds it.
    diagnostics : Mapping[str, Array]
        What produced the coefficients (scores, factors, gates), for the round record.
    """

    coefficients: Coefficients
    terms: LossTerms = LossTerms()
    memory: Memory = field(default_factory=dict)
    diagnostics: Mapping[str, Array] = field(default_factory=dict)


class Method(Protocol):
    """A frozen dataclass of parameters with one pure function of pooled sums."""

    name: ClassVar[str]

    @property
    def modulates(self) -> bool:
        """Whether coefficients can differ from neutral (if not, no group rows are needed)."""

    @property
    def live(self) -> bool:
        """Whether unimodal losses reach the encoders."""

    @property
    def needs_head_gradients(self) -> bool:
        """Whether the signals must hold the gradients of the last layers."""

    def modulate(self, signals: Signals, memory: Memory) -> Modulation:
        """Return the coefficients for the pooled `signals`; no side effects."""


def check_range(name: str, value: float, low: float, high: float = np.inf) -> None:
    """Refuse a parameter outside ``[low, high]``.

    Raises
    ------
    ConfigError
        Naming the parameter as ``method.name``.
    """
    if not low <= value <= high:
        raise ConfigError(f"`method.{name}` must be in [{low:g}, {high:g}], got {value!r}")


def shares(counts: Array) -> Array:
    """Return counts [..., G] divided by their sum over groups; zeros where nothing was counted."""
    total = counts.sum(-1, keepdims=True)
    result: Array = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return result


def mean_losses(losses: Array, counts: Array) -> Array:
    """Return losses / counts, NaN where nothing was counted."""
    result: Array = np.divide(losses, counts, out=np.full_like(losses, np.nan), where=counts > 0)
    return result
