"""Plain data, as YAML gives it, to and from frozen dataclasses; every key and type is checked."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from fedfair.errors import ConfigError, likely


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are truth values: off, on, yes and no are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(text: str, origin: str) -> Any:  # noqa: ANN401, YAML holds anything
    """Return what a YAML text holds; `origin` names it in the message.

    Raises
    ------
    ConfigError
        If it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a safe one
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise ConfigError(f"{origin} must be valid YAML, got {where}") from error


def build(kind: type[Any], plain: object, prefix: str, everywhere: Iterable[str] | None = None) -> Any:  # noqa: ANN401, the kind decides
    """Return the dataclass `kind` built from plain data.

    Parameters
    ----------
    kind : type
        A dataclass; its annotations say what is accepted.
    plain : object
        A mapping of its fields.
    prefix : str
        Of the keys in messages, such as ``training.``.
    everywhere : Iterable[str] | None
        All dotted keys of the document, among which an unknown one may belong; by default those of `kind`.

    Raises
    ------
    ConfigError
        Naming the key that is unknown or of the wrong type.
    """
    if not isinstance(plain, Mapping):
        raise ConfigError(f"`{prefix.rstrip('.') or 'config'}` must be a section of keys, got {plain!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    everywhere = tuple(dotted_keys(kind, prefix) if everywhere is None else everywhere)
    values = {}
    for key, value in plain.items():
        if key not in known:
            hint = _belongs(str(key), prefix, everywhere) or likely(str(key), known)
            raise ConfigError(f"`{prefix}{key}` is not a known key{hint}")
        values[key] = _convert(value, hints[key], f"{prefix}{key}", everywhere)
    return kind(**values)


def dotted_keys(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a dataclass, and those of the sections in it, each with its prefix."""
    for name, hint in typing.get_type_hints(kind).items():
        if name in {f.name for f in dataclasses.fields(kind)}:
            yield f"{prefix}{name}"
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield from dotted_keys(hint, f"{prefix}{name}.")


def _belongs(key: str, prefix: str, everywhere: Iterable[str]) -> str:
    """Return a hint at the other sections that have a key of this name, or an empty string."""
    places = [place for place in everywhere if place.rpartition(".")[2] == key and place != f"{prefix}{key}"]
    words = " or ".join(f"`{place}`" for place in places)
    return f"; it belongs elsewhere, did you mean {words}?" if places else ""


def _convert(value: object, hint: object, key: str, everywhere: Iterable[str]) -> object:
    """Return `value` as the annotated type: a section, a scalar, a list or a mapping."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, f"{key}.", everywhere)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [typing.get_origin(option) or option for option in options]
    if float in kinds and isinstance(value, str):
        # YAML reads 1e-3 as text; who writes it means a number.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kinds == [Mapping] and value is None:
        return {}
    if not any(_fits(value, kind) for kind in kinds):
        wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise ConfigError(f"`{key}` must be {wanted}, got {value!r}")
    return float(value) if kinds == [float] and isinstance(value, int) else value


def _fits(value: object, kind: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Mapping:
        return isinstance(value, Mapping)
    if kind is Sequence:
        return isinstance(value, list)
    return type(value) is kind


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> str | None:
    """Return the first dotted key at which two plain configurations differ, or None."""
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            if inner := first_difference(x, y, f"{prefix}{key}."):
                return inner
        elif x != y:
            return f"{prefix}{key}"
    # Options name modalities, classes and groups in an order that counts.
    return None if list(a) == list(b) else f"{prefix}(order of keys)"


def to_plain(value: object) -> object:
    """Return JSON data: arrays become lists, NaN and infinities (not estimable) become None."""
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
