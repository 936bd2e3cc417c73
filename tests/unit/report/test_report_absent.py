"""Groups without any record: one line that names them, instead of rows that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfair.data.crossing import group_names
from fedfair.report import _figures, _tables, write_report
from fedfair.report._absent import absent, present, shown
from fedfair.report._load import Experiment, load

Writer = Callable[..., Path]
Change = Callable[[dict[str, NDArray[np.float64]]], None]
CROSSING = "sex*age"
EMPTY = "female & 60 and over"
CELL = 2  # of the product of sex and age, in C order


@pytest.fixture
def made(tmp_path: Path, write_experiment: Writer) -> Callable[..., Experiment]:
    """Return a function that changes the evaluations of an experiment on a crossing and reads it."""

    def make(change: Change, secure: bool = False, validation: float = 0.0) -> Experiment:
        config: Mapping[str, object] = {
            "report": {"group_min": 10, "resamples": 20},
            "secure": {"enabled": secure},
            "data": {"validation_fraction": validation},
        }
        folder = write_experiment(tmp_path / "e", seeds=[0, 1], rounds=2, attribute=CROSSING, config=config)
        for path in folder.glob("seed-*/*/evaluation.npz"):
            with np.load(path) as stored:
                arrays = dict(stored)
            change(arrays)
            np.savez_compressed(path, **arrays)
        widen(folder)
        return load(folder)

    return make


def widen(folder: Path) -> None:
    """Give every record coefficients of all six groups, each group its own."""
    import json

    for path in folder.glob("seed-*/dual_mimo/rounds.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["coefficients"]:
                row = [1.0, 1.1, 8.0, 1.2, 1.3, 1.4]
                record["coefficients"] |= {"fused": [row] * 4, "unimodal": [row] * 3}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def emptied(arrays: dict[str, NDArray[np.float64]], *names: str) -> None:
    for name in names or ("counts", "losses", "histograms", "train_counts"):
        arrays[name][:, :, CELL] = 0


def page_of(experiment: Experiment) -> str:
    folder = next(iter(experiment.runs.values())).folder.parents[1]
    return write_report(folder).read_text(encoding="utf-8")


def test_a_group_without_records_has_no_row_and_is_named(made: Callable[..., Experiment]) -> None:
    experiment = made(emptied)
    groups = [name for name in group_names(experiment.attributes, CROSSING) if name != EMPTY]
    assert absent(experiment, CROSSING) == [EMPTY]
    assert shown(experiment, CROSSING) == groups
    tables = {table.attribute: table for table in _tables.group_tables(experiment)}
    assert [row.name for row in tables[CROSSING].rows] == groups
    assert [table.attribute for table in tables.values() if table.absent] == [CROSSING]
    assert {len(row.test) for row in _tables.patient_rows(experiment)} == {5}
    heat = _figures.coefficients(experiment, "dual_mimo")
    assert heat is not None
    named = EMPTY.replace("&", "&amp;")
    assert f"fusion · {groups[-1].replace('&', '&amp;')}" in heat
    assert named not in heat
    # Nothing of its coefficients is drawn, so they do not set the scale of the colours either.
    assert ">4</text>" not in heat
    page = page_of(experiment)
    # Under the table of groups, that of patients and the coefficients; nowhere else.
    assert page.count(f'<p class="note">No records: {named}.') == page.count(named) == 3


def test_the_figures_of_the_other_groups_stay(made: Callable[..., Experiment]) -> None:
    """Rows are left out, so the counts must not slip to the next group."""

    def first_alone(arrays: dict[str, NDArray[np.float64]]) -> None:
        for name in ("counts", "losses", "histograms", "train_counts"):
            arrays[name][:, :, 0] = 0

    experiment = made(first_alone)
    (table,) = (t for t in _tables.group_tables(experiment) if t.attribute == CROSSING)
    stored = experiment.evaluations["fedavg"].counts[:, 0].sum(0)
    assert [list(row.counts) for row in table.rows] == stored[1:].astype(int).tolist()
    told = [row.test for row in _tables.patient_rows(experiment)]
    assert np.sum(told, axis=0).tolist() == stored[1:].astype(int).tolist()


def test_a_group_that_lacks_test_records_alone_is_not_estimable(made: Callable[..., Experiment]) -> None:
    experiment = made(lambda arrays: emptied(arrays, "counts", "losses", "histograms"))
    assert present(experiment, CROSSING).all()
    (table,) = (t for t in _tables.group_tables(experiment) if t.attribute == CROSSING)
    (row,) = (row for row in table.rows if row.name == EMPTY)
    assert np.isnan(row.arms[0].auc.value)
    assert "No records" not in page_of(experiment)


def test_one_record_at_one_site_in_one_seed_is_enough(made: Callable[..., Experiment]) -> None:
    left = iter([True])

    def but_one(arrays: dict[str, NDArray[np.float64]]) -> None:
        emptied(arrays)
        arrays["train_counts"][2, 0, CELL, 1] = float(next(left, False))

    assert present(made(but_one), CROSSING).all()


def unknown_training(arrays: dict[str, NDArray[np.float64]]) -> None:
    emptied(arrays)
    arrays["train_counts"][:] = 0


def unsurveyed_site(arrays: dict[str, NDArray[np.float64]]) -> None:
    emptied(arrays)
    arrays["train_counts"][1] = 0


def noised(arrays: dict[str, NDArray[np.float64]]) -> None:
    emptied(arrays)
    arrays["variance"] = np.full((len(arrays["counts"]), 3), 0.25)


@pytest.mark.parametrize("change", [unknown_training, unsurveyed_site, noised])
def test_where_nobody_can_tell_every_group_is_shown(made: Callable[..., Experiment], change: Change) -> None:
    experiment = made(change)
    assert present(experiment, CROSSING).all()
    assert "No records" not in page_of(experiment)


def test_sums_over_sites_do_not_tell_who_was_not_there(made: Callable[..., Experiment]) -> None:
    def summed(arrays: dict[str, NDArray[np.float64]]) -> None:
        emptied(arrays)
        for name, value in arrays.items():
            arrays[name] = value.sum(0, keepdims=True)

    assert present(made(summed, secure=True), CROSSING).all()


def test_validation_records_are_not_spoken_of(made: Callable[..., Experiment]) -> None:
    """They are in neither count, so the group may have some."""
    page = page_of(made(emptied, validation=0.2))
    assert "No training or test records: female &amp; 60 and over." in page
