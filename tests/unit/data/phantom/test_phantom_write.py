"""Trees: files, members, columns and values are those of the data sets that they imitate."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data.eye import EyeAdapter
from fedfair.data.phantom import PhantomAdapter, PhantomSpec, write_tree
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import RECORDED, Patients, draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.errors import ConfigError, DataError
from tests.unit.data.values import values

SITES = ("site-1", "site-2", "site-3")
NOISY = {name: {"label_noise": [0.3] * 3, "unknown": 0.1, "missing": [0.1, 0.2, 0.2]} for name in SITES}


_FIRST = ["filename", "age", "gender", "race", "ethnicity", "language", "maritalstatus"]

CODES = {
    "race": "race",
    "gender": "sex",
    "ethnicity": "ethnicity",
    "language": "language",
    "maritalstatus": "maritalstatus",
}
# The releases' own words for two groups that the readers have shorter names for.
SPELLED = {"married": "married or partnered", "separated": "legally separated"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def members(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def written(tmp_path: Path, preset: str, patients: int, **options: Any) -> Path:
    folder = tmp_path / "tree"
    told: list[None] = []
    count = write_tree(preset, 16, 3, patients, 4, folder, lambda: told.append(None), **options)
    assert count == len(told) == 3 * patients
    assert "SYNTHETIC" in (folder / "README.txt").read_text(encoding="utf-8")
    assert not folder.with_name("tree.partial").exists()
    return folder


def truth(folder: Path, spec: PhantomSpec) -> dict[str, tuple[str, int, Patients]]:
    """Return each file's site, row and patients, having compared what is said to be true with the draws."""
    sites = {site: draw_patients(spec, 4, site) for site in spec.sites}
    found = {}
    for row in table(folder / "synthetic_truth.csv"):
        assert row["synthetic"] == "yes"
        own, index = sites[row["site"]], int(row["patient"])
        assert row["true_glaucoma"] == ["no", "yes"][own.label[index]]
        assert float(row["true_damage"]) == pytest.approx(own.damage[index], abs=1e-3)
        found[row["filename"]] = (row["site"], index, own)
    assert len(set(zip([f[0] for f in found.values()], [f[1] for f in found.values()], strict=True))) == len(
        found
    )
    return found


def spec_of(preset: str, patients: int, overrides: dict[str, Any] | None = None) -> PhantomSpec:
    return PhantomSpec.from_options({"preset": preset, **(overrides or {})}, 4).with_patients(patients)


def check_row(row: dict[str, str], own: Patients, index: int) -> None:
    """Compare a table's cells with the patient; they are words, not codes."""
    assert float(row["age"]) == pytest.approx(own.age[index], abs=0.05)
    for column, attribute in CODES.items():
        group = int(own.group(attribute)[index])
        name = "unknown" if group < 0 else RECORDED[attribute][group]
        assert row[column] == SPELLED.get(name, name)
    assert row["glaucoma"] == ["no", "yes"][own.stored[index]]


def check_codes(
    found: dict[str, Any], own: Patients, index: int, codes: dict[str, str], others: set[str]
) -> None:
    """Compare an archive's members with the patient: there are these and no others, and images are bytes."""
    assert set(found) == {*codes, "glaucoma"} | others
    for key, attribute in codes.items():
        assert found[key].shape == ()
        assert found[key].dtype == np.int64
        assert found[key].item() == own.group(attribute)[index]
    assert found["glaucoma"].item() == own.stored[index]
    assert all(found[name].dtype == np.uint8 for name in others - {"age"})


