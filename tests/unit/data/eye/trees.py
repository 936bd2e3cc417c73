"""Small made-up (synthetic) folders in the layouts of the real sets. No patient is behind them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(7)
SLO = RNG.integers(0, 256, (4, 6)).astype(np.uint8)
OCT = RNG.integers(0, 256, (6, 4, 4)).astype(np.uint8)

Rows = Iterable[Mapping[str, object]]


def npz(path: Path, **members: Any) -> Path:
    """Write a file, with an image of each kind unless told otherwise; None leaves one out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"slo_fundus": SLO, "oct_bscans": OCT, **members}
    np.savez(path, **{key: value for key, value in chosen.items() if value is not None})
    return path


def table(path: Path, rows: Rows, encoding: str = "utf-8") -> Path:
    """Write a CSV file, columns as in the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


GLAUCOMA = (
    # split, race, sex, ethnicity, language, marital status, glaucoma: as the .npz files have them
    ("Training", 0, 0, 0, 0, 0, 0),
    ("Training", 1, 1, 1, 1, 1, 1),
    ("Validation", 2, 0, -1, 2, -1, 1),
    ("Test", 2, 1, 0, -1, 4, 0),
)
RACE = ("asian", "black", "white")
ETHNICITY = {0: "non-hispanic", 1: "hispanic", -1: "unknown"}
LANGUAGE = {0: "english", 1: "spanish", 2: "other", -1: "unknown"}
MARITAL = {0: "married or partnered", 1: "single", 4: "legally separated", -1: "unknown"}
USE = {"Training": "training", "Validation": "validation", "Test": "test"}


def fairvision_rows() -> list[dict[str, object]]:
    """Return the table's rows of the four records."""
    return [
        {
            "filename": f"data_{place:05d}.npz",
            "age": 40 + 10 * place,
            "gender": ("female", "male")[sex],
            "race": RACE[race],
            "ethnicity": ETHNICITY[ethnicity],
            "language": LANGUAGE[language],
            "maritalstatus": MARITAL[marital],
            "md": -1.0 * place,
            "glaucoma": ("no", "yes")[glaucoma],
            "use": USE[split],
        }
        for place, (split, race, sex, ethnicity, language, marital, glaucoma) in enumerate(GLAUCOMA, start=1)
    ]


def fairvision(
    root: Path,
    folders: Mapping[str, str] | None = None,
    csv_at: str = "data_summary_glaucoma.csv",
    disease: str = "Glaucoma",
) -> Path:
    """Write four glaucoma records."""
    for place, (split, race, sex, ethnicity, language, marital, glaucoma) in enumerate(GLAUCOMA, start=1):
        npz(
            root / disease / (folders or {}).get(split, split) / f"data_{place:05d}.npz",
            **{"race": race, "male": sex, "hispanic": ethnicity, "language": language},
            **{"maritalstatus": marital, "glaucoma": glaucoma},
        )
    if csv_at:
        table(root / csv_at, fairvision_rows())
    return root


def vlm_members(sex: int = 0, race: int = 2, glaucoma: int = 1, **others: Any) -> dict[str, Any]:
    """Return the members of a FairVLMed file."""
    known = {"age": 61.5, "gender": sex, "race": race, "ethnicity": 0, "language": 0, "maritalstatus": 1}
    return {"oct_bscans": None, "slo_fundus": SLO, **known, "glaucoma": glaucoma, **others}


NOTES = ["  Cup to disc ratio of 0.7, started latanoprost. ", "Healthy discs in both eyes."]


def vlm(root: Path) -> Path:
    """Write two FairVLMed records in the released layout."""
    npz(root / "Training" / "data_00001.npz", **vlm_members(sex=0, glaucoma=1))
    npz(root / "Test" / "data_00002.npz", **vlm_members(sex=1, glaucoma=0, race=0))
    rows = [
        {
            "filename": f"data_0000{k}.npz",
            "gender": s,
            "note": n,
            "gpt4_summary": n.upper(),
            "glaucoma": g,
            "use": u,
        }
        for k, s, n, g, u in ((1, "female", NOTES[0], "yes", "training"), (2, "male", NOTES[1], "no", "test"))
    ]
    table(root / "data_summary.csv", rows)
    return root


def vlm_old(root: Path) -> Path:
    """Write the same in the old release: one folder, tables for split, records and summaries, 6 digits."""
    npz(root / "data" / "data_000001.npz", **vlm_members(sex=0, glaucoma=1))
    npz(root / "data" / "data_000002.npz", **vlm_members(sex=1, glaucoma=0, race=0))
    names = ["data_000001.npz", "data_000002.npz"]
    uses = ["train", "test"]
    table(
        root / "split_files.csv", [{"filename": n, "file_type": u} for n, u in zip(names, uses, strict=True)]
    )
    table(
        root / "meta_all.csv",
        [{"filename": n, "race": r} for n, r in zip(names, ("white", "asian"), strict=True)],
    )
    rows = [{"": n, "x": k, "y": note} for k, (n, note) in enumerate(zip(names, NOTES, strict=True))]
    table(root / "ReadMe" / "gpt-4_summarized_notes.csv", rows)
    return root


def fedmed(root: Path, family: str = "race") -> Path:
    """Write six records at three sites, two at each, the first to train."""
    for place in range(6):
        name = f"p{place}.npz"
        npz(
            root / "all" / name,
            race=place % 3,
            gender=place % 2,
            language=0,
            ethnicity=-1,
            glaucoma=place // 3,
        )
    table(root / "meta_all.csv", [{"filename": f"p{k}.npz", "glaucoma": k // 3} for k in range(6)])
    for site in range(3):
        for side, place in (("train", 2 * site), ("test", 2 * site + 1)):
            table(root / f"meta_site{site + 1}_{family}_{side}.csv", [{"filename": f"p{place}.npz"}])
        table(
            root / f"meta_site{site + 1}_{family}.csv", [{"filename": f"p{2 * site + k}.npz"} for k in (0, 1)]
        )
    return root
