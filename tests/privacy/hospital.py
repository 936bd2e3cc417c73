"""One private hospital on the real site code: records, neighbours, uploads, and noise that is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfair import wire
from fedfair.budget import site_ledger
from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.config import Config, apply, parse
from fedfair.data.encode import public_moments
from fedfair.data.schema import ArrayModality, Column, Schema, SiteRecords, TableModality
from fedfair.data.split import hashed_split
from fedfair.privacy.edge import Declaration
from fedfair.privacy.site import PrivateSite
from fedfair.site import Workbench
from fedfair.wire import Download

SITE = "north"
GROUPS = ("female", "male", "other")
SIGMA, STATISTICS_SIGMA = 2.0, 5.0
OPACUS = ("privacy.engine=opacus", "privacy.clipping=flat", "training.mode=weights", "method.name=fedavg")
LAST = 5
"""Round number of the final evaluation."""

# A learning rate and a divisor of one: what leaves is minus the noised sum itself.
PLAIN: Mapping[str, Any] = {
    "name": "private",
    "seed": 3,
    "rounds": LAST - 1,
    "data": {"name": "synthetic", "attribute": "sex", "ranges": {"sodium": [130, 150], "iron": [5, 25]}},
    "model": {"options": {"hidden": [], "embedding_dim": 6, "fusion": "attention"}},
    "method": {"name": "dual_mimo"},
    "training": {
        "mode": "update",
        "learning_rate": 1.0,
        "momentum": 0.0,
        "dtype": "float64",
        "device": "cpu",
    },
    "privacy": {
        "mode": "sample",
        "noise_multiplier": SIGMA,
        "target_delta": 1e-5,
        "sample_rate": 1.0,
        "local_steps": 1,
        "expected_batch": 1,
        "max_grad_norm": 1.0,
        "evaluation": "released",
        "statistics": {"every": 1, "bins": 8, "noise_multiplier": STATISTICS_SIGMA},
    },
}


def configured(*overrides: str) -> Config:
    """Return the configuration with ``key.sub=value`` overrides."""
    return parse(apply(PLAIN, overrides))


def schema(classes: int = 2) -> Schema:
    """Return three modalities: a table, an array, and notes that this hospital does not have."""
    table = TableModality((Column("sodium"), Column("iron"), Column("unit", ("ward", "clinic"))))
    return Schema(
        {"labs": table, "scan": ArrayModality((4,)), "notes": ArrayModality((3,))},
        tuple(f"class {c}" for c in range(classes)),
        {"sex": GROUPS, "age": ("young", "old")},
        (SITE, "south"),
    )


def patients(n: int, seed: int = 0, classes: int = 2) -> SiteRecords:
    """Return records of two of the three groups; some lack labs or scan, all lack notes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labs = np.stack([rng.normal(140, 5, n), rng.normal(15, 5, n), rng.integers(0, 2, n)], 1)
    scan = rng.normal(size=(n, 4)) + labels[:, None]
    labs[rng.random(n) < 0.2] = np.nan
    scan[rng.random(n) < 0.2] = np.nan
    values = {"labs": labs, "scan": scan, "notes": np.full((n, 3), np.nan)}
    return SiteRecords(
        {name: value.astype(np.float32) for name, value in values.items()},
        labels,
        {"sex": rng.integers(0, 2, n), "age": rng.integers(0, 2, n)},
    )


def patient(
    labs: Sequence[float] = (128, 22, 0),
    scan: Sequence[float] = (0.3, -1.2, 0.8, 2.0),
    notes: Sequence[float] = (np.nan,) * 3,
    label: int = 1,
    sex: int = 0,
    age: int = 1,
) -> SiteRecords:
    """Return one record."""
    raw = {"labs": labs, "scan": scan, "notes": notes}
    return SiteRecords(
        {name: np.array([value], np.float32) for name, value in raw.items()},
        np.array([label]),
        {"sex": np.array([sex]), "age": np.array([age])},
    )


def on_side(record: SiteRecords, side: str, config: Config) -> SiteRecords:
    """Return the record, its first observed value changed by a hair if its hash says the other side."""
    name = next(name for name, raw in record.modalities.items() if not np.isnan(raw).all())
    for step in itertools.count():
        moved = record.modalities[name].copy()
        moved[:, 0] *= 1 - 1e-6 * step
        made = SiteRecords({**record.modalities, name: moved}, record.labels, record.attributes)
        train, _ = hashed_split(made, config.data.test_fraction, config.seed, SITE)
        if (len(train) == 1) == (side == "train"):
            return made
    raise AssertionError


def joined(*parts: SiteRecords) -> SiteRecords:
    """Return all records, in order."""
    return SiteRecords(
        {name: np.concatenate([p.modalities[name] for p in parts]) for name in parts[0].modalities},
        np.concatenate([p.labels for p in parts]),
        {name: np.concatenate([p.attributes[name] for p in parts]) for name in parts[0].attributes},
    )


def without(records: SiteRecords, i: int) -> SiteRecords:
    """Return the records but one."""
    return records.select(np.delete(np.arange(len(records)), i))


