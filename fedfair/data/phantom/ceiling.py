"""What any method can reach: the AUC of what each modality shows, before a pixel or word is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.phantom.patients import Patients, draw_patients, join
from fedfair.data.phantom.spec import MODALITIES, RACES, PhantomSpec

SEVERITY = {"mild": (-6.0, 0.0), "moderate": (-12.0, -6.0), "severe": (-np.inf, -12.0)}
"""Of cases, by mean deviation: above the first and at most the second (dB)."""

PATIENTS = 20_000


def rank_auc(cases: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return P(case > other) + P(case = other) / 2, NaN when there are none of either."""
    if not (len(cases) and len(others)):
        return float("nan")
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, cases, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(others)))


class Ceiling(NamedTuple):
    """The AUC (NaN if there are no cases or no others), and how many cases and others it compares."""

    auc: float
    cases: int
    others: int


def ceilings(patients: Patients) -> dict[str, dict[str, Ceiling]]:
    """Return the ceilings by modality and by group or severity, for the true labels.

    The score is the damage shown; a note that names glaucoma comes before all others. A severity is
    compared with all healthy patients.
    """
    found: dict[str, dict[str, Ceiling]] = {}
    case = patients.label == 1
    for m, modality in enumerate(MODALITIES):
        score = patients.seen[:, m]
        if modality == "note":
            score = np.where(patients.named, score.max() + 1 + score, score)
        found[modality] = {
            name: _compare(score[case & some], score[~case & some]) for name, some in _parts(patients)
        }
    return found


def ceiling_table(
    preset: str, overrides: Mapping[str, object] | None = None, seed: int = 0
) -> list[tuple[str, ...]]:
    """Return the ceilings of 20,000 patients as a table, its header first and counts at its end.

    Parameters
    ----------
    preset : str
        A name in `PRESETS`.
    overrides : Mapping[str, object] | None
        Knobs, as `PhantomSpec.from_options` reads them.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If the preset or a knob is unknown.
    """
    spec = PhantomSpec.from_options({**(overrides or {}), "preset": preset}, seed)
    total = sum(own.patients for own in spec.sites.values())
    counts = {site: math.ceil(PATIENTS * own.patients / total) for site, own in spec.sites.items()}
    found = ceilings(join([draw_patients(spec, seed, site, range(n)) for site, n in counts.items()]))
    rows = [
        (
            modality,
            *("not estimable" if math.isnan(cell.auc) else f"{cell.auc:.3f}" for cell in cells.values()),
        )
        for modality, cells in found.items()
    ]
    columns = found[MODALITIES[0]]
    rows.append(("cases", *(str(cell.cases) for cell in columns.values())))
    rows.append(("others", *(str(cell.others) for cell in columns.values())))
    return [("synthetic", *columns), *rows]


def _compare(cases: NDArray[np.float64], others: NDArray[np.float64]) -> Ceiling:
    return Ceiling(rank_auc(cases, others), len(cases), len(others))


def _parts(patients: Patients) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield "all", np.ones(len(patients), dtype=bool)
    for race, name in enumerate(RACES):
        yield name, patients.race == race
    for name, (low, high) in SEVERITY.items():
        yield name, (patients.label == 0) | ((patients.md > low) & (patients.md <= high))
