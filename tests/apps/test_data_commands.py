"""`fedfair data`: synthetic patients on the disk, what the check says of them, and a run on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedfair.cli import main
from tests.apps.runs import rounds, run

WRITE = ("data", "phantom", "--size", "32", "--slices", "2", "--patients", "30", "--workers", "1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "eyes"
    assert main([*WRITE, "--preset", "fairvision", "--out", str(folder)]) == 0
    return folder


def test_a_phantom_is_a_tree_that_the_check_knows(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tree)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Harvard-FairVision")
    assert said.endswith("no problems\n")


def test_a_second_write_over_the_first_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WRITE, "--out", str(tree)]) == 1
    assert "`folder` must be empty or not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "phantom", "--preset", "fairvison", "--ceiling"], "did you mean `fairvision`?"),
        (["data", "check", "none"], "must be a folder that can be listed"),
        (["data", "check", ".", "--profile", "fairfedmad"], "did you mean `fairfedmed`?"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_ceiling_is_a_table_that_says_it_is_synthetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "phantom", "--preset", "noisy-group", "--ceiling"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["synthetic", "all"]
    assert [row.split()[0] for row in rows] == ["slo", "oct", "note", "cases", "others"]


def test_a_run_reads_the_tree_and_its_split(tree: Path, tmp_path: Path) -> None:
    config = {
        "name": "tree",
        "rounds": 1,
        "data": {
            "name": "fairvision",
            "path": str(tree),
            "attribute": "race*sex",
            "split": "given",
            "options": {"disease": "glaucoma", "size": 32, "slices": 2, "sites": ["MEE"]},
        },
        "model": {"options": {"hidden": [4]}},
        "report": {"resamples": 20},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    last = rounds(run(tmp_path / "out", (), 1, config=tmp_path / "config.yaml"))[-1]
    # 90 patients: 60 % to train on, 10 % to validate, 30 % to test.
    counts = last["test"]["group_counts"]
    assert len(counts) == 6
    assert sum(map(sum, counts.values())) == 27


def test_a_tree_of_a_program_is_called_synthetic(tree: Path, tmp_path: Path) -> None:
    from fedfair.data import is_made_up

    assert is_made_up("fairvision", str(tree))
    assert not is_made_up("fairvision", str(tmp_path))
    assert not is_made_up("csv", None)
    assert is_made_up("phantom", None)
