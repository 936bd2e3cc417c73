"""What Gaussian releases cost together, by the accountants of Opacus.

A site's history is a set of events under add/remove of one record: steps of a Poisson-subsampled
Gaussian mechanism, where sample rate 1 is the plain Gaussian of a statistic. Order does not matter.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from fedfair.errors import ConfigError, MissingDependency, counted

Accountant = Literal["prv", "rdp"]
History = list[tuple[float, float, int]]
RELATION = "add or remove one record"

_EPSILON_ERROR = 0.01  # Opacus adds it to the estimate, so that what it returns is an upper bound
_MAX_POINTS = 2**22  # of the PRV grid: about 3 s and 0.5 GB; a small sigma asks for terabytes
_MAX_LOSS = 500.0  # beyond exp(709) the PRV convolution overflows
_MIN_DELTA = 1e-9  # rounding in the FFT reaches 1e-12, where PRV was seen below the true value
_MIN_SIGMA = 1e-3  # as sigma^2 underflows, the series of RDP never ends
_SIGMAS = (1e-2, 1e4)  # where `calibrate` searches


@dataclass(frozen=True)
class Event:
    """Steps of one Poisson-subsampled Gaussian mechanism.

    Attributes
    ----------
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity, at least 0; 0 is no privacy at all.
    sample_rate : float
        Probability in (0, 1] that a record takes part in a step; 1 is the plain Gaussian mechanism.
    steps : int
        At least 1.

    Raises
    ------
    ConfigError
        If a value is outside its range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(f"`noise_multiplier` must be finite, at least 0, got {self.noise_multiplier}")
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(f"`sample_rate` must be in (0, 1], got {self.sample_rate}")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ConfigError(f"`steps` must be an integer of at least 1, got {self.steps}")


@dataclass(frozen=True)
class Statement:
    """A privacy loss with everything it needs to mean something.

    `unit` says whose data it covers, `relation` how neighbouring data sets differ, `accountant` who
    computed the upper bound `epsilon`.
    """

    epsilon: float
    delta: float
    unit: str
    relation: str
    accountant: str

    def __str__(self) -> str:
        """Return the statement as one sentence."""
        loss = f"epsilon {self.epsilon:.4g} at delta {self.delta:.3g}"
        return f"{loss} for {self.unit} under {self.relation}, by {self.accountant}."


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the same history with the steps of equal mechanisms added up, in sorted order."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return tuple(Event(*mechanism, count) for mechanism, count in sorted(steps.items()))


def epsilon(events: Iterable[Event], delta: float, accountant: Accountant = "prv") -> float:
    """Return an upper bound of the privacy loss of all events together.

    Parameters
    ----------
    events, delta : Iterable[Event], float
        The whole history, and delta in (0, 1). No events give 0, one without noise gives infinity.
    accountant : {"prv", "rdp"}
        "prv" is tight to 0.01, "rdp" is looser and takes milliseconds. Where PRV has no reliable
        answer (delta below 1e-9, losses of hundreds), "prv" gives the RDP bound.

    Raises
    ------
    ConfigError
        If `delta` is out of range.
    MissingDependency
        If Opacus is not installed.
    """
    return _bound(events, delta, accountant)[0]


def describe(events: Iterable[Event], delta: float, unit: str, relation: str = RELATION) -> Statement:
    """Return what the events cost; `unit` says whose data it covers, `relation` how data sets differ."""
    loss, name = _bound(events, delta, "prv")
    version = opacus_module("opacus").__version__
    return Statement(loss, delta, unit, relation, f"Opacus {name.upper()} {version}")


def calibrate(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, others: Sequence[Event] = ()
) -> float:
    """Return the smallest noise multiplier whose whole history stays within the target.

    Parameters
    ----------
    target_epsilon, delta : float
        Of the whole history: the new steps and `others`.
    sample_rate, steps : float, int
        Of the new event; its multiplier is searched in [0.01, 10,000], to 0.1 % and rounded up.
    others : Sequence[Event]
        What else is spent, such as the releases of statistics.

    Raises
    ------
    ConfigError
        If no multiplier in that range meets the target.
    """
    if not 0 < target_epsilon < math.inf:
        raise ConfigError(f"`target_epsilon` must be a finite number above 0, got {target_epsilon}")
    low, high = _SIGMAS

    def fits(sigma: float) -> bool:
        return epsilon([*others, Event(sigma, sample_rate, steps)], delta) <= target_epsilon

    spent = epsilon(others, delta)
    if spent > target_epsilon or not fits(high):
        raise ConfigError(
            f"`target_epsilon` must be above what noise on {counted(steps, 'step')} can reach, got"
            f" {target_epsilon:.4g} where the other releases alone cost {spent:.4g} at delta {delta:.3g};"
            " raise the target, or release statistics less often or with more noise"
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def opacus_module(name: str) -> ModuleType:
    """Import a module of Opacus, and undo what the import does to logging.

    Raises
    ------
    MissingDependency
        If Opacus is not installed.
    """
    if "opacus" in sys.modules:
        return importlib.import_module(name)
    handlers = logging.root.handlers[:]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"privacy needs `{error.name}`: pip install 'fedfair[privacy]'") from error
    # It calls logging.basicConfig, so every program would log to stderr, and lowers its own logger's level.
    logging.root.handlers[:] = handlers
    logging.getLogger("opacus.utils.module_utils").setLevel(logging.NOTSET)
    return module


def _bound(events: Iterable[Event], delta: float, accountant: Accountant) -> tuple[float, Accountant]:
    """Return the bound and the accountant it is from."""
    if not 0 < delta < 1:
        raise ConfigError(f"`delta` must be in (0, 1), got {delta}")
    history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in merge(events)]
    if not history:
        return 0.0, accountant
    if any(sigma == 0 for sigma, _, _ in history):
        return math.inf, accountant
    loose = _rdp(history, delta)
    if accountant == "rdp" or not _within_prv(history, delta):
        return loose, "rdp"
    tight = _opacus("PRVAccountant", history, delta)
    return (tight, "prv") if tight <= loose else (loose, "rdp")


def _rdp(history: History, delta: float) -> float:
    if min(history)[0] >= _MIN_SIGMA and math.isfinite(value := _opacus("RDPAccountant", history, delta)):
        return value
    # zCDP, without amplification: looser, in closed form.
    rho = sum(steps / 2 / sigma / sigma for sigma, _, steps in history)
    return rho + 2 * math.sqrt(rho * -math.log(delta))


def _within_prv(history: History, delta: float) -> bool:
    """Return whether PRV would answer reliably, in reasonable time and memory."""
    if delta < _MIN_DELTA:
        return False
    steps = sum(count for _, _, count in history)
    # Opacus's choice of grid, with an upper bound for the larger of its two losses.
    error = delta / 1000
    loss = 3 + _rdp(history, error / (8 * steps))
    mesh = _EPSILON_ERROR / math.sqrt(steps * math.log(12 / error) / 2)
    return loss <= _MAX_LOSS and 2 * loss / mesh * len(history) <= _MAX_POINTS


def _opacus(name: str, history: History, delta: float) -> float:
    """Return the answer of an accountant, not negative; infinity if it has none."""
    accountant: Any = getattr(opacus_module("opacus.accountants"), name)()
    accountant.history = list(history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # A hint about tightness: the bound holds at any order, and the orders are Opacus's own.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        try:
            value = float(accountant.get_epsilon(delta))
        except (ArithmeticError, ValueError, RuntimeError, MemoryError):
            return math.inf
    return math.inf if math.isnan(value) else max(0.0, value)
