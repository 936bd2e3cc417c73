"""Site-level privacy at a trusted server: one whole site is the unit, its records need not be few.

    clip each site's whole update -> sum -> noise -> divide by the public number of sites -> modulate

Sites weigh equally, whoever answers: a weight that depends on a site's records would scale its
sensitivity, and a divisor that counts the answers would tell who is there. All sites take part in
every round, so nothing is amplified. McMahan et al. 2018, arXiv 1710.06963, with fixed weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import InconsistentUpdates, counted
from fedfair.local import SiteUpdate, block_records
from fedfair.paths import Path
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout, release
from fedfair.signals import Signals

Rows = dict[str, NDArray[np.floating]]


def noised_sum(
    updates: Sequence[SiteUpdate],
    shapes: Mapping[str, tuple[int, int]],
    paths: Sequence[Path],
    modalities: tuple[str, ...],
    clipping_norm: float,
    noise_multiplier: float,
    noise: Noise,
) -> Rows:
    """Return the noised sum of the sites' clipped changes, by path key [rows, P_b].

    Parameters
    ----------
    updates : Sequence[SiteUpdate]
        Checked; the rows are records times change, the signals exact.
    shapes : Mapping[str, tuple[int, int]]
        Of every path. A path that no site sent is noise alone.
    paths, modalities
        The plan, and M names.
    clipping_norm : float
        C: L2 norm, over all rows, that one site can add.
    noise_multiplier : float
        z; the noise in each entry has the standard deviation z C, and none if z is 0.
    noise : Noise
        Known to the server alone.
    """
    total: Rows = {key: np.zeros(shape) for key, shape in shapes.items()}
    for update in updates:
        for key, value in clipped_change(update, paths, modalities, clipping_norm).items():
            total[key] += value
    if noise_multiplier > 0:
        for key, shape in shapes.items():
            total[key] += noise_multiplier * clipping_norm * noise.gaussian(shape)
    return total


def clipped_change(
    update: SiteUpdate, paths: Sequence[Path], modalities: tuple[str, ...], clipping_norm: float
) -> Rows:
    """Return a site's change by path, as a whole of norm at most `clipping_norm`.

    Raises
    ------
    InconsistentUpdates
        If the update came without the signals that count its records.
    """
    if update.train is None:
        raise InconsistentUpdates(f"site {update.site} must send training signals, got none")
    block = {path.key: path.block for path in paths}
    change = {
        key: np.asarray(rows, np.float64) / block_records(update.train, modalities, block[key])
        for key, rows in update.rows.items()
    }
    norm = math.sqrt(sum(float((rows**2).sum()) for rows in change.values()))
    factor = min(1.0, clipping_norm / norm) if norm > 0 else 1.0
    return {key: rows * factor for key, rows in change.items()}


def noised_signals(
    updates: Sequence[SiteUpdate], layout: Layout, noise_multiplier: float, noise: Noise
) -> Signals:
    """Return the noised sum of the sites' mean signals: each site counts like one record.

    Parameters
    ----------
    updates : Sequence[SiteUpdate]
        With exact training signals.
    layout : Layout
        Bounds of one record, and so of a mean over any number of records.
    noise_multiplier, noise
        As for `noised_sum`.
    """
    means = [_bounded(u.train, layout) for u in updates if u.train is not None]
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return release([total], layout, noise_multiplier, noise)[0]


def _bounded(signals: Signals, layout: Layout) -> Signals:
    """Return the mean over a site's records; a mean of bounded parts keeps their bound."""
    records = max(1.0, float(signals.counts[0].sum()))
    losses = signals.losses / records
    gradients = signals.head_gradients
    return dataclasses.replace(
        signals,
        counts=signals.counts / records,
        histograms=signals.histograms / records,
        losses=_within(losses, layout.loss_bound * math.sqrt(layout.heads)),
        head_gradients=None
        if gradients is None or layout.gradient_norm is None
        else _within(gradients / records, layout.gradient_norm),
    )


def _within(value: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(value))
    return value * (min(1.0, bound / norm) if norm > 0 else 1.0)


def feasibility(noise_multiplier: float, size: int, sites: int) -> str | None:
    """Return a note if the noise in the mean update is larger than any signal can be, or None.

    Parameters
    ----------
    noise_multiplier : float
        z.
    size : int
        d entries in all rows together.
    sites : int
        S; the noise has the norm z C sqrt(d) / S, the clipped signal at most C.
    """
    ratio = noise_multiplier * math.sqrt(size) / sites
    if ratio <= 1:
        return None
    most = int((sites / noise_multiplier) ** 2)
    return (
        f"site-level privacy asks for more noise than {counted(sites, 'site')} can outvote: its norm in a "
        f"round's mean update is {ratio:.3g} times the largest signal ({size} trained values; about {most} "
        "would balance it); expect a model of little use, or train fewer values, or join more sites"
    )
