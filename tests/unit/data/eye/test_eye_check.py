"""`check`: what it guesses, counts, finds wrong and keeps to itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data.eye import check
from fedfair.errors import ConfigError, DataError
from tests.unit.data.eye.test_eye_reader import BROKEN
from tests.unit.data.eye.trees import SLO, fairvision, fedmed, npz, table, vlm, vlm_members, vlm_old


def crowd(root: Path, number: int = 80, **extra: Any) -> Path:
    """Write glaucoma records, race and sex by turns, every fourth with glaucoma."""
    rows = []
    for place in range(number):
        split = ("Training", "Validation", "Test")[min(place % 4, 2)]
        name = f"data_{place:05d}.npz"
        members = {"race": place % 3, "male": place % 2, "hispanic": 0, "glaucoma": place // 2 % 2, **extra}
        npz(root / "Glaucoma" / split / name, **members)
        rows.append({"filename": name, "md": 1, "age": 60})
    table(root / "data_summary_glaucoma.csv", rows)
    return root


ONE = {"race": 0, "male": 0, "hispanic": 0, "glaucoma": 0}


def line(path: Path, what: str) -> str:
    (found,) = [x.strip() for x in check(path).lines() if x.strip().startswith(f"{what}: ")]
    return found


def test_counts_of_a_sound_set(tmp_path: Path) -> None:
    report = check(crowd(tmp_path, 120))
    assert report.profile == "fairvision"
    assert report.problems == ()
    assert list(report.lines()) == [
        "Harvard-FairVision (arXiv 2310.02492), glaucoma, 120 .npz files",
        "  tables: data_summary_glaucoma.csv",
        "  120 records without a problem",
        "  split: train 30, validation 30, test 60, unknown 0",
        "  slo: present 120, empty 0, absent 0",
        "  oct: present 120, empty 0, absent 0",
        "  age: known 120, unknown 0",
        "  glaucoma: no glaucoma 60, glaucoma 60, unknown 0",
        "  race: asian 40, black 40, white 40, unknown 0",
        "  sex: female 60, male 60, unknown 0",
        "  ethnicity: non-hispanic 120, hispanic 0, unknown 0",
        "  glaucoma by race: asian 50.0 % of 40, black 50.0 % of 40, white 50.0 % of 40",
        "  glaucoma by sex: female 50.0 % of 60, male 50.0 % of 60",
        "  glaucoma by ethnicity: non-hispanic 50.0 % of 120",
        "  race and sex: asian female 20, asian male 20, black female 20, black male 20, white female 20, "
        "white male 20",
        "  say the label or the groups, so no input unless `allow_leakage: true`: md",
        "no problems",
    ]


@pytest.mark.parametrize(
    ("write", "profile"),
    [(fairvision, "fairvision"), (vlm, "fairvlmed"), (vlm_old, "fairvlmed"), (fedmed, "fairfedmed")],
)
def test_the_set_is_guessed(tmp_path: Path, write: Callable[[Path], Path], profile: str) -> None:
    report = check(write(tmp_path))
    assert report.profile == profile
    assert report.problems == ()


def test_the_set_is_guessed_by_its_members_where_no_name_tells(tmp_path: Path) -> None:
    npz(tmp_path / "a" / "x.npz", race=1, male=1, dr_subtype="pdr")
    assert check(tmp_path / "a").profile == "fairvision"
    assert ", dr, 1 .npz files" in check(tmp_path / "a").lines()[0]
    npz(tmp_path / "b" / "x.npz", **vlm_members())
    assert check(tmp_path / "b").profile == "fairvlmed"


SETS = {"fairvision": fairvision, "fairvlmed": vlm, "fairfedmed": fedmed}
TITLES = {
    "fairvision": "Harvard-FairVision",
    "fairvlmed": "Harvard-FairVLMed",
    "fairfedmed": "FairFedMed-Oph",
}


@pytest.mark.parametrize("written", [*SETS, "fairvlmed, old"])
@pytest.mark.parametrize("asked", SETS)
def test_another_set_than_asked_for_is_a_problem(tmp_path: Path, written: str, asked: str) -> None:
    name = written.partition(",")[0]
    root = SETS.get(written, vlm_old)(tmp_path / "my data")
    report = check(root, asked)
    assert report.profile == asked
    # Of glaucoma alone, FairVision's files could be those of one's own hospital in FairFedMed's form.
    if name == asked or (name, asked) == ("fairvision", "fairfedmed"):
        assert report.problems == ()
        return
    first = report.problems[0]
    assert first.startswith(f"the files must be those of {TITLES[asked]}")
    assert f"got what looks like {TITLES[name]}" in first
    assert f"`fedfair data check '{root}' --profile {name}`" in first
    assert f"`data.name: {name}` in a configuration" in first
    assert report.lines()[-len(report.problems) - 1] == "problems"


def test_a_disease_of_one_set_alone_proves_it(tmp_path: Path) -> None:
    npz(tmp_path / "AMD" / "Training" / "data_00001.npz", race=1, male=1, amd_condition="early.dry")
    assert "got what looks like Harvard-FairVision" in check(tmp_path, "fairfedmed").problems[0]
    assert "got what looks like Harvard-FairVision" in check(tmp_path, "fairvlmed").problems[0]


@pytest.mark.parametrize("summary", ["data_summary.csv", "data_summary_glaucoma.csv"])
def test_a_name_of_glaucoma_proves_nothing(tmp_path: Path, summary: str) -> None:
    """FairVLMed's files in folders, or with a table, that are called after the disease."""
    rows = []
    for number, split in ((1, "Training"), (2, "Test")):
        name = f"data_{number:05d}.npz"
        members = vlm_members(glaucoma=number - 1, note="cup to disc ratio")
        npz(tmp_path / "set" / "glaucoma" / split / name, **members)
        rows.append(
            {"filename": name, "gender": "female", "glaucoma": ("no", "yes")[number - 1], "use": split}
        )
    table(tmp_path / "set" / summary, rows)
    assert check(tmp_path / "set", "fairvlmed").problems == ()
    assert check(tmp_path / "set").profile == "fairvlmed"
    assert "got what looks like Harvard-FairVLMed" in check(tmp_path / "set", "fairvision").problems[0]


