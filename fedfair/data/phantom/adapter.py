"""PhantomAdapter: the phantom as a data set whose sites draw their own patients."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedfair.data.cache import as_workers, images, key_of, user_cache
from fedfair.data.cache_file import Wanted
from fedfair.data.checks import check_site
from fedfair.data.eye.ages import AGE_EDGES, AGE_GROUP, age_groups, as_edges
from fedfair.data.eye.aliases import GLAUCOMA
from fedfair.data.options import (
    KEEP,
    LEAVE_OUT,
    as_integer,
    as_one_of,
    as_some_of,
    as_truth,
    entries,
)
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import RECORDED, Patients, draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.data.phantom.spec import MODALITIES, OPTIONS, PhantomSpec
from fedfair.data.phantom.write import SYNTHETIC
from fedfair.data.pixels import Codes, Pixels, Raw
from fedfair.data.schema import (
    UNKNOWN,
    ArrayModality,
    Modality,
    Schema,
    SiteRecords,
    TextModality,
    VolumeModality,
)
from fedfair.data.words import to_words

ATTRIBUTES = {**RECORDED, AGE_GROUP: age_groups(AGE_EDGES)}
"""Attributes that `PhantomAdapter` offers, with their groups; those of the age are by default cut so."""

CLASSES = GLAUCOMA.groups

# Of these the cohort itself has unknowns; others have them at sites with a rate of their own.
_COHORT_LACKS = ("ethnicity", "language", "maritalstatus")

_WORDS, _VOCABULARY = 128, 8192
_OWN = (
    *("patients", "size", "slices", "words", "vocabulary", "modalities", "attributes", "unknown"),
    *("age_edges", "cache", "workers"),
)
_VERSION = 1
"""Of the painters; one more makes all kept images out of date."""


class PhantomAdapter:
    """Synthetic eye patients; each site's are drawn from (seed, site) alone, when it is loaded.

    Age itself, the field's mean deviation and the damage are never inputs. Labels are the stored ones.

    Parameters
    ----------
    options : object
        A mapping; every key may be left out. `patients`: per site (default 1000, or what the preset says).
        `size` (64) and `slices` (8): pixels across an image, and B-scans. `words` (128) and `vocabulary`
        (8192): of a note. `modalities`: of slo, oct and note; by default slo and note for the preset
        fairvlmed, slo and oct for the others. `attributes`: of race, sex, ethnicity, language, maritalstatus
        and age_group, which `age_edges` (50, 65) cut; by default race and sex. `unknown` (leave_out): keep
        gives patients of whom an attribute is unknown a group of it. `cache` (false): whether to keep the
        images between runs. `workers`: threads that paint. All other keys as `PhantomSpec.from_options`
        reads them.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range.
    """

    def __init__(self, options: object, seed: int) -> None:
        where = "data.options"
        found = dict(entries(options, where, optional=[*_OWN, *OPTIONS]))
        own = {name: found.pop(name) for name in _OWN if name in found}
        spec = PhantomSpec.from_options(found, seed)
        if "patients" in own:
            spec = spec.with_patients(as_integer(own["patients"], f"{where}.patients", 1))
        self.spec, self._seed = spec, seed
        self._size = as_integer(own.get("size", 64), f"{where}.size", 16)
        self._slices = as_integer(own.get("slices", 8), f"{where}.slices", 1)
        words = as_integer(own.get("words", _WORDS), f"{where}.words", 1)
        self._note = TextModality(
            words, as_integer(own.get("vocabulary", _VOCABULARY), f"{where}.vocabulary", 2)
        )
        self._edges = as_edges(own.get("age_edges", AGE_EDGES), f"{where}.age_edges")
        self._cache = as_truth(own.get("cache", False), f"{where}.cache")
        self._workers = as_workers(own.get("workers"), f"{where}.workers")
        usual = ["slo", "note" if spec.preset == "fairvlmed" else "oct"]
        chosen = as_some_of(own.get("modalities", usual), f"{where}.modalities", MODALITIES)
        attributes = as_some_of(own.get("attributes", ["race", "sex"]), f"{where}.attributes", [*ATTRIBUTES])
        keeps = as_one_of(own.get("unknown", LEAVE_OUT), f"{where}.unknown", (LEAVE_OUT, KEEP)) == KEEP
        self._schema = Schema(
            {name: self._shape(name) for name in MODALITIES if name in chosen},
            CLASSES,
            {name: self._groups_of(name, keeps) for name in ATTRIBUTES if name in attributes},
            tuple(spec.sites),
        )

    def _groups_of(self, name: str, keeps: bool) -> tuple[str, ...]:
        """Return an attribute's groups; one of unknowns only where there can be any."""
        lost = name in RECORDED and any(site.unknown for site in self.spec.sites.values())
        groups = age_groups(self._edges) if name == AGE_GROUP else RECORDED[name]
        return (*groups, UNKNOWN) if keeps and (lost or name in _COHORT_LACKS) else groups

    def _shape(self, modality: str) -> Modality:
        if modality == "note":
            return self._note
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

        Patients of whom a chosen attribute is unknown are left out, unless they are kept: `left_out` counts
        them.
        """
        patients = self._all(site)
        kept = patients.take(self._known(patients))
        values: dict[str, Raw] = {**self._images(kept, site)}
        if "note" in self._schema.modalities:
            values["note"] = self._words(kept, site)
        return SiteRecords(
            {name: values[name] for name in self._schema.modalities},
            kept.stored,
            {name: self._members(kept, name) for name in self._schema.attributes},
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
            known &= self._members(patients, name) >= 0
        return known

    def _members(self, patients: Patients, name: str) -> NDArray[np.int64]:
        """Return the group of each patient, -1 where it is unknown and has no group."""
        found, groups = self._groups(patients, name), self._schema.attributes[name]
        return np.where(found < 0, groups.index(UNKNOWN), found) if UNKNOWN in groups else found

    def _images(self, patients: Patients, site: str) -> dict[str, Pixels]:
        """Return the images of all chosen modalities."""
        spec, seed, size = self.spec, self._seed, self._size

        def paint(row: int, names: Collection[str]) -> dict[str, Codes]:
            lacks = patients.missing[row]
            painted: dict[str, Codes] = {}
            if "slo" in names and not lacks[MODALITIES.index("slo")]:
                painted["slo"] = slo_of(patients, row, spec, seed, site, size)[None]
            if "oct" in names and not lacks[MODALITIES.index("oct")]:
                painted["oct"] = oct_of(patients, row, spec, seed, site, size, self._slices)
            return painted

        wanted = {
            name: self._wanted(name, patients, site) for name in self._schema.modalities if name != "note"
        }
        base = user_cache() if self._cache else None
        folder = None if base is None else base / "phantom"
        return images(wanted, len(patients), paint, self._workers, folder)

    def _wanted(self, name: str, patients: Patients, site: str) -> Wanted:
        modality = self._schema.modalities[name]
        spec = dataclasses.replace(self.spec, sites={site: self.spec.sites[site]})
        key = key_of(_VERSION, spec, self._seed, modality, patients.index.tolist())
        volume = isinstance(modality, VolumeModality)
        return Wanted(modality.shape, volume, f"{SYNTHETIC} {site}/{name}/seed {self._seed}", key)

    def _words(self, patients: Patients, site: str) -> NDArray[np.float32]:
        """Return the words of all notes."""
        lacks = patients.missing[:, MODALITIES.index("note")]
        texts = [
            None if lacking else note_of(patients, row, self.spec, self._seed, site)
            for row, lacking in enumerate(lacks.tolist())
        ]
        return to_words(texts, self._note)

    def _groups(self, patients: Patients, attribute: str) -> NDArray[np.int64]:
        """Return the recorded group of each patient, -1 unknown; the age is always known."""
        if attribute == AGE_GROUP:
            return np.digitize(patients.age, self._edges).astype(np.int64)
        return patients.group(attribute)
