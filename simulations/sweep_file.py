"""The file that describes a privacy-budget experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fedfair.config import Config
from fedfair.errors import ConfigError, nearest
from fedfair.modulation import METHODS
from fedfair.plain import build, read_yaml
from simulations.arms import ARMS, Setting, settings


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    `base` is a private configuration, relative to the file, and `set` overrides its keys as --set
    does. `epsilons` may hold .inf, which asks for the arms without noise. `methods` modulate;
    federated averaging runs beside them. `arms` are those of `simulations/arms.py`.
    """

    name: str = "sweep"
    base: str = ""
    epsilons: Sequence[Any] = field(default_factory=list)
    methods: Sequence[str] = field(default_factory=list)
    arms: Sequence[str] = field(default_factory=lambda: list(ARMS))
    seeds: int = 5
    set: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.seeds < 1:
            raise ConfigError(f"`seeds` must be at least 1, got {self.seeds}")
        if not self.base:
            raise ConfigError("`base` must be the path of a private configuration, got none")
        if not self.epsilons or not all(map(_is_epsilon, self.epsilons)):
            raise ConfigError(f"`epsilons` must be positive numbers or .inf, got {list(self.epsilons)}")
        _check_names("methods", self.methods, [name for name in METHODS if METHODS[name]().modulates])
        _check_names("arms", self.arms, list(ARMS))

    @property
    def overrides(self) -> tuple[str, ...]:
        """`set` as --set takes it."""
        flow = {key: yaml.safe_dump(value, default_flow_style=True) for key, value in self.set.items()}
        return tuple(f"{key}={value}" for key, value in flow.items())

    def settings(self, base: Config) -> list[Setting]:
        """Return the settings to run, the largest epsilon first."""
        epsilons = sorted({float(value) for value in self.epsilons}, reverse=True)
        found = settings(base, dict.fromkeys(self.arms), list(dict.fromkeys(self.methods)), epsilons)
        if not found:
            raise ConfigError(
                f"`epsilons` must hold finite ones for the arms {list(self.arms)}, or .inf for those "
                f"without noise, got {list(self.epsilons)}"
            )
        return found


def read_sweep(path: Path, seeds: int | None = None) -> Sweep:
    """Return the sweep of a YAML file; `seeds` overrides its own.

    Raises
    ------
    ConfigError
        If the file is missing, or a key or value is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"`config` must be an existing file, got {path}")
    plain = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if isinstance(plain, dict) and "rounds" in plain:
        raise ConfigError(
            f"{path} must be a sweep, got one run's configuration; run it with `fedfair simulate`"
        )
    sweep: Sweep = build(Sweep, plain, "")
    return sweep if seeds is None else dataclasses.replace(sweep, seeds=seeds)


def _check_names(key: str, names: Sequence[Any], known: Sequence[str]) -> None:
    if not names:
        raise ConfigError(f"`{key}` must hold some of {list(known)}, got none")
    for name in names:
        if name not in known:
            raise ConfigError(f"`{key}` must be of {list(known)}, got {name!r}{nearest(str(name), known)}")


def _is_epsilon(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return float(value) > 0
    except ValueError:
        return False
