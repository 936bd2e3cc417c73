"""The trees of the data sets that the phantom imitates: folders, file names, members and columns.

FairVision (glaucoma; arXiv 2310.02492), FairVLMed (FairCLIP, arXiv 2403.19949) and FairFedMed-Oph
(arXiv 2508.00873).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.phantom.devices import Bytes
from fedfair.data.phantom.notes import summary
from fedfair.data.phantom.patients import RECORDED, Patients
from fedfair.data.schema import UNKNOWN

SPLITS = ("training", "validation", "test")
TRUTH = "synthetic_truth.csv"

_DEMOGRAPHICS = ("age", "gender", "race", "ethnicity", "language", "maritalstatus")
_ATTRIBUTES = {
    "race": "race",
    "gender": "sex",
    "ethnicity": "ethnicity",
    "language": "language",
    "maritalstatus": "maritalstatus",
}
_SPELLED = {"married": "married or partnered", "separated": "legally separated"}
"""What the tables call two groups that the readers have shorter names for."""

_FAIRVISION = {"gender": "male", "ethnicity": "hispanic"}


class Entry(NamedTuple):
    """One patient of a tree: name of the file, split, site, the patients it is one of, and its row there."""

    name: str
    split: str
    site: str
    patients: Patients
    row: int


@dataclass(frozen=True)
class Layout:
    """One tree.

    Attributes
    ----------
    name : str
        As the reader's profile is called.
    shares : tuple[float, float, float]
        Of the official split.
    arrays : tuple[str, ...]
        The modalities in the .npz files.
    keys : Mapping[str, str]
        What the .npz files call each attribute.
    folders : Mapping[str, str]
        Where the files of each split are.
    """

    name: str
    shares: tuple[float, float, float]
    arrays: tuple[str, ...]
    keys: Mapping[str, str]
    folders: Mapping[str, str]

    def file(self, entry: Entry) -> str:
        """Return where a patient's file is."""
        return f"{self.folders[entry.split]}/{entry.name}"

    def members(self, entry: Entry, images: Mapping[str, Bytes]) -> dict[str, NDArray[np.generic]]:
        """Return the members of a patient's .npz file; an image that the patient lacks has length 0."""
        members: dict[str, NDArray[np.generic]] = {}
        if "oct" in self.arrays:
            members["oct_bscans"] = images["oct"]
        # FairVision stores the fundus image with its axes swapped; its loader swaps them back.
        members["slo_fundus"] = images["slo"].T if self.name == "fairvision" else images["slo"]
        patients, row = entry.patients, entry.row
        for key, attribute in self.keys.items():
            members[key] = np.array(patients.group(attribute)[row])
        if self.name == "fairvlmed":
            members["age"] = np.array(round(float(patients.age[row]), 1))
        members["glaucoma"] = np.array(patients.stored[row])
        return members


LAYOUTS = {
    "fairvision": Layout(
        "fairvision",
        (0.6, 0.1, 0.3),
        ("slo", "oct"),
        {_FAIRVISION.get(key, key): attribute for key, attribute in _ATTRIBUTES.items()},
        {use: f"Glaucoma/{use.capitalize()}" for use in SPLITS},
    ),
    "fairvlmed": Layout(
        "fairvlmed", (0.7, 0.1, 0.2), ("slo",), _ATTRIBUTES, {use: use.capitalize() for use in SPLITS}
    ),
    "fairfedmed": Layout(
        "fairfedmed", (0.8, 0.0, 0.2), ("slo", "oct"), _ATTRIBUTES, dict.fromkeys(SPLITS, "fairfedmed/all")
    ),
}


def layout_of(preset: str) -> Layout:
    """Return the tree that a preset is written as; those that imitate no data set have FairVision's."""
    return LAYOUTS[{"fairvlmed": "fairvlmed", "fairfedmed3": "fairfedmed"}.get(preset, "fairvision")]


def write_tables(
    layout: Layout, folder: Path, entries: Sequence[Entry], notes: Sequence[str], sites: Sequence[str]
) -> None:
    """Write a tree's tables, and beside them what is true of the patients.

    Parameters
    ----------
    layout : Layout
        Of the tree.
    folder : Path
        Where it is.
    entries : Sequence[Entry]
        All patients, in order.
    notes : Sequence[str]
        Theirs, for a layout that has notes.
    sites : Sequence[str]
        In the order by which FairFedMed's tables number them.
    """
    rows = [_row(entry) for entry in entries]
    if layout.name == "fairvision":
        for row, entry in zip(rows, entries, strict=True):
            row["md"] = f"{entry.patients.md[entry.row]:.2f}"
        _write(folder / "data_summary_glaucoma.csv", rows, (*_DEMOGRAPHICS, "md", "glaucoma", "use"))
    elif layout.name == "fairvlmed":
        for row, note in zip(rows, notes, strict=True):
            row.update(note=note, gpt4_summary=summary(note))
        columns = (*_DEMOGRAPHICS, "note", "gpt4_summary", "glaucoma", "use")
        _write(folder / "data_summary.csv", rows, columns)
        # The authors read the text from the third column.
        _write(folder / "gpt-4_summarized_notes.csv", rows, ("use", "gpt4_summary"))
    else:
        _write_sites(folder / "fairfedmed", rows, entries, sites)
    _write(folder / TRUTH, [_truth(entry) for entry in entries])


def _write_sites(
    folder: Path, rows: Sequence[Mapping[str, str]], entries: Sequence[Entry], sites: Sequence[str]
) -> None:
    """Write the table of all and, for each site, attribute and side, one of its files."""
    columns = (*_DEMOGRAPHICS, "glaucoma")
    _write(folder / "meta_all.csv", rows, columns)
    for number, site in enumerate(sites, start=1):
        for side, use in (("", None), ("_train", "training"), ("_test", "test")):
            own = [r for r, e in zip(rows, entries, strict=True) if e.site == site and use in (None, e.split)]
            for attribute in ("race", "language", "ethnicity", "gender"):
                _write(folder / f"meta_site{number}_{attribute}{side}.csv", own, columns)


def _row(entry: Entry) -> dict[str, str]:
    patients, row = entry.patients, entry.row
    cells = {"filename": entry.name, "age": f"{patients.age[row]:.1f}"}
    for column, attribute in _ATTRIBUTES.items():
        group = int(patients.group(attribute)[row])
        name = RECORDED[attribute][group] if group >= 0 else UNKNOWN
        cells[column] = _SPELLED.get(name, name)
    return {**cells, "glaucoma": ("no", "yes")[int(patients.stored[row])], "use": entry.split}


def _truth(entry: Entry) -> dict[str, str]:
    """Return what no official file says."""
    patients, row = entry.patients, entry.row
    return {
        "filename": entry.name,
        "synthetic": "yes",
        "site": entry.site,
        "patient": str(patients.index[row]),
        "true_race": RECORDED["race"][int(patients.race[row])],
        "true_glaucoma": ("no", "yes")[int(patients.label[row])],
        "true_md": f"{patients.md[row]:.3f}",
        "true_damage": f"{patients.damage[row]:.3f}",
    }


def _write(path: Path, rows: Sequence[Mapping[str, str]], columns: Iterable[str] | None = None) -> None:
    names = list(rows[0]) if columns is None else ["filename", *columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
