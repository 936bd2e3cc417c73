"""Dataclasses to and from canonical JSON: one value has one encoding, fit to be signed or hashed."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from fedfair.errors import PrivacyError

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return canonical JSON; bytes become hexadecimal text, a dataclass a mapping of its fields."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def decode(kind: type[T], data: object) -> T:
    """Return the dataclass that `encode` wrote; every key and type is checked.

    Raises
    ------
    PrivacyError
        If `data` is anything else.
    """
    try:
        if not isinstance(data, bytes):
            raise TypeError(f"a {type(data).__name__} instead of bytes")
        value: T = _build(kind, json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        raise PrivacyError(
            f"a message of secure aggregation must be a `{kind.__name__}` of this version, got {error}"
        ) from error
    return value


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _build(kind: Any, plain: Any) -> Any:  # noqa: ANN401, the kind decides
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if plain is None else _build(arguments[0], plain)
    if kind is bytes and isinstance(plain, str):
        return bytes.fromhex(plain)
    if origin is tuple and isinstance(plain, list):
        return tuple(_build(arguments[0], item) for item in plain)
    if origin is dict and isinstance(plain, dict):
        return {key: _build(arguments[1], item) for key, item in plain.items()}
    if dataclasses.is_dataclass(kind) and isinstance(plain, dict):
        hints = typing.get_type_hints(kind)
        if hints.keys() != plain.keys():
            raise ValueError(f"the keys {sorted(plain)} instead of {sorted(hints)}")
        return typing.cast(Any, kind)(**{name: _build(hint, plain[name]) for name, hint in hints.items()})
    if origin is None and type(plain) is kind:
        return plain
    raise TypeError(f"a {type(plain).__name__} instead of {kind}")
