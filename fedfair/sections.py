"""The sections of a configuration, each a frozen dataclass that refuses what is out of range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedfair.errors import ConfigError, nearest
from fedfair.local import LocalTraining
from fedfair.modulation import METHODS

MODES = ("gradient", "update", "weights")
SPLITS = ("stratified", "hashed", "given")

MONITORED = {
    **dict.fromkeys(("auc", "es_auc", "worst_group_auc", "accuracy"), "max"),
    **dict.fromkeys(("dpd", "deodds", "log_loss", "train_loss"), "min"),
}
"""Figures of the round records that a run can be chosen by, each with its better direction."""


@dataclass(frozen=True)
class DataConfig:
    """Which data, and which attribute is modulated.

    `name` is heart, synthetic, csv or package.module:factory; `options` go to the adapter.
    `validation_fraction` of the records that are not test records are trained on neither: rounds
    are measured on them, so that a model can be chosen without looking at the test records.
    `synthetic` says that a table or an adapter of your own holds made-up records, so that the report
    says it too. `split` stratified keeps the strata's shares; hashed decides each record by itself,
    as privacy needs (null: hashed under privacy); given takes the data set's own. `ranges` gives [low,
    high] of numeric columns as public knowledge; they then standardise by it, and by nothing that the
    records tell. `partition` deals the records out to virtual sites.
    """

    name: str = "heart"
    attribute: str = "sex"
    path: str | None = None
    test_fraction: float = 0.35
    validation_fraction: float = 0.0
    synthetic: bool = False
    split: str | None = None
    ranges: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    partition: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.test_fraction < 1, "data.test_fraction", "in (0, 1)", self.test_fraction)
        require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            "in [0, 1)",
            self.validation_fraction,
        )
        require(self.split in (None, *SPLITS), "data.split", f"one of {SPLITS}", self.split)
        for column, ends in self.ranges.items():
            good = isinstance(ends, list | tuple) and len(ends) == 2 and all(map(_is_number, ends))
            require(good and ends[0] < ends[1], f"data.ranges.{column}", "[low, high]", ends)


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
    are never one round old. `mixed_precision` lets encoders compute products in bfloat16; parameters and all
    that is sent stay float32.
    """

    group_rows: str | Sequence[str] = "all"
    split_rows: bool | None = None
    exchanges: int = 1
    dtype: str = "float32"
    device: str = "auto"
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        """Check names and ranges."""
        require(self.mode in MODES, "training.mode", f"one of {MODES}", self.mode)
        for name in ("local_epochs", "batch_size", "chunk_size"):
            require(getattr(self, name) >= 1, f"training.{name}", "at least 1", getattr(self, name))
        rate = self.learning_rate
        require(0 < rate < math.inf, "training.learning_rate", "positive and finite", rate)
        require(0 <= self.momentum < 1, "training.momentum", "in [0, 1)", self.momentum)
        require(self.exchanges in (1, 2), "training.exchanges", "1 or 2", self.exchanges)
        require(self.dtype in ("float32", "float64"), "training.dtype", "float32 or float64", self.dtype)
        if self.mixed_precision:
            require(self.dtype == "float32", "training.dtype", "float32 for mixed precision", self.dtype)
        if isinstance(self.group_rows, str):
            require(self.group_rows == "all", "training.group_rows", '"all" or a list', self.group_rows)


