"""The options of the eye data sets, read and checked before any file is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfair.data.cache import as_workers
from fedfair.data.eye.ages import AGE_EDGES, AGE_GROUP, age_groups, as_edges
from fedfair.data.eye.aliases import ATTRIBUTES, Field
from fedfair.data.eye.notes import EXTRA, SUMMARY, TEXT_FIELDS
from fedfair.data.eye.profiles import ARRAYS, FIELD, NOTE, Profile
from fedfair.data.options import (
    KEEP,
    LEAVE_OUT,
    as_integer,
    as_one_of,
    as_some_of,
    as_text,
    as_texts,
    as_truth,
    entries,
)
from fedfair.data.schema import (
    UNKNOWN,
    ArrayModality,
    Column,
    Modality,
    TableModality,
    TextModality,
    VolumeModality,
)
from fedfair.errors import ConfigError

DEVIATIONS = 52
WHERE = "data.options"

_SPLITS = ("official", "none")
_DEFAULTS: Mapping[str, object] = {
    "disease": "glaucoma",
    "modalities": None,
    "size": 64,
    "slices": 8,
    "attributes": ["race", "sex"],
    "unknown": LEAVE_OUT,
    "age_edges": AGE_EDGES,
    "text_field": SUMMARY,
    "words": 64,
    "vocabulary": 8192,
    "sites": None,
    "site_file": None,
    "site_tables": "race",
    "split": "official",
    "allow_leakage": False,
    "allow_missing": False,
    "cache": True,
    "workers": None,
}
_OWNED = {
    **dict.fromkeys(("text_field", "words", "vocabulary"), ("fairvlmed", "notes")),
    "site_tables": ("fairfedmed", "tables of its sites"),
}
"""Options for what one set alone has: that set, and what it is."""


@dataclass(frozen=True)
class Settings:
    """The options, typed; `site_file` and `sites` are None where they were left out."""

    profile: Profile
    label: Field
    modalities: Mapping[str, Modality]
    attributes: tuple[str, ...]
    keeps_unknown: bool
    age_edges: tuple[int, ...]
    text_field: str
    sites: tuple[str, ...] | None
    site_file: str | None
    site_tables: str
    official: bool
    allow_missing: bool
    cache: bool
    workers: int

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return each chosen attribute's groups; that of unknowns comes last, if they are kept."""
        last = (UNKNOWN,) if self.keeps_unknown else ()
        return {name: (*self._groups_of(name), *last) for name in self.attributes}

    @property
    def arrays(self) -> tuple[str, ...]:
        """Return the chosen modalities that are arrays."""
        return tuple(name for name in self.modalities if name in ARRAYS)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Return the chosen attributes that are read as codes: all but the age."""
        return tuple(ATTRIBUTES[name] for name in self.attributes if name != AGE_GROUP)

    def _groups_of(self, name: str) -> tuple[str, ...]:
        return age_groups(self.age_edges) if name == AGE_GROUP else ATTRIBUTES[name].groups


def read_settings(profile: Profile, options: object) -> Settings:
    """Return the options of a data set.

    Raises
    ------
    ConfigError
        If one is unknown, of the wrong kind, or would make an input of what says the label.
    """
    given = entries(options, WHERE, optional=_DEFAULTS)
    _refuse_idle(profile, given)
    found = {**_DEFAULTS, **given}
    label = profile.disease(as_text(found["disease"], f"{WHERE}.disease"))
    leaks = as_truth(found["allow_leakage"], f"{WHERE}.allow_leakage")
    text_field = as_one_of(found["text_field"], f"{WHERE}.text_field", TEXT_FIELDS)
    if text_field == EXTRA and not leaks:
        raise _leak("text_field", EXTRA, "the note with the patient's demographics in front of it")
    sites = None if found["sites"] is None else as_texts(found["sites"], f"{WHERE}.sites")
    return Settings(
        profile,
        label,
        _modalities(profile, found, leaks),
        as_some_of(found["attributes"], f"{WHERE}.attributes", (*ATTRIBUTES, AGE_GROUP)),
        as_one_of(found["unknown"], f"{WHERE}.unknown", (LEAVE_OUT, KEEP)) == KEEP,
        as_edges(found["age_edges"], f"{WHERE}.age_edges"),
        text_field,
        sites,
        None if found["site_file"] is None else as_text(found["site_file"], f"{WHERE}.site_file"),
        as_text(found["site_tables"], f"{WHERE}.site_tables"),
        as_one_of(found["split"], f"{WHERE}.split", _SPLITS) == "official",
        as_truth(found["allow_missing"], f"{WHERE}.allow_missing"),
        as_truth(found["cache"], f"{WHERE}.cache"),
        as_workers(found["workers"], f"{WHERE}.workers"),
    )


def _refuse_idle(profile: Profile, given: Mapping[str, object]) -> None:
    """Refuse an option for what the data set does not have: it would do nothing."""
    for option, (owner, what) in _OWNED.items():
        if option in given and profile.name != owner:
            raise ConfigError(
                f"`{WHERE}.{option}` must be left out for {profile.name}, which has no {what}, got "
                f"{given[option]!r}; take it out, or set `data.name: {owner}` if your files are that set"
            )


def _modalities(profile: Profile, found: Mapping[str, object], leaks: bool) -> dict[str, Modality]:
    """Return the chosen modalities, in the order of the choice."""
    size = as_integer(found["size"], f"{WHERE}.size", 1)
    slices = as_integer(found["slices"], f"{WHERE}.slices", 1)
    words = as_integer(found["words"], f"{WHERE}.words", 1)
    vocabulary = as_integer(found["vocabulary"], f"{WHERE}.vocabulary", 2)
    known: dict[str, Modality] = {
        "slo": ArrayModality((1, size, size)),
        "oct": VolumeModality((slices, size, size)),
        NOTE: TextModality(words, vocabulary),
        FIELD: TableModality((Column("md"), *(Column(f"td{place}") for place in range(1, DEVIATIONS + 1)))),
    }
    if found["modalities"] is None:
        return {name: known[name] for name in profile.modalities}
    names = as_some_of(found["modalities"], f"{WHERE}.modalities", (*profile.modalities, FIELD))
    if FIELD in names and not leaks:
        raise _leak("modalities", FIELD, "the measurement by which glaucoma is defined")
    return {name: known[name] for name in names}


def _leak(option: str, value: str, what: str) -> ConfigError:
    return ConfigError(
        f"`{WHERE}.{option}` must not name {value} without `allow_leakage: true`, got it: it is {what}, so a "
        "model would read the answer off its input"
    )
