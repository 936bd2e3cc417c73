"""One vocabulary for what the releases call by several names: keys, groups, classes, splits.

The names are those of the data sets' own pages and loaders: FairVision (arXiv 2310.02492), FairVLMed
(FairCLIP, arXiv 2403.19949) and FairFedMed (arXiv 2508.00873).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfair.errors import DataError

UNKNOWN = frozenset({"", "-1", "unknown", "unkown", "na", "nan", "?"})
"""What stands for a value that nobody noted; `unkown` is how one release spells it."""

TRAIN, VALIDATION, TEST = range(3)
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Names of folders and table values of the official split."""

SPLIT_NAMES = ("train", "validation", "test")
FILENAME = ("filename", "file_name", "file")
AGE = ("age",)
LEAKS = ("md", "tds", "note_extra")
"""Members that say the label (visual field) or the groups (note with demographics in front of it)."""

_OLDEST = 130


@dataclass(frozen=True)
class Field:
    """One column or member that takes few values.

    Attributes
    ----------
    name : str
        What fedfair calls it.
    keys : tuple[str, ...]
        What files call it, the first that is there is read.
    groups : tuple[str, ...]
        Its values; a code is the index into them.
    codes : Mapping[str, int]
        The code of each spelling, in lower case.
    """

    name: str
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    codes: Mapping[str, int]

    def find(self, source: Mapping[str, str]) -> str | None:
        """Return the key under which `source` has it, or None."""
        return next((key for key in self.keys if key in source), None)

    def code(self, text: str) -> int | None:
        """Return the code of a value, None if it says that nobody knows.

        Raises
        ------
        DataError
            If it is no known spelling; the value is not shown.
        """
        folded = plain(text)
        if folded in UNKNOWN:
            return None
        if folded not in self.codes:
            raise DataError(f"`{self.name}` must be {', '.join(self.groups)} or unknown")
        return self.codes[folded]


def plain(text: str) -> str:
    """Return a value in lower case without outer spaces, and a whole number without its point."""
    folded = text.strip().casefold()
    head, point, tail = folded.partition(".")
    return head if point and not tail.strip("0") and head.lstrip("-").isdigit() else folded


def _field(name: str, keys: tuple[str, ...], spellings: Mapping[str, tuple[str, ...]]) -> Field:
    """Return a field whose values are numbered in order; the number and the value are spellings too."""
    codes = {
        spelling: code
        for code, (group, others) in enumerate(spellings.items())
        for spelling in (str(code), group, *others)
    }
    return Field(name, keys, tuple(spellings), codes)


_RACE = {
    "asian": (),
    "black": ("black or african american", "african american"),
    "white": ("white or caucasian", "caucasian"),
}
_MARITAL = {
    "married": ("partnered", "married or partnered", "married/partnered"),
    "single": (),
    "divorced": (),
    "widowed": (),
    "separated": ("legally separated", "leg. separated", "leg-sep"),
}
_ETHNICITY = {"non-hispanic": ("non hispanic", "not hispanic"), "hispanic": ()}

ATTRIBUTES = {
    field.name: field
    for field in (
        _field("race", ("race",), _RACE),
        _field("sex", ("male", "gender", "sex"), {"female": ("f",), "male": ("m",)}),
        _field("ethnicity", ("ethnicity", "hispanic"), _ETHNICITY),
        _field("language", ("language",), {"english": (), "spanish": (), "other": ("others",)}),
        _field("maritalstatus", ("maritalstatus", "marital_status"), _MARITAL),
    )
}
"""Demographic attributes; race 0, 1, 2 (the raw codes 2, 3, 7 of FairSeg are another set's)."""

GLAUCOMA = _field("glaucoma", ("glaucoma",), {"no glaucoma": ("no",), "glaucoma": ("yes",)})

DR = Field(
    "dr",
    ("dr_subtype", "dr"),
    ("no vision-threatening dr", "vision-threatening dr"),
    {
        **dict.fromkeys(("not.in.icd.table", "no.dr.diagnosis", "no dr", "mild.npdr", "moderate.npdr"), 0),
        **dict.fromkeys(("non-vision threatening dr", "non-vision-threatening dr"), 0),
        **dict.fromkeys(("severe.npdr", "pdr", "vision threatening dr", "vision-threatening dr"), 1),
    },
)

# An early page calls the member of the AMD files `dr_subtype` too.
AMD = Field(
    "amd",
    ("amd_condition", "amd", "dr_subtype"),
    ("normal", "early amd", "intermediate amd", "late amd"),
    {
        **dict.fromkeys(("not.in.icd.table", "no.amd.diagnosis", "no amd", "normal"), 0),
        **dict.fromkeys(("early.dry", "early amd"), 1),
        **dict.fromkeys(("intermediate.dry", "intermediate amd"), 2),
        **dict.fromkeys(("advanced.atrophic.dry.with.subfoveal.involvement", "late amd"), 3),
        "advanced.atrophic.dry.without.subfoveal.involvement": 3,
        "wet.amd.active.choroidal.neovascularization": 3,
        "wet.amd.inactive.choroidal.neovascularization": 3,
        "wet.amd.inactive.scar": 3,
    },
)

DISEASES = {"glaucoma": GLAUCOMA, "amd": AMD, "dr": DR}


def split_of(text: str) -> int | None:
    """Return the official split that a table's cell names, None if it names none.

    Raises
    ------
    DataError
        If it is another word.
    """
    folded = text.strip().casefold()
    if folded in UNKNOWN:
        return None
    if folded not in SPLITS:
        raise DataError("`use` must be training, validation or test")
    return SPLITS[folded]


def age_of(text: str) -> float | None:
    """Return an age in years, None if nobody knows it.

    Raises
    ------
    DataError
        If it is no number of years (one release has days).
    """
    if plain(text) in UNKNOWN:
        return None
    try:
        years = float(text)
    except ValueError:
        years = -1.0
    if not 0 <= years <= _OLDEST:
        raise DataError(f"`age` must be years in 0 .. {_OLDEST} or unknown")
    return years
