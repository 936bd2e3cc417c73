"""Replays: the same round on two neighbouring sets of records, under noise that is known.

`jumps` leaves the noise out and compares what one record changes with what was declared for it. It
cannot see a coefficient that shrinks a sum. `wobbles` makes the noise so large that nothing else is
left: then whatever differs tells of a record through the scale of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fedfair.config import Config
from fedfair.data.schema import SiteRecords
from fedfair.errors import PrivacyError
from fedfair.privacy.edge import Public, Released
from tests.privacy.hospital import Constant, Lab, Upload
from tests.privacy.people import neighbours

# Far above the rounding of sums of 25 records, far below a record's part.
SLACK = {"float64": 1e-9, "float32": 1e-5}
HUGE = ("privacy.noise_multiplier=1e9", "privacy.statistics.noise_multiplier=1e9", "privacy.noise_seed=0")

Exchange = Callable[[SiteRecords, float], Upload]


def exchanges(lab: Lab) -> dict[str, Exchange]:
    """Return what a private site answers, by message, as a function of its records and the noise."""
    return {
        "work": lambda records, value: lab.work(lab.site(records, Constant(value))),
        "assess": lambda records, value: lab.assess(lab.site(records, Constant(value))),
    }


def jumps(
    config: Config, folder: Path, classes: int = 2, sides: Sequence[str] = ("train", "test")
) -> Iterator[str]:
    """Yield by how much one record moves an upload beyond what is declared; nothing if all is well."""
    lab = Lab(config, folder, classes)
    pairs = list(neighbours(config, classes, sides))
    for message, answer in exchanges(lab).items():
        try:
            units = noise_units(answer, pairs[0].fewer)
            for pair in pairs:
                before, after = answer(pair.fewer, 0.0), answer(pair.more, 0.0)
                yield from (
                    f"{message}, {pair.name}: {what}"
                    for what in excess(before, after, units, SLACK[config.training.dtype])
                )
        except PrivacyError as refusal:
            yield f"{message}: refused, {refusal}"


def largest_jump(config: Config, folder: Path) -> float:
    """Return the largest move of a round's rows together that one record makes, in units of their noise."""
    lab = Lab(config, folder)
    answer = exchanges(lab)["work"]
    pairs = list(neighbours(config))
    units = noise_units(answer, pairs[0].fewer)
    return max(moves(answer(p.fewer, 0.0), answer(p.more, 0.0), units)["rows"] for p in pairs)


def noise_units(answer: Exchange, records: SiteRecords) -> dict[str, float]:
    """Return the deviation of each leaf's noise at multiplier 1, by switching a constant noise on."""
    off, on = answer(records, 0.0), answer(records, 1.0)
    units = {}
    for leaf, declared in off.declared.items():
        # Counts are sums of noised cells, and add none of their own.
        if isinstance(declared, Released) and not leaf.endswith("/counts"):
            change = np.abs(on.arrays[leaf] - off.arrays[leaf])
            assert np.ptp(change) <= 1e-4 * change.max(), leaf
            units[leaf] = float(change.max()) / declared.event.noise_multiplier
    return units


def excess(before: Upload, after: Upload, units: dict[str, float], slack: float) -> Iterator[str]:
    """Yield the leaves that move too far, and mechanisms whose leaves together do."""
    if set(before.arrays) ^ set(after.arrays):
        yield f"other leaves, {sorted(set(before.arrays) ^ set(after.arrays))}"
        return
    for leaf, declared in before.declared.items():
        one, other = before.arrays[leaf], after.arrays[leaf]
        if isinstance(declared, Public):
            if one.tobytes() != other.tobytes():
                yield f"public `{leaf}` is not the same"
            continue
        if declared != after.declared[leaf]:
            yield f"`{leaf}` is declared otherwise"
        distance = float(np.linalg.norm(one - other))
        if not distance <= declared.sensitivity * (1 + slack):
            yield f"`{leaf}` moves by {distance:.6g}, declared are {declared.sensitivity:.6g}"
    for mechanism, distance in moves(before, after, units).items():
        if not distance <= 1 + slack:
            yield f"all {mechanism} together move by {distance:.6g} units of their noise"


def moves(before: Upload, after: Upload, units: dict[str, float]) -> dict[str, float]:
    """Return by how many units of their noise the leaves of each mechanism move together."""
    squares = {"rows": 0.0, "statistics": 0.0}
    for leaf, unit in units.items():
        distance = float(np.linalg.norm(before.arrays[leaf] - after.arrays[leaf]))
        if distance > 0:
            mechanism = "rows" if leaf.startswith("rows/") else "statistics"
            squares[mechanism] += (distance / unit) ** 2 if unit else math.inf
    return {mechanism: math.sqrt(square) for mechanism, square in squares.items()}


def wobbles(config: Config, folder: Path, classes: int = 2) -> Iterator[str]:
    """Yield which leaves of an upload that is all noise differ between neighbours.

    The configuration needs `HUGE`. Tolerances: signals of at most 25 clipped records against noise of 1e9
    give 1e-7; the mildest fault here scales it by 24/25.
    """
    lab = Lab(config, folder, classes)
    for pair in neighbours(config, classes):
        for message in (lab.work, lab.assess):
            one, other = message(lab.site(pair.fewer)), message(lab.site(pair.more))
            yield from (f"{pair.name}: {leaf}" for leaf in differing(one, other))


def differing(one: Upload, other: Upload) -> Iterator[str]:
    """Yield the leaves that are not the same up to the noise's own size."""
    yield from sorted(set(one.arrays) ^ set(other.arrays))
    for leaf in one.arrays.keys() & other.arrays.keys():
        a, b = one.arrays[leaf], other.arrays[leaf]
        size = float(np.abs(a).max(initial=0.0))
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-4, atol=1e-4 * size):
            yield leaf
        elif isinstance(one.declared[leaf], Released) and a.size and size < 10:
            yield f"{leaf} is not all noise, {size:.3g}"
