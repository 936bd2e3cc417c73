"""What the model sees of chosen records: images, volumes, words and, on demand, the visual field."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from fedfair.data.cache import images, key_of
from fedfair.data.cache_file import Wanted
from fedfair.data.eye.aliases import UNKNOWN
from fedfair.data.eye.images import oct_volume, slo_image
from fedfair.data.eye.index import default_cache
from fedfair.data.eye.notes import text_of
from fedfair.data.eye.profiles import ARRAYS
from fedfair.data.eye.records import Entry
from fedfair.data.eye.scalars import array_of, keys_of, opened, scalar_of
from fedfair.data.eye.settings import DEVIATIONS, Settings
from fedfair.data.pixels import Codes, Raw
from fedfair.data.schema import TextModality, VolumeModality
from fedfair.data.words import to_words
from fedfair.errors import DataError

_VERSION = 1
"""Of what is done to an image; one more makes all kept images out of date."""


def modality_values(
    settings: Settings, root: Path, entries: Sequence[Entry], texts: Mapping[str, str], site: str
) -> dict[str, Raw]:
    """Return the raw values of every chosen modality: `Pixels`, or float32 [n, ...] with NaN where missing.

    Images that are kept from another time are not read again unless a file has another size or time.

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
    site : str
        Whose records they are.

    Raises
    ------
    DataError
        If a member is damaged or not what it must be; it names member and file.
    """
    wanted = {name: _wanted(settings, name, site, entries) for name in settings.arrays}
    cache = default_cache(root) if settings.cache else None

    def paint(place: int, names: Collection[str]) -> dict[str, Codes]:
        entry = entries[place]
        seen = [name for name in names if name in entry.seen]
        with _named(entry):
            # No file is opened for what it lacks.
            return _painted(settings, root / entry.file.path, seen) if seen else {}

    kept = images(wanted, len(entries), paint, settings.workers, cache)
    others: dict[str, Raw] = {
        name: _others(settings, name, root, entries, texts)
        for name in settings.modalities
        if name not in kept
    }
    return {name: kept[name] if name in kept else others[name] for name in settings.modalities}


@contextlib.contextmanager
def _named(entry: Entry) -> Iterator[None]:
    """Say in an error which file it is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}, got otherwise in {entry.file.path}; mend or copy it") from error


def _wanted(settings: Settings, name: str, site: str, entries: Sequence[Entry]) -> Wanted:
    modality = settings.modalities[name]
    volume = isinstance(modality, VolumeModality)
    files = [(tuple(entry.file), name in entry.seen) for entry in entries]
    key = key_of(_VERSION, modality, settings.profile.transposed, files)
    return Wanted(modality.shape, volume, f"{settings.label.name}/{site}/{name}", key)


def _painted(settings: Settings, path: Path, names: Sequence[str]) -> dict[str, Codes]:
    """Return a record's images."""
    with opened(path) as archive:
        return {name: _image(settings, name, array_of(archive, ARRAYS[name].key)) for name in names}


def _image(settings: Settings, name: str, raw: NDArray[Any]) -> Codes:
    modality = settings.modalities[name]
    if isinstance(modality, VolumeModality):
        return oct_volume(raw, *modality.shape[:2])
    return slo_image(raw, modality.shape[-1], settings.profile.transposed)


def _others(
    settings: Settings, name: str, root: Path, entries: Sequence[Entry], texts: Mapping[str, str]
) -> NDArray[np.float32]:
    """Return the words of the notes, or the visual fields."""
    modality = settings.modalities[name]

    def row(entry: Entry) -> NDArray[np.float32]:
        with _named(entry):
            if isinstance(modality, TextModality):
                (words,) = to_words([text_of(root, entry, settings.text_field, texts)], modality)
                return np.asarray(words)
            with opened(root / entry.file.path) as archive:
                return np.array(_visual_field(archive, entry), np.float32)

    with ThreadPoolExecutor(settings.workers) as pool:
        return np.stack(list(pool.map(row, entries)))


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
