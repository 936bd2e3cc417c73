"""Aggregation: summed updates and coefficients in, the next global model out.

    theta_b <- theta_b + eta_s / N_b  sum_paths sum_g K[path, g] sum_k U_k[path, g]

N_b counts the records, over all sites, that have the modality of block b: a site without the
modality changes neither the numerator nor the denominator. Sites are added in the order given,
in place, so the server holds one model however many sites and groups there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients
from fedfair.errors import InconsistentUpdates
from fedfair.local import SiteUpdate, block_records
from fedfair.paths import Path, Scales, path_scale
from fedfair.signals import Signals

Vector = NDArray[np.floating]
PIECE = 1 << 16


def pool(updates: Sequence[SiteUpdate]) -> tuple[Signals, Signals]:
    """Return the training and the test signals summed over sites.

    Raises
    ------
    InconsistentUpdates
        If there is no update or the arrays do not fit together.
    """
    if not updates:
        raise InconsistentUpdates("`updates` must hold at least one site's update, got none")
    train, test = updates[0].train, updates[0].test
    for update in updates[1:]:
        train, test = train + update.train, test + update.test
    return train, test


def check_update(
    update: SiteUpdate,
    paths: Sequence[Path],
    modalities: tuple[str, ...],
    lengths: Mapping[str, int],
    groups: int,
) -> None:
    """Refuse an update that would poison the sum.

    Raises
    ------
    InconsistentUpdates
        Naming the site and the array: missing or unexpected, of another shape, or not finite.
    """
    update.train.check(f"site {update.site} (training records)")
    update.test.check(f"site {update.site} (test records)")
    expected = {
        p.key: (groups if p.grouped else 1, lengths[p.block])
        for p in paths
        if block_records(update.train, modalities, p.block) > 0
    }
    if set(update.rows) != set(expected):
        wrong = sorted(set(update.rows) ^ set(expected))
        raise InconsistentUpdates(
            f"`rows` of site {update.site} must fit the plan, got a mismatch in {wrong}"
        )
    for key, value in update.rows.items():
        if value.shape != expected[key]:
            raise InconsistentUpdates(
                f"`{key}` of site {update.site} must be {expected[key]}, got {value.shape}"
            )
        # A sum is finite only if all its terms are, short of an overflow worth refusing too.
        if not np.isfinite(value.sum()):
            raise InconsistentUpdates(f"`{key}` of site {update.site} must be finite, got NaN or infinity")


def combine(
    model: Mapping[str, Vector],
    updates: Sequence[SiteUpdate],
    coefficients: Coefficients,
    paths: Sequence[Path],
    modalities: tuple[str, ...],
    learning_rate: float = 1.0,
    velocity: dict[str, Vector] | None = None,
    momentum: float = 0.0,
) -> None:
    """Move the global model in place by the modulated mean of the updates.

    Parameters
    ----------
    model : Mapping[str, Vector]
        One vector [P_b] per block, writable.
    updates : Sequence[SiteUpdate]
        Checked updates, in a fixed order.
    coefficients : Coefficients
        K; it multiplies grouped rows only, the others were weighted at the site.
    paths : Sequence[Path]
        What the sites sent, as `RowPlan.paths` gives it.
    modalities : tuple[str, ...]
        M names.
    learning_rate, momentum : float
        Of the server.
    velocity : dict[str, Vector] | None
        Server momentum by block, updated in place; None for no momentum, which needs no second
        model in memory.
    """
    train, _ = pool(updates)
    scales = Scales.build(coefficients, torch.zeros((), dtype=torch.float64))
    if velocity is None:
        target, rate = model, learning_rate
    else:
        # A block that nobody has this round rests: neither its momentum decays nor does it coast.
        moved = [block for block in model if block_records(train, modalities, block) > 0]
        for block in moved:
            velocity[block] = velocity.get(block, np.zeros_like(model[block])) * momentum
        target, rate = velocity, 1.0
    for path in paths:
        records = block_records(train, modalities, path.block)
        scale = path_scale(path, scales, modalities)
        for update in updates:
            if (rows := update.rows.get(path.key)) is not None:
                _add_rows(target[path.block], rows, (scale * rate / records).tolist())
    if velocity is not None:
        for block in moved:
            _add_rows(model[block], velocity[block][None], [learning_rate])


def _add_rows(out: Vector, rows: Vector, factors: list[float]) -> None:
    # Piece by piece: the temporary product stays in the cache, where one of the whole would double the time.
    for start in range(0, len(out), PIECE):
        target = out[start : start + PIECE]
        for row, factor in zip(rows[:, start : start + PIECE], factors, strict=True):
            target += row * factor
