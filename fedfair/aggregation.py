"""Aggregation: summed updates and coefficients in, the next global model out.

    theta_b <- theta_b + eta_s / N_b  sum_paths sum_g K[path, g] sum_k U_k[path, g]

N_b counts the records, over all sites, that have the modality of block b: a site without the
modality changes neither the numerator nor the denominator. Under privacy, where no count is known,
U is a change rather than a sum over records and N_b the public number of sites. Sites are added in
the order given, in place, so the server holds one model however many sites and groups there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

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


def pool(updates: Sequence[SiteUpdate]) -> tuple[Signals | None, Signals | None]:
    """Return the training and the test signals summed over sites; None where no site sent any.

    Raises
    ------
    InconsistentUpdates
        If there is no update or the arrays do not fit together.
    """
    if not updates:
        raise InconsistentUpdates("`updates` must hold at least one site's update, got none")
    return (
        total("train", {u.site: u.train for u in updates}),
        total("test", {u.site: u.test for u in updates}),
    )


def total(part: str, by_site: Mapping[str, Signals | None]) -> Signals | None:
    """Return the sum of the sites' signals, or None if no site sent any.

    Raises
    ------
    InconsistentUpdates
        If only some sites sent signals, or the arrays do not fit together.
    """
    found = [signals for signals in by_site.values() if signals is not None]
    if found and len(found) < len(by_site):
        silent = sorted(site for site, signals in by_site.items() if signals is None)
        raise InconsistentUpdates(
            f"`{part}` signals must come from every site or from none, got none of {silent}"
        )
    return reduce(Signals.__add__, found) if found else None


def check_update(
    update: SiteUpdate,
    paths: Sequence[Path],
    modalities: tuple[str, ...],
    lengths: Mapping[str, int],
    groups: int,
    private: bool = False,
) -> None:
    """Refuse an update that would poison the sum.

    Parameters
    ----------
    update : SiteUpdate
        What a site sent.
    paths, modalities, lengths, groups
        The plan, M names, P_b by block, and G.
    private : bool
        Whether every site must send every path, with or without the modality.

    Raises
    ------
    InconsistentUpdates
        Naming the site and the array: missing or unexpected, of another shape, or not finite.
    """
    for signals, records in ((update.train, "training"), (update.test, "test")):
        if signals is not None:
            signals.check(f"site {update.site} ({records} records)")
    expected = {
        p.key: (groups if p.grouped else 1, lengths[p.block])
        for p in paths
        if private or (update.train is not None and block_records(update.train, modalities, p.block) > 0)
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
            raise InconsistentUpdates(
                f"`{key}` of site {update.site} must be finite, got NaN or infinity; "
                "a lower `training.learning_rate` may help"
            )


def combine(
    model: Mapping[str, Vector],
    updates: Sequence[SiteUpdate],
    coefficients: Coefficients,
    paths: Sequence[Path],
    modalities: tuple[str, ...],
    learning_rate: float = 1.0,
    velocity: dict[str, Vector] | None = None,
    momentum: float = 0.0,
    denominators: Mapping[str, float] | None = None,
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
    denominators : Mapping[str, float] | None
        N_b by block; None for the records that have the block's modality.
    """
    if denominators is None:
        denominators = _records(updates, modalities, model)
    scales = Scales.build(coefficients, torch.zeros((), dtype=torch.float64))
    if velocity is None:
        target, rate = model, learning_rate
    else:
        # A block that nobody has this round rests: neither its momentum decays nor does it coast.
        moved = [block for block in model if denominators[block] > 0]
        for block in moved:
            velocity[block] = velocity.get(block, np.zeros_like(model[block])) * momentum
        target, rate = velocity, 1.0
    for path in paths:
        scale = path_scale(path, scales, modalities)
        for update in updates:
            if (rows := update.rows.get(path.key)) is not None:
                _add_rows(target[path.block], rows, (scale * rate / denominators[path.block]).tolist())
    if velocity is not None:
        for block in moved:
            _add_rows(model[block], velocity[block][None], [learning_rate])


def _records(
    updates: Sequence[SiteUpdate], modalities: tuple[str, ...], blocks: Mapping[str, Vector]
) -> dict[str, float]:
    train, _ = pool(updates)
    if train is None:
        raise InconsistentUpdates("`train` signals must be there to count records, got none")
    return {block: block_records(train, modalities, block) for block in blocks}


def _add_rows(out: Vector, rows: Vector, factors: list[float]) -> None:
    # Piece by piece: the temporary product stays in the cache, where one of the whole would double the time.
    for start in range(0, len(out), PIECE):
        target = out[start : start + PIECE]
        for row, factor in zip(rows[:, start : start + PIECE], factors, strict=True):
            target += row * factor