def test_names_tell_more_than_the_first_file(tmp_path: Path) -> None:
    root = crowd(tmp_path, 20)
    for place in range(20):
        split = ("Training", "Validation", "Test")[min(place % 4, 2)]
        npz(root / "Glaucoma" / split / f"data_{place:05d}.npz", **{**ONE, "oct_bscans": None})
    assert check(root).profile == "fairvision"
    assert check(root, "fairvision").problems == (
        "`oct_bscans` must be in the .npz file: see the line on oct",
    )


def test_one_file_that_lacks_its_volume_makes_no_other_set(tmp_path: Path) -> None:
    for place in range(9):
        extra = {"oct_bscans": None} if place == 0 else {}
        npz(tmp_path / "all" / f"p{place}.npz", race=1, gender=0, glaucoma=1, **extra)
    problems = check(tmp_path, "fairfedmed").problems
    assert problems == ("`oct_bscans` must be in the .npz file: see the line on oct",)


def test_what_no_name_tells_apart_is_not_called_another_set(tmp_path: Path) -> None:
    root = tmp_path / "glaucoma"
    npz(root / "x.npz", race=1, gender=0, glaucoma=1)
    for profile in ("fairvision", "fairfedmed"):
        assert check(root, profile).problems == ()
    assert "got what looks like Harvard-FairVision" in check(root, "fairvlmed").problems[0]
    npz(root / "x.npz", **vlm_members())
    assert check(root, "fairvlmed").problems == ()
    assert "got what looks like Harvard-FairVLMed" in check(root, "fairfedmed").problems[0]


def test_three_diseases_are_told_apart(tmp_path: Path) -> None:
    fairvision(tmp_path)
    npz(tmp_path / "AMD" / "Training" / "data_00001.npz", race=1, male=1, amd_condition="early.dry")
    heads = [x for x in check(tmp_path).lines() if x.startswith("Harvard-FairVision")]
    assert [re.findall(r"\), (\w+), (\d+)", head) for head in heads] == [[("glaucoma", "4")], [("amd", "1")]]


def test_small_cells_are_hidden(tmp_path: Path) -> None:
    root = crowd(tmp_path)
    for place in range(4):
        split = ("Training", "Validation", "Test", "Test")[place]
        npz(root / "Glaucoma" / split / f"data_{place:05d}.npz", **rare(place))
    lines = "\n".join(check(root).lines())
    assert "ethnicity: non-hispanic 10 or more, hispanic <10, unknown 0" in lines
    assert "glaucoma by ethnicity: withheld" in lines
    assert "oct: present 10 or more, empty <10, absent 0" in lines
    assert "sex: female 40, male 40, unknown 0" in lines


def rare(place: int) -> dict[str, Any]:
    return {"race": place % 3, "male": place % 2, "hispanic": 1, "glaucoma": place // 2 % 2} | {
        "oct_bscans": np.zeros((0,))
    }


def test_few_records_are_not_told_about(tmp_path: Path) -> None:
    lines = check(fairvision(tmp_path)).lines()
    assert "  <10 records without a problem: nothing more is told" in lines
    assert not any("race" in x for x in lines)


