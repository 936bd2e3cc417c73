"""Configuration: one YAML per experiment, read into frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedfair.errors import ConfigError, nearest
from fedfair.modulation import METHODS, FedAvg, Method
from fedfair.plain import build, dotted_keys, read_yaml
from fedfair.privacy.settings import PrivacyConfig
from fedfair.sections import (
    DataConfig,
    ModelConfig,
    ReportConfig,
    SecureConfig,
    ServerConfig,
    TrainingConfig,
    require,
)


@dataclass(frozen=True)
class Config:
    """One experiment; see `configs/heart.yaml` for every key with its meaning."""

    name: str = "run"
    seed: int = 0
    rounds: int = 60
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Method = field(default_factory=FedAvg)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    secure: SecureConfig = field(default_factory=SecureConfig)

    def __post_init__(self) -> None:
        """Check the name and the ranges."""
        require(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        require(
            self.name != "" and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != ".",
            "name",
            "letters, digits, - _ and . (it names a folder)",
            self.name,
        )
        _check_choice(self)
        if self.privacy.on:
            _check_private(self)
        if self.secure.enabled:
            require(
                self.privacy.mode != "site",
                "secure.enabled",
                "false under `privacy.mode` site: the server then clips each site's update, and must see it",
                True,
            )

    @property
    def split(self) -> str:
        """How records are split: what `data.split` says, else hashed under privacy."""
        return self.data.split or ("hashed" if self.privacy.on else "stratified")

    @property
    def train_bins(self) -> int:
        """Q of the training signals."""
        return self.privacy.statistics.bins if self.privacy.on else self.report.bins

    @property
    def test_bins(self) -> int:
        """Q of the test signals: as fine as the report wants, unless they are released with noise."""
        private = self.privacy.on and self.privacy.evaluation == "released"
        return self.privacy.statistics.bins if private else self.report.bins

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `parse` reads back."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        plain["method"] = {"name": self.method.name, **plain["method"]}
        return plain

    def to_json(self) -> str:
        """Return the JSON that `parse_json` reads back, one text for equal configurations."""
        # Not sorted: the order of modalities, classes and groups in the options is meant.
        return json.dumps(self.to_dict())

    def digest(self) -> str:
        """Return the SHA-256 of `to_json` in hex, which tells whether two configurations are one."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``key.sub=value`` overrides.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, or a key or value is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"`config` must be an existing file, got {path}{_near_file(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text, it is not ({error.reason})") from error
    plain = read_yaml(text, str(path))
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} must hold sections of keys, got {type(plain).__name__}")
    if {"base", "epsilons"} <= plain.keys():
        raise ConfigError(f"{path} must be one run's configuration, got a sweep; run it with `fedfair sweep`")
    return parse(apply(plain, overrides))


def parse(plain: Mapping[str, Any]) -> Config:
    """Return the configuration of plain data.

    Raises
    ------
    ConfigError
        Naming the key, what it must be and the nearest known key.
    """
    values = dict(plain)
    method = values.pop("method", None)
    config: Config = build(Config, values, "", _keys())
    return config if method is None else dataclasses.replace(config, method=_parse_method(method))


@lru_cache(maxsize=16)
def parse_json(text: str) -> Config:
    """Return the configuration that the server sent as JSON; a process parses each text once."""
    return parse(json.loads(text))


def apply(plain: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `plain` with each ``key.sub=value`` set; values are read as YAML.

    Choosing another ``method.name`` drops the parameters of the method in the file.
    """
    result: dict[str, Any] = copy.deepcopy(dict(plain))
    for text in sorted(overrides, key=lambda o: not o.startswith("method.name=")):
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"`--set` must be key=value, got {text!r}")
        *parents, last = key.strip().split(".")
        node = result
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"`{key}` must lie in a section, got the value {child!r} at `{part}`")
            node = child
        new = read_yaml(value, key)
        if key == "method.name" and node.get("name") != new:
            node.clear()
        node[last] = new
    return result


def _parse_method(plain: object) -> Method:
    if not isinstance(plain, Mapping) or "name" not in plain:
        raise ConfigError(f"`method` must be a section with a `name`, got {plain!r}")
    name = str(plain["name"])
    if name not in METHODS:
        raise ConfigError(
            f"`method.name` must be one of {sorted(METHODS)}, got {name!r}{nearest(name, METHODS)}"
        )
    own = {key: value for key, value in plain.items() if key != "name"}
    method: Method = build(METHODS[name], own, "method.", _keys())
    return method


@lru_cache(maxsize=1)
def _keys() -> tuple[str, ...]:
    """Return every dotted key that some configuration has."""
    methods = (key for method in METHODS.values() for key in dotted_keys(method, "method."))
    return tuple(dict.fromkeys([*dotted_keys(Config), *methods]))


def _check_choice(config: Config) -> None:
    """Refuse to choose a model by records that must tell how good the chosen one is, or by none."""
    if (monitor := config.server.monitor) is None:
        return
    if not config.data.validation_fraction:
        raise ConfigError(
            f"`data.validation_fraction` must be above 0 where `server.monitor` {monitor} chooses a model, "
            "got 0: choosing by test records would flatter the result"
        )
    if config.privacy.on and config.privacy.evaluation == "none" and monitor != "train_loss":
        raise ConfigError(
            f"`server.monitor` must be train_loss where `privacy.evaluation` is none, got {monitor!r}"
        )


def _check_private(config: Config) -> None:
    """Refuse what would make a release depend on more than one record's bounded part."""
    mode, training, least = config.privacy.mode, config.training, config.server.min_group_records
    for condition, key, wanted, value in (
        (
            config.split != "stratified",
            "data.split",
            "hashed (or given): strata depend on all records",
            config.split,
        ),
        (training.exchanges == 1, "training.exchanges", "1: coefficients rest between releases", 2),
        (training.mode != "gradient", "training.mode", "update or weights", training.mode),
        (not training.split_rows, "training.split_rows", "false: a record is clipped once", True),
        (
            mode != "sample" or not training.mixed_precision,
            "training.mixed_precision",
            "false: the others of a batch change how bfloat16 rounds a record's gradient",
            True,
        ),
        (least == 0, "server.min_group_records", "0: nobody may know who holds how many", least),
    ):
        require(condition, key, f"{wanted} under `privacy.mode` {mode}", value)
    statistics = config.method.modulates or config.privacy.evaluation == "released"
    if statistics and config.privacy.target_epsilon is None:
        require(
            config.privacy.statistics.noise_multiplier is not None,
            "privacy.statistics.noise_multiplier",
            "given beside `privacy.noise_multiplier`, since only a target_epsilon can be shared out",
            None,
        )
    if config.privacy.engine == "opacus":
        require(mode == "sample", "privacy.engine", "functional in mode site", "opacus")
        require(
            config.privacy.clipping == "flat",
            "privacy.clipping",
            "flat for engine opacus",
            config.privacy.clipping,
        )
        rows = config.method.modulates and training.mode != "weights"
        require(not rows, "training.mode", "weights for engine opacus: it keeps no group rows", training.mode)


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
