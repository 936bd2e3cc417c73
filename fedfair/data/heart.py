"""UCI Heart Disease: real records of four hospitals, shipped with the package.

918 patients who were referred for coronary angiography in the 1980s, with what three work-ups
found and whether angiography showed a narrowing above 50 %. UCI Machine Learning Repository, data
set 45, doi:10.24432/C52P4X, CC BY 4.0; principal investigators A. Janosi (Hungarian Institute of
Cardiology, Budapest), W. Steinbrunn (University Hospital, Zurich), M. Pfisterer (University
Hospital, Basel) and R. Detrano (V.A. Medical Center, Long Beach and Cleveland Clinic Foundation).
The first line of ``heart_uci.jsonl`` says what was corrected in the vendored copy.

Small and old: Switzerland has 10 women and VA Long Beach 6, and there is no race. Good for
showing that a method runs on real sites, not for clinical claims.
"""

from __future__ import annotations

import json
from importlib import resources

from fedfair.data.spec import TableSpec
from fedfair.data.table import TableAdapter

_MODALITIES = {
    "rest": ("cp", "trestbps", "chol", "fbs", "restecg"),
    "stress": ("thalch", "exang", "oldpeak", "slope"),
    "imaging": ("ca", "thal"),
}


def heart_table() -> tuple[list[dict[str, str]], dict[str, object]]:
    """Return the vendored rows, cells as a CSV file would hold them, and their `TableSpec` options."""
    lines = resources.files("fedfair.data").joinpath("heart_uci.jsonl").read_text("utf-8").splitlines()
    meta, *records = map(json.loads, lines)
    columns: list[str] = meta["columns"]
    codes: dict[str, list[str]] = meta["codes"]
    rows = [
        {
            column: "" if value is None else codes[column][value] if column in codes else str(value)
            for column, value in zip(columns, record, strict=True)
        }
        for record in records
    ]
    options: dict[str, object] = {
        "site": "site",
        "sites": codes["site"],
        "label": {"column": "num", "edges": [1], "names": ["no disease", "disease"]},
        "modalities": {name: _columns(names, codes) for name, names in _MODALITIES.items()},
        "attributes": {
            "sex": {"column": "sex", "values": {name: [name] for name in codes["sex"]}},
            "age": {"column": "age", "edges": [50, 60], "names": ["<50", "50-59", "60+"]},
        },
    }
    return rows, options


def _columns(columns: tuple[str, ...], codes: dict[str, list[str]]) -> dict[str, object]:
    """Return a modality's options: columns with a code list are categorical."""
    return {
        "numeric": [column for column in columns if column not in codes],
        "categorical": {column: codes[column] for column in columns if column in codes},
    }


def heart_spec() -> TableSpec:
    """Return what the columns of a heart table are for; a hospital's own file has the same ones."""
    return TableSpec.from_options(heart_table()[1])


def heart() -> TableAdapter:
    """Return the four sites: Cleveland 303 records, Hungary 293, Switzerland 123, VA Long Beach 199.

    Modalities by how they are obtained: `rest` (chest pain, blood pressure, cholesterol, blood
    sugar, resting ECG), `stress` (exercise test) and `imaging` (fluoroscopy, thallium scan).
    Attributes, never inputs: `sex` and `age` (``<50``, ``50-59``, ``60+``).
    """
    rows, options = heart_table()
    return TableAdapter(rows, TableSpec.from_options(options))
