"""Crossed attributes: ``race*sex`` has a group for each pair of groups, ``asian & female`` and so on.

Fairness by each attribute alone can hide a group that is served worst of all (Kearns et al., ICML 2018;
Foulds et al., arXiv 1807.08362), so pairs are reported, and a crossing can be modulated like an attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import checked_indices
from fedfair.data.schema import UNKNOWN, SiteRecords
from fedfair.errors import ConfigError, nearest

TIMES, AND = "*", " & "
Attributes = Mapping[str, Sequence[str]]


def axes(attributes: Attributes, name: str, key: str = "attribute") -> tuple[int, ...]:
    """Return the places of the attributes that a name crosses, in the name's order.

    Parameters
    ----------
    attributes : Mapping[str, Sequence[str]]
        Group names by attribute.
    name : str
        An attribute, or several joined by ``*``.
    key : str
        What the message calls `name`.

    Raises
    ------
    ConfigError
        If a part is no attribute or stands twice.
    """
    parts = [part.strip() for part in name.split(TIMES)]
    for part in parts:
        if part not in attributes:
            raise ConfigError(
                f"`{key}` must be one of {list(attributes)}, or several joined by {TIMES}, got {name!r}"
                f"{nearest(part, attributes)}"
            )
    if len(set(parts)) < len(parts):
        raise ConfigError(f"`{key}` must cross different attributes, got {name!r}")
    return tuple(list(attributes).index(part) for part in parts)


def group_names(attributes: Attributes, name: str) -> tuple[str, ...]:
    """Return the groups of an attribute or a crossing, the last attribute's varying fastest."""
    return tuple(AND.join(parts) for parts in _crossed(attributes, name))


def known(attributes: Attributes, name: str) -> NDArray[np.bool_]:
    """Return whether each of `group_names` is known, [G]: a crossing is if all its parts are."""
    return np.array([UNKNOWN not in parts for parts in _crossed(attributes, name)])


def _crossed(attributes: Attributes, name: str) -> Iterator[tuple[str, ...]]:
    """Yield each group as those that it crosses."""
    names = list(attributes)
    return product(*(attributes[names[axis]] for axis in axes(attributes, name)))


def memberships(records: SiteRecords, attributes: Attributes, name: str) -> NDArray[np.int64]:
    """Return each record's index [n] into `group_names`.

    Raises
    ------
    ShapeError, DataError
        If an attribute is absent or out of range.
    """
    index, names = np.zeros(len(records), np.int64), list(attributes)
    for axis in axes(attributes, name):
        own, size = names[axis], len(attributes[names[axis]])
        index = index * size + checked_indices(own, records.attributes.get(own), len(records), size)
    return index


def pairs(attributes: Attributes) -> tuple[str, ...]:
    """Return the crossings of any two attributes."""
    return tuple(TIMES.join(pair) for pair in combinations(attributes, 2))
