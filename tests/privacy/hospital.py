"""One private hospital on the real site code: configuration, uploads, and noise that is known."""

from __future__ import annotations

from collections.abc import Mapping
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
from fedfair.data.moments import public_moments
from fedfair.data.schema import Schema, SiteRecords
from fedfair.privacy.edge import Declaration
from fedfair.privacy.site import PrivateSite
from fedfair.site import Workbench
from fedfair.wire import Download
from tests.privacy.people import SITE, schema

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

    arrays: Mapping[str, NDArray[np.float64]]
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
            site._noise = lambda *_: noise  # type: ignore[method-assign,assignment]
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
        return Upload({name: np.array(value, np.float64) for name, value in arrays.items()}, declared)


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
