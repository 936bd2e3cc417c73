"""Readers for options as they come from YAML: each returns the typed value or refuses it in one sentence."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from fedfair.errors import ConfigError, likely, nearest

MISSING = frozenset({"", "na", "nan", "?"})
"""What stands for a missing value in a table, whatever its case."""


REFUSE, LEAVE_OUT, KEEP = "refuse", "leave_out", "keep"
"""What may be done with a record of whom an attribute is unknown."""


def is_missing(text: str) -> bool:
    """Return whether a table's cell holds no value."""
    return text.casefold() in MISSING


def as_mapping(value: object, where: str) -> Mapping[str, object]:
    """Return `value` if it maps text to anything, as a YAML block does.

    Raises
    ------
    ConfigError
        If it is no mapping, or a key is not text (YAML reads a bare ``yes`` as a truth value).
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"`{where}` must be a mapping, got {value!r}")
    for key in value:
        if not isinstance(key, str) or not key.strip():
            raise ConfigError(f"`{where}` must have names as keys, got {key!r}; put it in quotes")
    return value


def entries(
    value: object, where: str, required: Collection[str] = (), optional: Collection[str] = ()
) -> Mapping[str, object]:
    """Return `value` if it is a mapping with every required key and no unknown one.

    Raises
    ------
    ConfigError
        If a key is unknown (the nearest known one is named) or absent.
    """
    found = as_mapping(value, where)
    known = [*required, *optional]
    for key in found:
        if key not in known:
            raise ConfigError(f"`{where}.{key}` is not a known key{likely(key, known)}")
    for key in required:
        if key not in found:
            raise ConfigError(f"`{where}.{key}` must be given, got only {sorted(found)}")
    return found


def as_items(value: object, where: str) -> Sequence[object]:
    """Return `value` if it is a list with at least one item.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"`{where}` must be a list with at least one item, got {value!r}")
    return value


def as_text(value: object, where: str) -> str:
    """Return a name or raw value as the text a table's cell would hold.

    Raises
    ------
    ConfigError
        If it is neither text nor a number, or stands for a missing value.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or is_missing(str(value).strip()):
        raise ConfigError(f"`{where}` must be text or a number, got {value!r}; put a word in quotes")
    return str(value).strip()


def as_texts(value: object, where: str) -> tuple[str, ...]:
    """Return a list of different names or raw values.

    Raises
    ------
    ConfigError
        If it is not a list, is empty, or names something twice.
    """
    texts = tuple(as_text(item, where) for item in as_items(value, where))
    if len(set(texts)) < len(texts):
        raise ConfigError(f"`{where}` must not repeat an item, got {list(texts)}")
    return texts


def as_some_of(value: object, where: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return a list of different known names, in its own order.

    Raises
    ------
    ConfigError
        If it is no such list; the name nearest to an unknown one is named.
    """
    names = as_texts(value, where)
    for name in names:
        if name not in known:
            raise ConfigError(f"`{where}` must be of {list(known)}, got {name!r}{nearest(name, known)}")
    return names


def as_one_of(value: object, where: str, known: Sequence[str]) -> str:
    """Return one of the known words.

    Raises
    ------
    ConfigError
        If it is none; the nearest one is named.
    """
    if value not in known:
        raise ConfigError(
            f"`{where}` must be one of {list(known)}, got {value!r}{nearest(str(value), known)}"
        )
    return str(value)


def as_integer(value: object, where: str, minimum: int) -> int:
    """Return an integer that is at least `minimum`.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"`{where}` must be an integer of at least {minimum}, got {value!r}")
    return value


def as_number(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number in [low, high].

    Raises
    ------
    ConfigError
        If it is not.
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    if not (low <= number <= high and math.isfinite(number)):
        raise ConfigError(f"`{where}` must be a finite number in [{low:g}, {high:g}], got {value!r}")
    return number


def as_truth(value: object, where: str) -> bool:
    """Return a truth value.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"`{where}` must be true or false, got {value!r}")
    return value
