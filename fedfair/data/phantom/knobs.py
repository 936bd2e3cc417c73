"""Knobs: fields of a frozen dataclass that options may set, each read as what its default is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fedfair.data.options import as_integer, as_number, as_text
from fedfair.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Spec = TypeVar("Spec", bound=DataclassInstance)


def knob(default: str | float | tuple[float, ...], low: float = -math.inf, high: float = math.inf) -> Any:  # noqa: ANN401, as dataclasses.field
    """Return a field that options may set; its value, or each of its values, lies in [low, high]."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def knob_names(spec: type[DataclassInstance]) -> list[str]:
    """Return the names of a dataclass's knobs."""
    return [field.name for field in dataclasses.fields(spec) if "range" in field.metadata]


def with_knobs(spec: Spec, found: Mapping[str, object], where: str) -> Spec:
    """Return `spec` with knobs replaced.

    Raises
    ------
    ConfigError
        If a value is of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(spec)}
    values: dict[str, Any] = {key: _value(fields[key], raw, f"{where}.{key}") for key, raw in found.items()}
    return dataclasses.replace(spec, **values)


def _value(field: dataclasses.Field[Any], value: object, where: str) -> object:
    default: Any = field.default
    if isinstance(default, str):
        return as_text(value, where)
    low, high = field.metadata["range"]
    if isinstance(default, int):
        return as_integer(value, where, low)
    if isinstance(default, float):
        return as_number(value, where, low, high)
    if not isinstance(value, (list, tuple)) or len(value) != len(default):
        raise ConfigError(f"`{where}` must be a list of {len(default)} numbers, got {value!r}")
    return tuple(as_number(item, where, low, high) for item in value)
