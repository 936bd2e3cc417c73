"""Write synthetic_clinics.csv: invented records of three invented clinics. No patient is behind them.

python examples/own_csv/make_table.py
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from fedfair.seeding import numpy_generator

TABLE = Path(__file__).with_name("synthetic_clinics.csv")
COLUMNS = ("clinic", "sex", "age", "diagnosis", "temperature", "cough", "smoker", "crp", "leucocytes")
CLINICS = {"North": 100, "East": 60, "South": 80}


def table() -> str:
    """Return the whole file."""
    rng = numpy_generator(0, "own_csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for clinic, size in CLINICS.items():
        writer.writerows(_record(rng, clinic) for _ in range(size))
    return text.getvalue()


def _record(rng: np.random.Generator, clinic: str) -> list[str]:
    """Return one row. East has no laboratory; elsewhere a cell is missing now and then."""
    sex = rng.choice(["F", "M"])
    diagnosis = rng.choice(["healthy", "viral", "bacterial"], p=[0.5, 0.25, 0.25])
    ill = diagnosis != "healthy"
    temperature = rng.normal(37.8 if ill else 37.0, 0.6)
    cough = rng.choice(["none", "dry", "productive"], p=[0.2, 0.4, 0.4] if ill else [0.6, 0.3, 0.1])
    # The blood tells less about women: a gap between groups that a method can work on.
    shift = (0.6 if sex == "F" else 1.4) * ill
    blood = [f"{rng.lognormal(1.5 + shift, 0.8):.0f}", f"{rng.normal(8 + 2 * shift, 2):.1f}"]
    if clinic == "East":
        blood = ["", ""]
    elif rng.random() < 0.1:
        blood[1] = "NA"
    smoker = rng.choice(["no", "yes"])
    age = rng.integers(20, 90)
    return [clinic, sex, str(age), diagnosis, f"{temperature:.1f}", cough, smoker, *blood]


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