def test_fairvision(tmp_path: Path) -> None:
    overrides = {"sites": NOISY}
    folder = written(tmp_path, "fairvision", 20, overrides=overrides)
    rows = table(folder / "data_summary_glaucoma.csv")
    assert list(rows[0]) == [*_FIRST, "md", "glaucoma", "use"]
    assert [row["filename"] for row in rows] == [f"data_{k:05d}.npz" for k in range(1, 61)]
    assert [row["use"] for row in rows] == ["training"] * 36 + ["validation"] * 6 + ["test"] * 18
    spec = spec_of("fairvision", 20, overrides)
    where = truth(folder, spec)
    assert {site for site, _, _ in list(where.values())[:36]} == set(SITES)  # sites are mixed over the splits
    lacking = 0
    for row in rows:
        site, index, own = where[row["filename"]]
        check_row(row, own, index)
        assert float(row["md"]) == pytest.approx(own.md[index], abs=0.0051)
        found = members(folder / "Glaucoma" / row["use"].capitalize() / row["filename"])
        codes = {"race": "race", "male": "sex", "hispanic": "ethnicity", "language": "language"}
        check_codes(
            found, own, index, {**codes, "maritalstatus": "maritalstatus"}, {"oct_bscans", "slo_fundus"}
        )
        if own.missing[index, 1]:
            assert len(found["oct_bscans"]) == 0
            lacking += 1
        else:
            np.testing.assert_array_equal(found["oct_bscans"], oct_of(own, index, spec, 4, site, 16, 3))
        if own.missing[index, 0]:
            assert found["slo_fundus"].size == 0
        else:
            np.testing.assert_array_equal(found["slo_fundus"].T, slo_of(own, index, spec, 4, site, 16))
    assert 0 < lacking < 30
    assert any(own.stored[i] != own.label[i] for _, i, own in where.values())
    assert any(row["race"] == "unknown" for row in rows)


def test_fairvlmed(tmp_path: Path) -> None:
    folder = written(tmp_path, "fairvlmed", 10, overrides={"sites": NOISY})
    rows = table(folder / "data_summary.csv")
    assert list(rows[0]) == [*_FIRST, "note", "gpt4_summary", "glaucoma", "use"]
    assert [row["use"] for row in rows] == ["training"] * 21 + ["validation"] * 3 + ["test"] * 6
    summaries = table(folder / "gpt-4_summarized_notes.csv")
    spec = spec_of("fairvlmed", 10, {"sites": NOISY})
    where = truth(folder, spec)
    lacking = 0
    for row, short in zip(rows, summaries, strict=True):
        site, index, own = where[row["filename"]]
        check_row(row, own, index)
        found = members(folder / row["use"].capitalize() / row["filename"])
        check_codes(found, own, index, CODES, {"slo_fundus", "age"})
        assert found["age"].dtype == np.float64
        assert found["age"].item() == float(row["age"])
        if not own.missing[index, 0]:
            np.testing.assert_array_equal(found["slo_fundus"], slo_of(own, index, spec, 4, site, 16))
        expected = "" if own.missing[index, 2] else note_of(own, index, spec, 4, site)
        lacking += not expected
        assert row["note"] == expected
        assert row["note"].startswith(row["gpt4_summary"])
        assert bool(row["gpt4_summary"]) == bool(expected)
        assert len(row["gpt4_summary"]) <= 180
        assert list(short.values())[::2] == [row["filename"], row["gpt4_summary"]]  # first and third column
    assert 0 < lacking < 20


def test_fairfedmed(tmp_path: Path) -> None:
    folder = written(tmp_path, "fairfedmed3", 20) / "fairfedmed"
    rows = {row["filename"]: row for row in table(folder / "meta_all.csv")}
    assert len(rows) == len(list((folder / "all").iterdir())) == 60
    spec = spec_of("fairfedmed3", 20)
    where = truth(folder.parent, spec)
    for name, row in rows.items():
        check_row(row, where[name][2], where[name][1])
        found = members(folder / "all" / name)
        check_codes(found, where[name][2], where[name][1], CODES, {"oct_bscans", "slo_fundus"})
        assert found["oct_bscans"].shape == (3, 16, 16)
    for k, site in enumerate(SITES, start=1):
        for attribute in ("race", "language", "ethnicity", "gender"):
            train, test, both = (
                [row["filename"] for row in table(folder / f"meta_site{k}_{attribute}{side}.csv")]
                for side in ("_train", "_test", "")
            )
            assert sorted(train + test) == sorted(both)
            assert {where[name][0] for name in both} == {site}
            assert len(both) == 20
    tests = sum(len(table(folder / f"meta_site{k}_race_test.csv")) for k in (1, 2, 3))
    assert tests == 12  # a fifth


