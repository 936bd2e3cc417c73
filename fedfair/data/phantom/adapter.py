"""PhantomAdapter: the phantom as a data set whose sites draw their own patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.options import as_integer, as_mapping, as_texts
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import RECORDED, Patients, draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.data.phantom.spec import MODALITIES, PhantomSpec
from fedfair.data.schema import ArrayModality, Modality, Schema, SiteRecords, TextModality, VolumeModality
from fedfair.data.words import to_words
from fedfair.errors import ConfigError, nearest

AGE_EDGES = (50.0, 65.0)
ATTRIBUTES = {**RECORDED, "age_group": ("under 50", "50-64", "65 and over")}
"""Attributes that `PhantomAdapter` offers, with their groups."""

CLASSES = ("no glaucoma", "glaucoma")

_NOTE = TextModality(length=128, vocabulary=8192)
_OWN = ("patients", "size", "slices", "modalities", "attributes")


class PhantomAdapter:
    """Synthetic eye patients; each site's are drawn from (seed, site) alone, when it is loaded.

    Age itself, the field's mean deviation and the damage are never inputs. Labels are the stored ones.

    Parameters
    ----------
    options : object
        A mapping; every key may be left out. `patients`: per site (default 1000, or what the preset says).
        `size` (64) and `slices` (8): pixels across an image, and B-scans. `modalities`: of slo, oct and note;
        by default slo and note for the preset fairvlmed, slo and oct for the others. `attributes`: of race,
        sex, ethnicity, language, marital and age_group; by default race and sex. All other keys as
        `PhantomSpec.from_options` reads them.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range.
    """

    def __init__(self, options: object, seed: int) -> None:
        where = "data.options"
        found = dict(as_mapping(options, where))
        own = {name: found.pop(name) for name in _OWN if name in found}
        spec = PhantomSpec.from_options(found, seed)
        if "patients" in own:
            spec = spec.with_patients(as_integer(own["patients"], f"{where}.patients", 1))
        self.spec, self._seed = spec, seed
        self._size = as_integer(own.get("size", 64), f"{where}.size", 16)
        self._slices = as_integer(own.get("slices", 8), f"{where}.slices", 1)
        usual = ["slo", "note" if spec.preset == "fairvlmed" else "oct"]
        chosen = _among(own.get("modalities", usual), f"{where}.modalities", MODALITIES)
        attributes = _among(own.get("attributes", ["race", "sex"]), f"{where}.attributes", tuple(ATTRIBUTES))
        self._schema = Schema(
            {name: self._shape(name) for name in chosen},
            CLASSES,
            {name: ATTRIBUTES[name] for name in attributes},
            tuple(spec.sites),
        )

    def _shape(self, modality: str) -> Modality:
        if modality == "note":
            return _NOTE
        size = self._size
        return (
            ArrayModality((1, size, size))
            if modality == "slo"
            else VolumeModality((self._slices, size, size))
        )

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`; raise `DataError` when the schema does not name it.

        Patients of whom a chosen attribute is unknown are left out: `left_out` counts them.
        """
        patients = self._all(site)
        kept = patients.take(self._known(patients))
        return SiteRecords(
            {name: self._raw(kept, name, site) for name in self._schema.modalities},
            kept.stored,
            {name: _groups(kept, name) for name in self._schema.attributes},
        )

    def left_out(self, site: str) -> int:
        """Return how many patients of `site` are left out, an attribute of theirs being unknown."""
        return int((~self._known(self._all(site))).sum())

    def _all(self, site: str) -> Patients:
        check_site(site, self._schema.sites)
        return draw_patients(self.spec, self._seed, site)

    def _known(self, patients: Patients) -> NDArray[np.bool_]:
        known = np.ones(len(patients), dtype=bool)
        for name in self._schema.attributes:
            known &= _groups(patients, name) >= 0
        return known

    def _raw(self, patients: Patients, modality: str, site: str) -> NDArray[np.float32]:
        """Return a modality's raw values [n, ...], NaN where a patient lacks it."""
        rows = np.flatnonzero(~patients.missing[:, MODALITIES.index(modality)]).tolist()
        if modality == "note":
            texts: list[str | None] = [None] * len(patients)
            for row in rows:
                texts[row] = note_of(patients, row, self.spec, self._seed, site)
            return to_words(texts, _NOTE)
        raw = np.full((len(patients), *self._shape(modality).shape), np.nan, np.float32)
        for row in rows:
            if modality == "slo":
                raw[row, 0] = slo_of(patients, row, self.spec, self._seed, site, self._size)
            else:
                raw[row] = oct_of(patients, row, self.spec, self._seed, site, self._size, self._slices)
        raw /= 255
        return raw


def _among(value: object, where: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the chosen names in the order of `known`."""
    chosen = as_texts(value, where)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"`{where}` must be of {list(known)}, got {name!r}{nearest(name, known)}")
    return tuple(name for name in known if name in chosen)


def _groups(patients: Patients, attribute: str) -> NDArray[np.int64]:
    """Return the recorded group of each patient, -1 unknown; the age is always known."""
    if attribute == "age_group":
        return np.digitize(patients.age, AGE_EDGES).astype(np.int64)
    return patients.group(attribute)