def test_lacking_modalities_are_told_once_and_without_a_small_count(tmp_path: Path) -> None:
    root = crowd(tmp_path)
    npz(root / "Glaucoma" / "Training" / "data_00000.npz", oct_bscans=None, **ONE)
    report = check(root)
    assert report.problems == ("`oct_bscans` must be in the .npz file: see the line on oct",)
    assert "  oct: present 10 or more, empty 0, absent <10" in report.lines()


@pytest.mark.parametrize("case", sorted(set(BROKEN) - {"range", "no image"}))
def test_what_load_refuses_is_a_problem(tmp_path: Path, case: str) -> None:
    write, told = BROKEN[case]
    report = check(write(tmp_path))
    assert any(re.search(told, problem) for problem in report.problems), report.problems
    assert "secret" not in "".join(report.lines())


def test_a_problem_is_counted_with_its_first_five_names(tmp_path: Path) -> None:
    root = crowd(tmp_path)
    for place in range(7):
        (root / "Glaucoma" / "Training" / f"data_1000{place}.npz").write_text("no archive")
    problem, unlisted = check(root).problems
    shown = ", ".join(f"Glaucoma/Training/data_1000{k}.npz" for k in range(5))
    assert problem == f"the .npz file must be whole and readable: 7 otherwise ({shown}, ...)"
    assert unlisted.startswith("each .npz file must have its row in data_summary_glaucoma.csv: 7 otherwise")


def test_records_with_problems_are_not_in_the_counts(tmp_path: Path) -> None:
    root = crowd(tmp_path)
    table(
        root / "data_summary_glaucoma.csv",
        [{"filename": f"data_{k:05d}", "race": "martian"} for k in range(3)],
    )
    lines = check(root).lines()
    assert "  <10 records without a problem: nothing more is told" in lines  # 3 are wrong, 77 have no row
    rows = [{"filename": f"data_{k:05d}", "race": ("martian" if k < 3 else "unknown")} for k in range(80)]
    table(root / "data_summary_glaucoma.csv", rows)
    assert "  77 records without a problem" in check(root).lines()


def test_sites_of_fairfedmed(tmp_path: Path) -> None:
    for place in range(60):
        npz(tmp_path / "all" / f"p{place}.npz", race=place % 3, gender=place % 2, glaucoma=place // 2 % 2)
    for site in range(3):
        for side, start in (("train", 0), ("test", 10)):
            names = [{"filename": f"p{20 * site + start + k}.npz"} for k in range(10)]
            table(tmp_path / f"meta_site{site + 1}_race_{side}.csv", names)
    assert line(tmp_path, "site") == "site: site1 20, site2 20, site3 20, none 0"
    assert line(tmp_path, "split") == "split: train 30, validation 0, test 30, unknown 0"


def test_notes_are_covered(tmp_path: Path) -> None:
    for place in range(30):
        npz(tmp_path / "Training" / f"data_{place}.npz", **vlm_members(sex=place % 2, tds=SLO))
    rows = [{"filename": f"data_{k}.npz", "gpt4_summary": "x" * (k < 15)} for k in range(30)]
    table(tmp_path / "data_summary.csv", rows)
    assert line(tmp_path, "gpt4_summary") == "gpt4_summary: present 15, empty 0, absent 15"
    assert line(tmp_path, "note") == "note: present 0, empty 0, absent 30"
    assert any("allow_leakage: true`: tds" in x for x in check(tmp_path).lines())


def test_a_folder_that_is_no_such_set(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("")
    table(tmp_path / "patients.csv", [{"a": 1}])
    report = check(tmp_path)
    assert report.profile is None
    assert "0 .npz files, 1 tables (.csv)" in report.lines()[0]
    assert all(
        any(x.strip().startswith(f"{name}: ") for x in report.lines()) for name in ("fairvision", "fairvlmed")
    )
    assert len(report.problems) == 1
    (tmp_path / "Dataset").mkdir()
    (tmp_path / "Dataset" / "dataset.zip").write_text("")
    assert check(tmp_path).problems[0].endswith("unpack the archives")
    npz(tmp_path / "other.npz", slo_fundus=None, oct_bscans=None, weights=SLO)
    assert check(tmp_path).profile is None
    assert check(tmp_path, "fairvision").profile is None


def test_no_folder_and_no_profile(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a folder that can be listed"):
        check(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="`profile` must be one of"):
        check(tmp_path, "fairvisoin")


def test_a_table_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (crowd(tmp_path) / "data_summary_glaucoma.csv").write_bytes(b"filename,age\n\xff,1\n")
    (problem,) = check(tmp_path).problems
    assert problem.startswith("`data_summary_glaucoma.csv` must be a CSV file in UTF-8")
