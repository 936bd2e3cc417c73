"""The two models that the benchmarks share: heart's three small tables, and an image beside a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedfair.batch import MultimodalBatch
from fedfair.config import Config, parse
from fedfair.data import DataAdapter, open_dataset
from fedfair.data.schema import ArrayModality, Schema, SiteRecords
from fedfair.seeding import numpy_generator

SITES = 4
RECORDS = 256
IMAGE = ArrayModality((1, 64, 64))
TABLE = ArrayModality((8,))


class Images:
    """Sites whose records are noise around a class mean: an image and a table each.

    Parameters
    ----------
    seed : int
        With the site's name, of every draw.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @property
    def schema(self) -> Schema:
        """Two modalities, two classes, two groups."""
        sites = tuple(f"site {k}" for k in range(1, SITES + 1))
        return Schema(
            {"image": IMAGE, "table": TABLE}, ("healthy", "ill"), {"sex": ("female", "male")}, sites
        )

    def load(self, site: str) -> SiteRecords:
        """Return the records of one site."""
        rng = numpy_generator(self.seed, site)
        labels = rng.integers(2, size=RECORDS)
        modalities = {}
        for name, modality in (("image", IMAGE), ("table", TABLE)):
            noise = rng.standard_normal((RECORDS, *modality.shape))
            mean = labels.reshape(-1, *[1] * len(modality.shape))
            modalities[name] = (noise + 0.5 * mean).astype(np.float32)
        return SiteRecords(modalities, labels, {"sex": rng.integers(2, size=RECORDS)})


def images(path: str | None, options: Mapping[str, object], seed: int) -> Images:
    """Return the data set, as ``data.name: benchmarks._cases:images`` asks for it."""
    del path, options
    return Images(seed)


HEART: dict[str, Any] = {"data": {"name": "heart"}, "training": {"batch_size": 32}}
IMAGES: dict[str, Any] = {
    "data": {"name": "benchmarks._cases:images"},
    "model": {
        "options": {"hidden": [16, 32, 32], "embedding_dim": 32, "hidden_by_modality": {"table": [32]}}
    },
    "training": {"batch_size": 64},
}
CASES = {"heart": HEART, "image + table": IMAGES}


def open_case(name: str, changes: Mapping[str, Mapping[str, Any]]) -> tuple[Config, DataAdapter]:
    """Return the configuration of a case, its sections updated by `changes`, and its data."""
    plain = {key: {**CASES[name].get(key, {}), **changes.get(key, {})} for key in {*CASES[name], *changes}}
    config = parse(plain)
    return config, open_dataset(config.data.name, config.data.path, config.data.options, config.seed)


def batch(schema: Schema, shares: tuple[float, ...], records: int) -> MultimodalBatch:
    """Return one random batch; the groups have these shares of its records."""
    rng = np.random.default_rng(0)
    bounds = np.round(np.cumsum(shares) * records).astype(int)
    groups = rng.permutation(np.searchsorted(bounds, np.arange(records), side="right"))
    return MultimodalBatch(
        {
            name: torch.tensor(rng.standard_normal((records, *modality.shape)), dtype=torch.float32)
            for name, modality in schema.modalities.items()
        },
        torch.ones(records, len(schema.modalities), dtype=torch.bool),
        torch.tensor(rng.integers(len(schema.classes), size=records)),
        torch.tensor(groups),
    )
