"""The access-controlled sets that can be read, and how they differ. None of their data is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfair.data.eye.aliases import DISEASES, Field
from fedfair.errors import ConfigError, nearest


@dataclass(frozen=True)
class Array:
    """An array member of the .npz files: its key, and the axes it must have."""

    key: str
    axes: tuple[str, ...]


ARRAYS = {
    "slo": Array("slo_fundus", ("height", "width")),
    "oct": Array("oct_bscans", ("slices", "height", "width")),
}
"""The modalities that are arrays."""

NOTE = "note"
FIELD = "visual_field"
"""Mean deviation and the 52 total deviations: they define glaucoma, so they are an input only on demand."""


@dataclass(frozen=True)
class Profile:
    """One data set.

    Attributes
    ----------
    name : str
        As `data.name` has it.
    title : str
        As its authors call it, with the paper.
    diseases : Mapping[str, Field]
        What can be predicted.
    modalities : tuple[str, ...]
        What a record has.
    transposed : bool
        Whether `slo_fundus` is stored with its axes swapped, as the authors' loader undoes.
    sites : tuple[str, ...]
        The sites that its own tables name.
    expected : str
        The files it is known by.
    """

    name: str
    title: str
    diseases: Mapping[str, Field]
    modalities: tuple[str, ...]
    transposed: bool
    sites: tuple[str, ...]
    expected: str

    def disease(self, name: str) -> Field:
        """Return the label's field.

        Raises
        ------
        ConfigError
            If the data set has no such disease.
        """
        if name not in self.diseases:
            known = list(self.diseases)
            raise ConfigError(
                f"`data.options.disease` must be one of {known}, got {name!r}{nearest(name, known)}"
            )
        return self.diseases[name]


_GLAUCOMA = {"glaucoma": DISEASES["glaucoma"]}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "fairvision",
            "Harvard-FairVision (arXiv 2310.02492)",
            DISEASES,
            ("slo", "oct"),
            True,
            (),
            "folders AMD, DR, Glaucoma with Training, Validation, Test (or train, val, test) of .npz files, "
            "and data_summary_amd.csv, data_summary_dr.csv, data_summary_glaucoma.csv",
        ),
        Profile(
            "fairvlmed",
            "Harvard-FairVLMed (FairCLIP, arXiv 2403.19949)",
            _GLAUCOMA,
            ("slo", NOTE),
            False,
            (),
            "folders Training, Validation, Test (or data/ with split_files.csv) of .npz files, and "
            "data_summary.csv with gpt-4_summarized_notes.csv",
        ),
        Profile(
            "fairfedmed",
            "FairFedMed-Oph (arXiv 2508.00873)",
            _GLAUCOMA,
            ("slo", "oct"),
            False,
            ("site1", "site2", "site3"),
            "a folder all/ of .npz files, meta_all.csv, and meta_site1_race_train.csv with its like",
        ),
    )
}


def profile_named(name: str) -> Profile:
    """Return a profile.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in PROFILES:
        raise ConfigError(f"`profile` must be one of {list(PROFILES)}, got {name!r}{nearest(name, PROFILES)}")
    return PROFILES[name]
