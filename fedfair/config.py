"""Configuration: one YAML per experiment, read into frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedfair.errors import ConfigError, nearest
from fedfair.local import LocalTraining
from fedfair.modulation import METHODS, FedAvg, Method
from fedfair.plain import build, read_yaml
from fedfair.privacy.settings import PrivacyConfig

MODES = ("gradient", "update", "weights")
SPLITS = ("stratified", "hashed")


@dataclass(frozen=True)
class DataConfig:
    """Which data, and which attribute is modulated.

    `name` is heart, synthetic, csv or package.module:factory; `options` go to the adapter.
    `synthetic` says that a table or an adapter of your own holds made-up records, so that the report
    says it too. `split` stratified keeps the strata's shares; hashed decides each record by itself,
    as privacy needs (null: hashed under privacy). `ranges` gives [low, high] of numeric columns as
    public knowledge; they then standardise by it, and by nothing that the records tell.
    """

    name: str = "heart"
    attribute: str = "sex"
    path: str | None = None
    test_fraction: float = 0.35
    synthetic: bool = False
    split: str | None = None
    ranges: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(0 < self.test_fraction < 1, "data.test_fraction", "in (0, 1)", self.test_fraction)
        _require(self.split in (None, *SPLITS), "data.split", f"one of {SPLITS}", self.split)
        for column, ends in self.ranges.items():
            good = isinstance(ends, list | tuple) and len(ends) == 2 and all(map(_is_number, ends))
            _require(good and ends[0] < ends[1], f"data.ranges.{column}", "[low, high]", ends)


@dataclass(frozen=True)
class ModelConfig:
    """Which model: late_fusion or package.module:factory; `options` go to its factory."""

    name: str = "late_fusion"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig(LocalTraining):
    """How sites train, and what they send.

    `mode` gradient: one exact step on all records; update: local epochs, one row per group, the
    server recombines with fresh coefficients; weights: local epochs along last round's
    coefficients, no group rows. `group_rows` names the blocks that send group rows ("all" or a
    list such as [fusion, encoder/ecg]). `split_rows` keeps the gradients of unimodal losses and terms apart
    (null: in gradient mode only). `exchanges` 2 asks for the signals first, so that coefficients
    are never one round old.
    """

    group_rows: str | Sequence[str] = "all"
    split_rows: bool | None = None
    exchanges: int = 1
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check names and ranges."""
        _require(self.mode in MODES, "training.mode", f"one of {MODES}", self.mode)
        for name in ("local_epochs", "batch_size", "chunk_size"):
            _require(getattr(self, name) >= 1, f"training.{name}", "at least 1", getattr(self, name))
        _require(self.learning_rate > 0, "training.learning_rate", "positive", self.learning_rate)
        _require(0 <= self.momentum < 1, "training.momentum", "in [0, 1)", self.momentum)
        _require(self.exchanges in (1, 2), "training.exchanges", "1 or 2", self.exchanges)
        _require(self.dtype in ("float32", "float64"), "training.dtype", "float32 or float64", self.dtype)
        if isinstance(self.group_rows, str):
            _require(self.group_rows == "all", "training.group_rows", '"all" or a list', self.group_rows)


@dataclass(frozen=True)
class ServerConfig:
    """How the server aggregates; a round with fewer than `min_sites` answers ends the run."""

    learning_rate: float = 1.0
    momentum: float = 0.0
    min_sites: int = 1
    round_timeout: float = 3600.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(self.learning_rate > 0, "server.learning_rate", "positive", self.learning_rate)
        _require(0 <= self.momentum < 1, "server.momentum", "in [0, 1)", self.momentum)
        _require(self.min_sites >= 1, "server.min_sites", "at least 1", self.min_sites)
        _require(self.round_timeout > 0, "server.round_timeout", "positive seconds", self.round_timeout)


@dataclass(frozen=True)
class ReportConfig:
    """How results are assessed: score bins, smallest class count of a group AUC, resamples."""

    bins: int = 128
    group_min: int = 10
    resamples: int = 1000
    baseline: str = "fedavg"

    def __post_init__(self) -> None:
        """Check the ranges; an even number of bins has an edge at the threshold 0.5."""
        _require(self.bins >= 2 and self.bins % 2 == 0, "report.bins", "even and at least 2", self.bins)
        _require(self.group_min >= 1, "report.group_min", "at least 1", self.group_min)
        _require(self.resamples >= 1, "report.resamples", "at least 1", self.resamples)
        _require(self.baseline in METHODS, "report.baseline", f"one of {sorted(METHODS)}", self.baseline)


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

    def __post_init__(self) -> None:
        """Check the name and the ranges."""
        _require(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        _require(
            self.name != "" and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != ".",
            "name",
            "letters, digits, - _ and . (it names a folder)",
            self.name,
        )
        if self.privacy.on:
            _check_private(self)

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
        """Return the JSON that `parse_json` reads back."""
        # Not sorted: the order of modalities, classes and groups in the options is meant.
        return json.dumps(self.to_dict())


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
    config: Config = build(Config, values, "")
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
    method: Method = build(METHODS[name], {k: v for k, v in plain.items() if k != "name"}, "method.")
    return method


def _check_private(config: Config) -> None:
    """Refuse what would make a release depend on more than one record's bounded part."""
    mode, training = config.privacy.mode, config.training
    for condition, key, wanted, value in (
        (config.split == "hashed", "data.split", "hashed: strata depend on all records", config.split),
        (training.exchanges == 1, "training.exchanges", "1: coefficients rest between releases", 2),
        (training.mode != "gradient", "training.mode", "update or weights", training.mode),
        (not training.split_rows, "training.split_rows", "false: a record is clipped once", True),
    ):
        _require(condition, key, f"{wanted} under `privacy.mode` {mode}", value)
    statistics = config.method.modulates or config.privacy.evaluation == "released"
    if statistics and config.privacy.target_epsilon is None:
        _require(
            config.privacy.statistics.noise_multiplier is not None,
            "privacy.statistics.noise_multiplier",
            "given beside `privacy.noise_multiplier`, since only a target_epsilon can be shared out",
            None,
        )
    if config.privacy.engine == "opacus":
        _require(mode == "sample", "privacy.engine", "functional in mode site", "opacus")
        _require(
            config.privacy.clipping == "flat",
            "privacy.clipping",
            "flat for engine opacus",
            config.privacy.clipping,
        )
        rows = config.method.modulates and training.mode != "weights"
        _require(
            not rows, "training.mode", "weights for engine opacus: it keeps no group rows", training.mode
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: bool, key: str, wanted: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"`{key}` must be {wanted}, got {value!r}")


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