@pytest.mark.parametrize(
    ("preset", "profile", "modalities"),
    [
        ("fairvision", "fairvision", ["slo", "oct"]),
        ("fairvlmed", "fairvlmed", ["slo"]),
        ("fairfedmed3", "fairfedmed", ["slo", "oct"]),
    ],
)
def test_the_reader_reads_what_the_adapter_draws(
    tmp_path: Path, preset: str, profile: str, modalities: list[str]
) -> None:
    folder = written(tmp_path, preset, 10)
    where = truth(folder, spec_of(preset, 10))
    options = {"size": 16, "modalities": modalities} | ({"slices": 3} if "oct" in modalities else {})
    reader = EyeAdapter(profile, str(folder), options, 0)
    drawn = PhantomAdapter({**options, "slices": 3, "preset": preset, "patients": 10}, 4)
    own = {site: drawn.load(site) for site in SITES}
    names = [path.name for path in sorted(folder.rglob("*.npz"))]  # the reader's order
    for number, site in enumerate(reader.schema.sites):
        found = reader.load(site)
        of_site = SITES if len(reader.schema.sites) == 1 else SITES[number : number + 1]
        rows = [where[name][:2] for name in names if where[name][0] in of_site]
        assert len(found) == len(rows)
        for k, (home, row) in enumerate(rows):
            assert found.labels[k] == own[home].labels[row]
            for name in modalities:
                np.testing.assert_array_equal(values(found, name)[k], values(own[home], name)[row])
            for name in ("race", "sex"):
                assert found.attributes[name][k] == own[home].attributes[name][row]


def test_other_presets_have_fairvisions_layout(tmp_path: Path) -> None:
    assert (written(tmp_path, "imbalanced", 1) / "data_summary_glaucoma.csv").exists()


def test_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    told: list[None] = []
    for workers in (1, 2):
        write_tree(
            "fairvision", 16, 2, 5, 0, tmp_path / str(workers), lambda: told.append(None), workers=workers
        )
    one, two = (contents(tmp_path / str(workers)) for workers in (1, 2))
    assert one == two
    assert len(one) == 15 + 3
    assert len(told) == 2 * 15
    write_tree("fairvision", 16, 2, 5, 1, tmp_path / "other")
    assert (
        contents(tmp_path / "other")["Glaucoma/Training/data_00001.npz"]
        != (one["Glaucoma/Training/data_00001.npz"])
    )


def test_an_interrupted_tree_is_left_unfinished_and_not_written_over(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tree("fairvision", 16, 1, 5, 0, tmp_path / "tree", stop)
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "tree.partial" / "Glaucoma" / "Training" / "data_00001.npz").exists()
    with pytest.raises(DataError, match=r"`folder` must have no unfinished tree beside it, got .*remove"):
        write_tree("fairvision", 16, 1, 5, 0, tmp_path / "tree")


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"`folder` must be empty or not exist, got .*full"):
        write_tree("fairvision", 16, 1, 1, 0, tmp_path / "full")
    assert not (tmp_path / "full.partial").exists()
    with pytest.raises(DataError, match=r"`folder` must be empty or not exist"):
        write_tree("fairvision", 16, 1, 1, 0, tmp_path / "full" / "mine.txt")
    (tmp_path / "empty").mkdir()
    assert write_tree("fairvision", 16, 1, 1, 0, tmp_path / "empty") == 3
    assert write_tree("fairvision", 16, 1, 1, 0, tmp_path / "new" / "inner") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fairvison", 16, 1, 1), r"`data.options.preset` must be one of .*did you mean `fairvision`"),
        (("fairvision", 15, 1, 1), r"`size` must be an integer of at least 16, got 15"),
        (("fairvision", 16, 0, 1), r"`slices` must be an integer of at least 1, got 0"),
        (("fairvision", 16, 1, 0), r"`patients` must be an integer of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, arguments: tuple[str, int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_tree(*arguments, 0, tmp_path / "tree")
    with pytest.raises(ConfigError, match=r"`workers` must be"):
        write_tree("iid", 16, 1, 1, 0, tmp_path / "tree", workers=0)
    assert not list(tmp_path.iterdir())
