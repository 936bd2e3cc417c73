"""Drawings of squares and crosses at three sites, made by a program. No patient is behind them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedfair.data.checks import check_site
from fedfair.data.options import as_integer, entries
from fedfair.data.schema import ArrayModality, Column, Schema, SiteRecords, TableModality
from fedfair.seeding import numpy_generator

SCHEMA = Schema(
    modalities={
        "image": ArrayModality((1, 8, 8)),
        "table": TableModality((Column("size"), Column("paper", ("smooth", "rough")))),
    },
    classes=("square", "cross"),
    attributes={"ink": ("dark", "light")},
    sites=("North", "East", "South"),
)


class Shapes:
    """An adapter: the schema that all sites share, and the records of one site."""

    schema = SCHEMA

    def __init__(self, records: int, seed: int) -> None:
        self.records, self.seed = records, seed

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`: float32 modalities, NaN where missing; labels and groups from 0."""
        check_site(site, SCHEMA.sites)
        rng, n = numpy_generator(self.seed, "shapes", site), self.records
        label, ink = rng.integers(2, size=n), rng.choice(2, size=n, p=[0.7, 0.3])
        row, column = np.indices((8, 8))
        edge = (np.maximum(abs(row - 3.5), abs(column - 3.5)) == 2.5).astype(float)
        cross = ((row == column) | (row + column == 7)).astype(float)
        strength = np.array([1.0, 0.4])[ink]  # light ink is harder to see
        image = rng.normal(size=(n, 1, 8, 8))
        image[:, 0] += strength[:, None, None] * np.stack([edge, cross])[label]
        table = np.stack([rng.normal(label * 0.8, 1.0), rng.integers(2, size=n)], axis=1)
        if site == "North":
            image[rng.random(n) < 0.2] = np.nan  # some records have no image
        if site == "South":
            table[:] = np.nan  # no record of this site has the table
        modalities = {"image": image.astype(np.float32), "table": table.astype(np.float32)}
        return SiteRecords(modalities, label, {"ink": ink})


def open_shapes(path: str | None, options: Mapping[str, object], seed: int) -> Shapes:
    """Return the adapter; `path`, `options` and `seed` are what the configuration says."""
    del path  # drawn, not read
    found = {"records": 120, **entries(options, "data.options", optional=["records"])}
    return Shapes(as_integer(found["records"], "data.options.records", 1), seed)
