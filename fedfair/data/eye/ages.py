"""The attribute that is cut from the age: its cuts and the names of its groups."""

from __future__ import annotations

from collections.abc import Sequence

from fedfair.data.options import as_integer, as_items
from fedfair.errors import ConfigError

AGE_GROUP = "age_group"
AGE_EDGES = (50, 65)
"""Where the ages are cut unless told otherwise."""


def age_groups(edges: Sequence[int]) -> tuple[str, ...]:
    """Return the groups' names; a group starts at its edge, which belongs to it."""
    between = [f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    return (f"<{edges[0]}", *between, f"{edges[-1]}+")


def as_edges(value: object, where: str) -> tuple[int, ...]:
    """Return ages that ascend.

    Raises
    ------
    ConfigError
        If they do not, or are no whole years.
    """
    edges = tuple(as_integer(x, where, 1) for x in as_items(value, where))
    if list(edges) != sorted(set(edges)):
        raise ConfigError(f"`{where}` must ascend, got {list(edges)}")
    return edges
