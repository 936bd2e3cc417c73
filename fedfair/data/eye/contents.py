"""What the model sees of chosen records: images, volumes, words and, on demand, the visual field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from fedfair.data.eye.aliases import UNKNOWN
from fedfair.data.eye.images import oct_volume, slo_image
from fedfair.data.eye.notes import text_of
from fedfair.data.eye.profiles import ARRAYS, FIELD, NOTE
from fedfair.data.eye.records import Entry
from fedfair.data.eye.scalars import array_of, keys_of, opened, scalar_of
from fedfair.data.eye.settings import DEVIATIONS, Settings
from fedfair.data.schema import Modality, TableModality, TextModality, VolumeModality
from fedfair.data.words import to_words
from fedfair.errors import DataError

Values = NDArray[np.float32]
_READERS = 4


def modality_values(
    settings: Settings, root: Path, entries: Sequence[Entry], texts: Mapping[str, str]
) -> dict[str, Values]:
    """Return the raw values of every chosen modality, float32 [n, ...], NaN where a record lacks it.

    Parameters
    ----------
    settings : Settings
        What is chosen.
    root : Path
        The data set's folder.
    entries : Sequence[Entry]
        n records.
    texts : Mapping[str, str]
        Notes from a table of notes, by name.

    Raises
    ------
    DataError
        If a member is damaged or not what it must be; it names member and file.
    """
    chosen = settings.modalities
    values = {
        name: np.full((len(entries), *_raw_shape(modality)), np.nan, np.float32)
        for name, modality in chosen.items()
    }

    def fill(place: int) -> None:
        entry = entries[place]
        try:
            _fill(settings, root / entry.file.path, entry, {n: value[place] for n, value in values.items()})
            if isinstance(note := chosen.get(NOTE), TextModality):
                text = text_of(root, entry, settings.text_field, texts)
                values[NOTE][place] = to_words([text], note)[0]
        except DataError as error:
            raise DataError(f"{error}, got otherwise in {entry.file.path}; mend or copy it") from error

    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(fill, range(len(entries))):
            pass
    return values


def _raw_shape(modality: Modality) -> tuple[int, ...]:
    """Return the shape of one record's raw values."""
    return (len(modality.columns),) if isinstance(modality, TableModality) else modality.shape


def _fill(settings: Settings, path: Path, entry: Entry, rows: Mapping[str, Values]) -> None:
    """Fill one record's arrays and visual field; no file is opened for what it lacks."""
    wanted = [name for name in rows if name in entry.seen or name == FIELD]
    if not wanted:
        return
    with opened(path) as archive:
        for name in wanted:
            if name == FIELD:
                rows[name][:] = _visual_field(archive, entry)
                continue
            raw, modality = array_of(archive, ARRAYS[name].key), settings.modalities[name]
            if isinstance(modality, VolumeModality):
                rows[name][:] = oct_volume(raw, *modality.shape[:2])
            else:
                rows[name][:] = slo_image(raw, modality.shape[-1], settings.profile.transposed)


def _visual_field(archive: ZipFile, entry: Entry) -> list[float]:
    """Return mean deviation and total deviations in dB, NaN where there are none."""
    keys = keys_of(archive)
    told = next((row["md"] for row in entry.rows if "md" in row), None)
    if told is None and "md" in keys:
        told = scalar_of(archive, "md")
    deviations = array_of(archive, "tds").ravel().tolist() if "tds" in keys else [math.nan] * DEVIATIONS
    if len(deviations) != DEVIATIONS:
        raise DataError(f"`tds` must be {DEVIATIONS} numbers")
    return [_decibels(told), *deviations]


def _decibels(told: str | None) -> float:
    """Return a mean deviation; -1 is one, not a sign for unknown."""
    try:
        return float(told or "nan")
    except ValueError as error:
        if str(told).strip().casefold() in UNKNOWN:
            return math.nan
        raise DataError("`md` must be a number or unknown") from error