@dataclass(frozen=True)
class ServerConfig:
    """How the server aggregates, when it commits a round, and which model it keeps.

    A round is committed if at least `min_sites` answered within `round_timeout` seconds and hold at
    least `min_group_records` training records of every known group; else it is tried again, `attempts`
    times in all before the run ends. In mode update, fresh coefficients multiply group rows within a
    factor `recombination` of those that the sites trained along (null: by the number of local steps).
    The last `keep` checkpoints are kept. `monitor` names the figure by which the best model is chosen
    (`monitor_mode` max or min; null: what is better of it), and training stops after `patience` rounds
    without improvement (null: never).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    min_sites: int = 1
    min_group_records: int = 0
    round_timeout: float = 3600.0
    attempts: int = 3
    recombination: float | None = None
    keep: int = 2
    monitor: str | None = None
    monitor_mode: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        rate = self.learning_rate
        require(0 < rate < math.inf, "server.learning_rate", "positive and finite", rate)
        require(0 <= self.momentum < 1, "server.momentum", "in [0, 1)", self.momentum)
        for name, least in (("min_sites", 1), ("min_group_records", 0), ("attempts", 1), ("keep", 2)):
            value = getattr(self, name)
            require(value >= least, f"server.{name}", f"at least {least}", value)
        limit = self.recombination
        require(limit is None or 1 <= limit <= 1e6, "server.recombination", "in [1, 1e6] or null", limit)
        require(self.round_timeout > 0, "server.round_timeout", "positive seconds", self.round_timeout)
        self._check_monitor()

    def _check_monitor(self) -> None:
        if self.monitor not in (None, *MONITORED):
            raise ConfigError(
                f"`server.monitor` must be one of {list(MONITORED)}, got {self.monitor!r}"
                f"{nearest(str(self.monitor), MONITORED)}"
            )
        require(
            self.monitor_mode in (None, "max", "min"), "server.monitor_mode", "max or min", self.monitor_mode
        )
        if self.patience is not None:
            require(self.patience >= 1, "server.patience", "at least 1", self.patience)
            require(self.monitor is not None, "server.monitor", "given where `server.patience` is", None)


@dataclass(frozen=True)
class SecureConfig:
    """Secure aggregation: the server learns the sum over sites of all that they send, and nothing of one.

    Values travel in fixed point with `bits` bits: those of a site lie within +-`bound` (counts within
    `max_records`), or the site refuses to send them. A sum is opened with up to a share `dropout` of
    the sites missing, hides the others from the server and a share `collusion` of the sites, and is
    never one of fewer than `fewest` sites.
    """

    enabled: bool = False
    bits: int = 64
    bound: float = 2.0**24
    max_records: int = 2**24
    collusion: float = 0.25
    dropout: float = 0.25
    fewest: int = 3

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.bits in (32, 64), "secure.bits", "32 or 64", self.bits)
        require(self.bound > 0, "secure.bound", "positive", self.bound)
        require(self.max_records >= 1, "secure.max_records", "at least 1", self.max_records)
        require(self.fewest >= 2, "secure.fewest", "at least 2", self.fewest)
        require(0 <= self.collusion < 1, "secure.collusion", "in [0, 1)", self.collusion)
        require(0 <= self.dropout < 1, "secure.dropout", "in [0, 1)", self.dropout)
        require(
            self.collusion + 2 * self.dropout < 1,
            "secure.dropout",
            "such that collusion + 2 dropout < 1",
            self.dropout,
        )


@dataclass(frozen=True)
class ReportConfig:
    """How results are assessed: score bins, smallest class count of a group AUC, resamples."""

    bins: int = 128
    group_min: int = 10
    resamples: int = 1000
    baseline: str = "fedavg"

    def __post_init__(self) -> None:
        """Check the ranges; an even number of bins has an edge at the threshold 0.5."""
        require(self.bins >= 2 and self.bins % 2 == 0, "report.bins", "even and at least 2", self.bins)
        require(self.group_min >= 1, "report.group_min", "at least 1", self.group_min)
        require(self.resamples >= 1, "report.resamples", "at least 1", self.resamples)
        require(self.baseline in METHODS, "report.baseline", f"one of {sorted(METHODS)}", self.baseline)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require(condition: bool, key: str, wanted: str, value: object) -> None:
    """Refuse a value by its key: what it must be, and what it is.

    Raises
    ------
    ConfigError
        Unless `condition` holds.
    """
    if not condition:
        raise ConfigError(f"`{key}` must be {wanted}, got {value!r}")
