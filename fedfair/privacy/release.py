"""Releasing signals: noise on every cell, so that one record cannot be told from its absence.

A record adds 1 to each of T histograms of each of up to H heads, at most lambda to the loss sum of
each head, and a vector of norm C at most to the head gradients. With parts k of sensitivity c_k and
units s_k such that sum_k (c_k / s_k)^2 = 1, noise of standard deviation sigma s_k on part k is one
Gaussian mechanism of multiplier sigma (divided by its unit, the stack has sensitivity 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedfair.errors import ConfigError, PrivacyError
from fedfair.privacy.noise import Noise
from fedfair.signals import Array, Signals, Variance

SHARES = (0.7, 0.3, 0.0)
SHARES_WITH_GRADIENTS = (0.5, 0.25, 0.25)


class Units(NamedTuple):
    """Standard deviation of the noise of multiplier 1 in each cell of the array of that name."""

    histograms: float
    losses: float
    head_gradients: float

    def variance(self, sigma: float) -> Variance:
        """Return the variance of each cell's noise at multiplier `sigma`."""
        return Variance(*((sigma * unit) ** 2 for unit in self))


@dataclass(frozen=True)
class Layout:
    """The most that one record adds to signals; public constants, and nothing counted.

    Attributes
    ----------
    heads : int
        H, all heads that can score a record.
    scored : int
        T, histograms per head.
    loss_bound : float
        lambda, in nats; positive.
    gradient_norm : float | None
        C, of the gradients of all heads stacked; positive. None if there are none.
    """

    heads: int
    scored: int
    loss_bound: float
    gradient_norm: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds under which no noise would be enough."""
        for name in ("heads", "scored", "loss_bound", "gradient_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"`{name}` must be positive and finite, got {value!r}")

    def sensitivity(self, name: str) -> float:
        """Return the L2 distance that one record makes at most in the array `name` of signals.

        Raises
        ------
        ConfigError
            If signals have no array of that name.
        """
        every = math.sqrt(self.heads)
        bounds = {
            "counts": every,
            "histograms": every * math.sqrt(self.scored),
            "losses": every * self.loss_bound,
            "head_gradients": self.gradient_norm or 0.0,
        }
        if name not in bounds:
            raise ConfigError(f"`name` must be one of {sorted(bounds)}, got {name!r}")
        return bounds[name]

    def units(self) -> Units:
        """Return c_k / sqrt(share_k); the shares add up to 1, so sum_k (c_k / s_k)^2 = 1."""
        shares = SHARES if self.gradient_norm is None else SHARES_WITH_GRADIENTS
        pairs = zip(Units._fields, shares, strict=True)
        return Units(*(self.sensitivity(name) / math.sqrt(share) if share else 0.0 for name, share in pairs))


def release(parts: Sequence[Signals], layout: Layout, sigma: float, noise: Noise) -> list[Signals]:
    """Return noised signals: together one Gaussian mechanism of multiplier `sigma`.

    Parameters
    ----------
    parts : Sequence[Signals]
        Of disjoint sets of records (training and test), so that a record is in one of them.
    layout : Layout
        The bounds under which they were measured.
    sigma : float
        Noise multiplier; 0 adds nothing and is not private.
    noise : Noise
        The site's own.

    Returns
    -------
    list[Signals]
        Every cell noised, empty ones too; `counts` are sums of noised cells.

    Raises
    ------
    PrivacyError
        If a part has other shapes than `layout` or was released before, or sigma is no multiplier.
    """
    if not 0 <= sigma < math.inf:
        raise PrivacyError(f"`sigma` must be a noise multiplier of 0 or more, got {sigma!r}")
    for part in parts:
        _check(part, layout)
    units = layout.units()
    return [_noised(part, units, sigma, noise) for part in parts]


def _noised(part: Signals, units: Units, sigma: float, noise: Noise) -> Signals:
    def add(values: Array, unit: float) -> Array:
        result: Array = values + sigma * unit * noise.gaussian(values.shape)
        return result

    histograms = add(part.histograms, units.histograms)
    losses = add(part.losses, units.losses)
    gradients = None if part.head_gradients is None else add(part.head_gradients, units.head_gradients)
    return Signals(_class_counts(histograms), losses, histograms, gradients, units.variance(sigma))


def _class_counts(histograms: Array) -> Array:
    """Return [H, G, C]: members of each class, or both rows of the only histogram."""
    totals = histograms.sum(-1)
    counts: Array = totals[:, :, 0] if totals.shape[2] == 1 else totals[:, :, :, 1]
    return counts


def _check(part: Signals, layout: Layout) -> None:
    # Shapes only: a refusal that depended on a value would itself be a release.
    if part.variance is not None:
        raise PrivacyError("`parts` must be exact signals, got released ones; release each of them once")
    heads, _, scored = part.histograms.shape[:3]
    if (heads, scored) != (layout.heads, layout.scored):
        raise PrivacyError(
            f"`parts` must have the {layout.heads} heads and {layout.scored} histograms of the layout, "
            f"got {heads} and {scored}"
        )
    if part.head_gradients is not None and layout.gradient_norm is None:
        raise PrivacyError("`gradient_norm` of the layout must be set to release head gradients, got None")
