"""Lines on records: splits, sites, modalities, groups, intersections and prevalence, small cells hidden."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedfair.data.eye.aliases import SPLIT_NAMES, Field
from fedfair.data.eye.records import Entry
from fedfair.data.schema import UNKNOWN
from fedfair.data.suppression import FEW, MANY, SMALLEST, WITHHELD, Counts, all_large, may_band, told

CROSSED = ("race", "sex")
"""The two attributes whose intersections are told."""


class Record(NamedTuple):
    """A record that is as it should be: its split, and how it has each modality."""

    entry: Entry
    split: int | None
    has: Mapping[str, str]


def overview(
    records: Sequence[Record], label: Field, attributes: Sequence[Field], sites: Mapping[str, str]
) -> Iterator[str]:
    """Yield the lines on n records.

    Parameters
    ----------
    records : Sequence[Record]
        The records.
    label : Field
        Its groups are the classes.
    attributes : Sequence[Field]
        The demographic attributes.
    sites : Mapping[str, str]
        Each record's site by its file's name; empty without sites.
    """
    if len(records) < SMALLEST:
        yield f"  {FEW} records without a problem: nothing more is told"
        return
    yield f"  {len(records):,} records without a problem"
    yield _line("split", _count([_named(record.split, SPLIT_NAMES) for record in records], SPLIT_NAMES))
    if sites:
        at = [sites.get(record.entry.file.name, "none") for record in records]
        yield _line("site", _count(at, sorted(set(at) - {"none"}), "none"))
    for name in records[0].has:
        yield _line(name, _count([record.has[name] for record in records], ("present", "empty"), "absent"))
    ages = ["unknown" if record.entry.age is None else "known" for record in records]
    yield _line("age", _count(ages, ("known",)))
    codes = {
        field.name: [_named(r.entry.attributes[field.name], field.groups) for r in records]
        for field in attributes
    }
    labels = [_named(record.entry.label, label.groups) for record in records]
    yield _line(label.name, _count(labels, label.groups))
    for field in attributes:
        yield _line(field.name, _count(codes[field.name], field.groups))
    for field in attributes:
        yield _prevalence(field, label, codes[field.name], labels)
    if set(CROSSED) <= codes.keys():
        yield _crossed(codes, labels)


def _named(code: int | None, names: Sequence[str]) -> str:
    return UNKNOWN if code is None else names[code]


def _count(values: Sequence[str], names: Sequence[str], other: str = UNKNOWN) -> dict[str, int]:
    """Return how many records have each value, those with another one last."""
    count = Counter(values)
    return {name: count[name] for name in (*names, other)}


def _line(what: str, counts: Mapping[str, int]) -> str:
    """Return a line on disjoint groups."""
    shown = told(counts)
    if WITHHELD in shown.values():
        return f"  {what}: withheld, too few records"
    return f"  {what}: {', '.join(f'{name} {count}' for name, count in shown.items())}"


def _cells(*axes: Sequence[str]) -> tuple[list[list[str]], Counts]:
    """Return the values that occur on each axis, sorted, and the count of each combination."""
    names = [sorted(set(axis)) for axis in axes]
    cells = np.zeros([len(n) for n in names], np.int64)
    for values in zip(*axes, strict=True):
        cells[tuple(n.index(value) for n, value in zip(names, values, strict=True))] += 1
    return names, cells


def _prevalence(field: Field, label: Field, groups: Sequence[str], labels: Sequence[str]) -> str:
    """Return the line on the classes' shares in each group of an attribute."""
    what = f"  {label.name} by {field.name}"
    (rows, columns), table = _cells(groups, labels)
    if not all_large(table):
        return f"{what}: withheld, {FEW} records of some class in some group"
    parts = []
    for name in (*field.groups, UNKNOWN):
        if name in rows:
            counts = dict(zip(columns, table[rows.index(name)].tolist(), strict=True))
            parts.append(f"{name} {_shares(counts, label)} of {sum(counts.values()):,}")
    return f"{what}: {', '.join(parts)}"


def _shares(counts: Mapping[str, int], label: Field) -> str:
    """Return the share of each class but the first."""
    total = sum(counts.values())
    names = (*label.groups[1:], UNKNOWN) if UNKNOWN in counts else label.groups[1:]
    shares = [f"{100 * counts.get(name, 0) / total:.1f} %" for name in names]
    return (
        shares[0] if len(shares) == 1 else " + ".join(f"{n} {s}" for n, s in zip(names, shares, strict=True))
    )


def _crossed(codes: Mapping[str, Sequence[str]], labels: Sequence[str]) -> str:
    """Return the line on the intersections of two attributes."""
    what = f"  {CROSSED[0]} and {CROSSED[1]}"
    (rows, columns, _), cells = _cells(*(codes[name] for name in CROSSED), labels)
    table = cells.sum(axis=-1)
    exact = all_large(table)
    if not exact and not may_band(cells):
        return f"{what}: withheld, too few records in some group"
    parts = []
    for row, name in enumerate(rows):
        for column, other in enumerate(columns):
            count = int(table[row, column])
            shown = f"{count:,}" if exact else FEW if count < SMALLEST else MANY
            parts.append(f"{name} {other} {shown}")
    return f"{what}: {', '.join(parts)}"
