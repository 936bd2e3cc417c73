"""A reader of a folder: patients.csv, images/PATIENT.npz and notes/PATIENT.txt for those who have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfair.data import TableAdapter, TableSpec, read_csv
from fedfair.data.schema import ArrayModality, SiteRecords, TextModality
from fedfair.data.words import to_words
from fedfair.errors import DataError

IMAGE, NOTE = ArrayModality((1, 16, 16)), TextModality(length=24, vocabulary=256)


class Clinic:
    """An adapter: what a column map says of the table, and two modalities from files beside it."""

    def __init__(self, folder: str | None, spec: TableSpec) -> None:
        self.folder, self.spec, table = folder, spec, spec.schema()
        self.schema = replace(table, modalities={**table.modalities, "image": IMAGE, "note": NOTE})

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site` in the table's order; without its file a modality is missing."""
        if self.folder is None:
            raise DataError("`data.path` must be the clinic's folder, got none")
        folder = Path(self.folder)
        rows = read_csv(folder / "patients.csv")
        table = TableAdapter(rows, self.spec).load(site)
        patients = [row["patient"] for row in rows if row["hospital"] == site]
        images = np.stack([read_image(folder / "images" / f"{patient}.npz") for patient in patients])
        notes = to_words([read_note(folder / "notes" / f"{patient}.txt") for patient in patients], NOTE)
        return replace(table, modalities={**table.modalities, "image": images, "note": notes})


def read_image(file: Path) -> NDArray[np.float32]:
    """Return grey values in [0, 1] as [1, 16, 16], NaN without a file."""
    if not file.is_file():
        return np.full(IMAGE.shape, np.nan, np.float32)
    with np.load(file) as members:
        return np.asarray(members["image"][None] / 255, np.float32)


def read_note(file: Path) -> str | None:
    """Return a text, None without a file."""
    return file.read_text(encoding="utf-8") if file.is_file() else None


def open_clinic(path: str | None, options: Mapping[str, object], seed: int) -> Clinic:
    """Return the adapter; `path`, `options` and `seed` are what the configuration says."""
    del seed  # read, not drawn
    return Clinic(path, TableSpec.from_options(options))