@dataclass(frozen=True)
class Neighbours:
    """Two sets of records of which one has one record more."""

    name: str
    fewer: SiteRecords
    more: SiteRecords


def neighbours(
    config: Config, classes: int = 2, sides: Sequence[str] = ("train", "test")
) -> Iterator[Neighbours]:
    """Yield pairs: ordinary, rare, extreme and empty, the record in training or test set."""
    base = patients(24, classes=classes)
    missing = (np.nan,) * 4
    odd = {
        "ordinary": patient(),
        "the only one of its group": patient(sex=2),
        "the only one with notes, and all else": patient(notes=(1.0, -2.0, 0.5), sex=2),
        "notes alone": patient(missing[:3], missing, (9.0, 9.0, 9.0), sex=2),
        "far out": patient((1e6, -1e6, 1), (1e4,) * 4, (1e4, -1e4, 1e4), sex=1),
        "beyond all": patient((3e38, -3e38, 0), (3e38,) * 4, (3e38,) * 3, sex=2, label=0),
    }
    for side in sides:
        for name, record in odd.items():
            own = on_side(record, side, config)
            # At the front, so that every other record moves up.
            yield Neighbours(f"{name}, {side}", base, joined(own, base))
            yield Neighbours(f"alone and {name}, {side}", base.select(np.zeros(0, np.int64)), own)
    yield Neighbours("nothing observed", base, joined(base, patient(missing[:3], missing)))
    train, test = hashed_split(base, config.data.test_fraction, config.seed, SITE)
    for side, index in (("train", train), ("test", test)):
        if side in sides:
            yield Neighbours(f"one less, {side}", without(base, int(index[1])), base)


class Hospital:
    """An adapter of records in memory."""

    def __init__(self, records: Mapping[str, SiteRecords], shared: Schema) -> None:
        self.records, self.schema = records, shared

    def load(self, site: str) -> SiteRecords:
        return self.records[site]


class Constant:
    """Noise of one known value, and a sample of everybody: for replays."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return like.new_full(shape, self.value)

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.full(shape, self.value)

    def poisson(self, n: int, rate: float) -> Tensor:
        assert rate == 1
        return torch.ones(n, dtype=torch.bool)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def seed(self) -> int:
        return 0


@dataclass(frozen=True)
class Upload:
    """What a guard let through, and under which declarations."""

    arrays: wire.Arrays
    declared: Mapping[str, Declaration]


class Lab:
    """A model, a download and fresh private sites of one configuration."""

    def __init__(self, config: Config, folder: Path, classes: int = 2, shared: Schema | None = None) -> None:
        self.config, self.schema, self.folder = config, shared or schema(classes), folder
        self.bench = Workbench(config, self.schema)
        vectors = self.bench.vectors()
        coefficients, terms = chosen(config, self.schema)
        moments = public_moments(self.schema, config.data.ranges)
        self.download = Download(vectors, moments, coefficients, terms)

    def site(self, records: SiteRecords, noise: Constant | None = None, name: str = SITE) -> PrivateSite:
        """Return a site; with noise that is known if given."""
        adapter = Hospital({name: records}, self.schema)
        site = PrivateSite(name, self.config, adapter, site_ledger(self.config, self.folder, name), "run")
        if noise is not None:
            site._noise = lambda number, purpose: noise  # type: ignore[method-assign,assignment,return-value]
        return site

    def work(self, site: PrivateSite, number: int = 1) -> Upload:
        """Return a round's upload."""
        return self._passed(site, wire.pack_update(site.work(self.bench, self.download, number)))

    def assess(self, site: PrivateSite) -> Upload:
        """Return the upload of the final evaluation."""
        return self._passed(site, wire.pack_update(site.assess(self.bench, self.download)))

    @staticmethod
    def _passed(site: PrivateSite, arrays: wire.Arrays) -> Upload:
        declared = dict(site._declared)
        site.guard(arrays)
        # The rows are the model's own memory, which the next site moves.
        return Upload({name: np.array(value) for name, value in arrays.items()}, declared)


def chosen(config: Config, shared: Schema) -> tuple[Coefficients, LossTerms]:
    """Return coefficients away from neutral, the largest of them the rare group's, and the method's terms."""
    rng = np.random.default_rng(7)
    modalities, groups = len(shared.modalities), len(shared.attributes["sex"])
    method = config.method
    if not method.modulates:
        return Coefficients.neutral(modalities, groups, method.live), LossTerms()
    fused = rng.uniform(0.5, 1.2, (modalities + 1, groups))
    unimodal = rng.uniform(0.2, 1.0, (modalities, groups))
    fused[:, 2] += 1.0
    unimodal[:, 2] += 1.0
    terms = LossTerms()
    if method.name == "multifair":
        classes = len(shared.classes)
        scored = 1 if classes == 2 else classes
        histograms = rng.uniform(0, 9, (modalities, groups, scored, 2, config.train_bins))
        fairness = FairnessTerm(rng.normal(size=(modalities, groups)), histograms, 1.0)
        terms = LossTerms(rng.normal(size=(classes, 7)), fairness)
    return Coefficients(fused, unimodal, method.live), terms
