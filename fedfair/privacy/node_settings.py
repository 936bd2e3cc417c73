"""Read what a hospital's node is told: its own configuration, and below it a YAML file of settings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path

from fedfair.data.options import as_mapping, as_texts
from fedfair.errors import ConfigError, likely
from fedfair.plain import read_yaml

PATHS = ("data", "weights", "ledger", "audit", "key", "roster")
FLOOR = ("max-epsilon", "max-delta", "min-noise")
KEYS = (
    "settings",
    *PATHS,
    "dataset",
    *FLOOR,
    "min-records",
    "public-test",
    "secure-only",
    "min-sites",
    "schema",
    "attributes",
    "allow",
)

SITE = "site"
INFORMATIVE = ("consortium", "centre")
"""What a settings file may say for other programs to read."""

Vocabulary = tuple[tuple[str, tuple[str, ...]], ...]
"""Each attribute with its groups."""


def given(values: Mapping[str, object]) -> dict[str, object]:
    """Return the keys that say something: null is what a template leaves to be filled in."""
    return {key: value for key, value in values.items() if value is not None}


def refuse_misspelt(node: Mapping[str, object]) -> None:
    """Refuse a key of a node's configuration that looks like a known one; others are other people's.

    Raises
    ------
    ConfigError
        Naming the nearest known key: a misspelt cap must not be no cap.
    """
    for key in node.keys() - {*KEYS}:
        if meant := difflib.get_close_matches(key.lower().replace("_", "-"), KEYS, n=1, cutoff=0.85):
            raise ConfigError(f"`{key}` of the node is not a known key; did you mean `{meant[0]}`?")


def read_settings(path: Path) -> dict[str, object]:
    """Return what a settings file says, its paths seen from its own folder.

    Unless it says otherwise, ledgers lie in ``ledgers`` beside it.

    Raises
    ------
    ConfigError
        If it cannot be read, is no mapping, or holds an unknown key.
    """
    # Messages reach the server, and where the file lies is not for it to know.
    file = "`settings` of the node"
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} must name a readable file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} must be UTF-8 text: {error.reason}") from error
    found = as_mapping(read_yaml(content, file), "settings")
    known = [key for key in (SITE, *KEYS, *INFORMATIVE) if key != "settings"]
    for key in found:
        if key not in known:
            raise ConfigError(f"`{key}` of the site's settings is not a known key{likely(key, known)}")
    values = {"ledger": "ledgers", **given(found)}
    return {key: path.parent / str(value) if key in PATHS else value for key, value in values.items()}


def text(found: Mapping[str, object], key: str) -> str | None:
    """Return a key's text, or None where it is not given."""
    return str(found[key]) if key in found else None


def place(found: Mapping[str, object], key: str) -> Path | None:
    """Return a key's path, or None where it is not given."""
    return Path(str(found[key])) if key in found else None


def positive(found: Mapping[str, object], key: str) -> float | None:
    """Return a key's number, above 0, or None where it is not given.

    Raises
    ------
    ConfigError
        If it is no such number.
    """
    if key not in found:
        return None
    try:
        value = float(str(found[key]))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"`{key}` of the node must be a number above 0, got {found[key]!r}")
    return value


def count(found: Mapping[str, object], key: str, least: int = 0) -> int:
    """Return a key's whole number, or `least` where it is not given.

    Raises
    ------
    ConfigError
        If it is none, or below `least`.
    """
    digits = str(found.get(key, least))
    if not (digits.isascii() and digits.isdecimal() and int(digits) >= least):
        raise ConfigError(
            f"`{key}` of the node must be a whole number of at least {least}, got {found[key]!r}"
        )
    return int(digits)


def flag(found: Mapping[str, object], key: str) -> bool:
    """Return a key's truth value, false where it is not given; a node's configuration has it as text.

    Raises
    ------
    ConfigError
        If it is neither true nor false: what was meant as a yes must not act as a no.
    """
    value = str(found.get(key, False)).lower()
    if value not in ("true", "false"):
        raise ConfigError(f"`{key}` of the node must be true or false, got {found[key]!r}")
    return value == "true"


def form(found: Mapping[str, object], key: str) -> str | None:
    """Return what a key says of the records' format, as `format_of` writes it, or None if nothing.

    Raises
    ------
    ConfigError
        If it is no mapping with a `name`, and `options` if any.
    """
    if key not in found:
        return None
    said = as_mapping(found[key], key)
    if not said.get("name") or said.keys() - {"name", "options"}:
        raise ConfigError(f"`{key}` must hold a `name`, and `options` if any, got {sorted(said)}")
    return format_of(str(said["name"]), as_mapping(said.get("options") or {}, f"{key}.options"))


def format_of(name: str, options: Mapping[str, object]) -> str:
    """Return one text for a data set's name and options; the order of keys counts, as in the schema."""
    return json.dumps([name, options], default=str)


def vocabulary(found: Mapping[str, object], key: str) -> Vocabulary | None:
    """Return a key's attributes with their groups, or None where it is not given.

    Raises
    ------
    ConfigError
        If it is no mapping from names to lists of names.
    """
    if key not in found:
        return None
    listed = as_mapping(found[key], key)
    return tuple((name, as_texts(groups, f"{key}.{name}")) for name, groups in listed.items())


def texts(found: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return a key's list of names, empty where it is not given.

    Raises
    ------
    ConfigError
        If it is no list of names.
    """
    return as_texts(found[key], key) if found.get(key, []) != [] else ()
