"""Records of a made-up hospital, and pairs of record sets that differ by one record."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedfair.config import Config
from fedfair.data.schema import ArrayModality, Column, Schema, SiteRecords, TableModality
from fedfair.data.split import Sides, hashed_split, split_sides

SITE = "north"
GROUPS = ("female", "male", "other")


def schema(classes: int = 2) -> Schema:
    """Return three modalities: a table, an array, and notes that this hospital does not have."""
    table = TableModality((Column("sodium"), Column("iron"), Column("unit", ("ward", "clinic"))))
    return Schema(
        {"labs": table, "scan": ArrayModality((4,)), "notes": ArrayModality((3,))},
        tuple(f"class {c}" for c in range(classes)),
        {"sex": GROUPS, "age": ("young", "old")},
        (SITE, "south"),
    )


def patients(n: int, seed: int = 0, classes: int = 2) -> SiteRecords:
    """Return records of two of the three groups; some lack labs or scan, all lack notes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labs = np.stack([rng.normal(140, 5, n), rng.normal(15, 5, n), rng.integers(0, 2, n)], 1)
    scan = rng.normal(size=(n, 4)) + labels[:, None]
    labs[rng.random(n) < 0.2] = np.nan
    scan[rng.random(n) < 0.2] = np.nan
    values = {"labs": labs, "scan": scan, "notes": np.full((n, 3), np.nan)}
    return SiteRecords(
        {name: value.astype(np.float32) for name, value in values.items()},
        labels,
        {"sex": rng.integers(0, 2, n), "age": rng.integers(0, 2, n)},
    )


def patient(
    labs: Sequence[float] = (128, 22, 0),
    scan: Sequence[float] = (0.3, -1.2, 0.8, 2.0),
    notes: Sequence[float] = (np.nan,) * 3,
    label: int = 1,
    sex: int = 0,
    age: int = 1,
) -> SiteRecords:
    """Return one record."""
    raw = {"labs": labs, "scan": scan, "notes": notes}
    return SiteRecords(
        {name: np.array([value], np.float32) for name, value in raw.items()},
        np.array([label]),
        {"sex": np.array([sex]), "age": np.array([age])},
    )


def on_side(record: SiteRecords, side: str, config: Config) -> SiteRecords:
    """Return the record, its first observed value changed by a hair until its hash says this side."""
    name = next(name for name, raw in record.modalities.items() if not np.isnan(raw).all())
    for step in itertools.count():
        moved = record.modalities[name].copy()
        moved[:, 0] *= 1 - 1e-6 * step
        made = SiteRecords({**record.modalities, name: moved}, record.labels, record.attributes)
        if len(getattr(sides_of(made, config), side)) == 1:
            return made
    raise AssertionError


def sides_of(records: SiteRecords, config: Config) -> Sides:
    """Return the sides on which this hospital's records are."""
    fractions = config.data.test_fraction, config.data.validation_fraction
    return split_sides(hashed_split, records, *fractions, config.seed, SITE)


def joined(*parts: SiteRecords) -> SiteRecords:
    """Return all records, in order."""
    return SiteRecords(
        {name: np.concatenate([p.modalities[name] for p in parts]) for name in parts[0].modalities},
        np.concatenate([p.labels for p in parts]),
        {name: np.concatenate([p.attributes[name] for p in parts]) for name in parts[0].attributes},
    )


def without(records: SiteRecords, i: int) -> SiteRecords:
    """Return the records but one."""
    return records.select(np.delete(np.arange(len(records)), i))


@dataclass(frozen=True)
class Neighbours:
    """Two sets of records of which one has one record more."""

    name: str
    fewer: SiteRecords
    more: SiteRecords


def neighbours(
    config: Config, classes: int = 2, sides: Sequence[str] = ("train", "test")
) -> Iterator[Neighbours]:
    """Yield pairs: ordinary, rare, extreme and empty, the record on one of these sides."""
    base = patients(24, classes=classes)
    missing = (np.nan,) * 4
    odd = {
        "ordinary": patient(),
        "the only one of its group": patient(sex=2),
        "the only one with notes, and all else": patient(notes=(1.0, -2.0, 0.5), sex=2),
        "notes alone": patient(missing[:3], missing, (9.0, 9.0, 9.0), sex=2),
        "far out": patient((1e6, -1e6, 1), (1e4,) * 4, (1e4, -1e4, 1e4), sex=1),
        "beyond all": patient((3e38, -3e38, 0), (3e38,) * 4, (3e38,) * 3, sex=2, label=0),
    }
    for side in sides:
        for name, record in odd.items():
            own = on_side(record, side, config)
            # At the front, so that every other record moves up.
            yield Neighbours(f"{name}, {side}", base, joined(own, base))
            yield Neighbours(f"alone and {name}, {side}", base.select(np.zeros(0, np.int64)), own)
    yield Neighbours("nothing observed", base, joined(base, patient(missing[:3], missing)))
    for side in sides:
        index = getattr(sides_of(base, config), side)
        yield Neighbours(f"one less, {side}", without(base, int(index[1])), base)
