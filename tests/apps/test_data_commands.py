"""`fedfair data`: synthetic patients on the disk, what the check says of them, and a run on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fedfair.cli import main
from tests.apps.runs import rounds, run
from tests.unit.data.eye.trees import npz

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


def test_another_set_than_asked_for_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tree), "--profile", "fairvlmed"]) == 1
    first = capsys.readouterr().out.partition("\nproblems\n")[2].splitlines()[0]
    assert "must be those of Harvard-FairVLMed" in first
    assert "got what looks like Harvard-FairVision" in first
    assert f"type `fedfair data check {tree} --profile fairvision`" in first


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


def test_a_configuration_goes_from_the_phantom_to_a_folder_by_name_and_path(
    tree: Path, tmp_path: Path
) -> None:
    base = Path(__file__).parents[2] / "configs" / "phantom_noisy_group.yaml"
    config = yaml.safe_load(base.read_text(encoding="utf-8"))
    attributes = ["race", "maritalstatus", "age_group"]
    config["data"]["options"] = {"size": 16, "slices": 1, "attributes": attributes, "age_edges": [60]}
    config["data"] |= {"attribute": "age_group", "partition": {"sites": 2, "smallest": 20}}
    config |= {"rounds": 1, "report": {"resamples": 5}}
    config["training"]["local_epochs"] = 1
    found = []
    for name, path in (("phantom", None), ("fairvision", str(tree))):
        config["data"] |= {"name": name, "path": path}
        (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        last = rounds(run(tmp_path / name, (), 2, config=tmp_path / "config.yaml"))[-1]
        found.append(list(last["test"]["group_counts"]))
    assert found[0] == found[1] == ["<60", "60+"]


def test_a_split_that_the_folder_does_not_tell_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in range(8):
        npz(tmp_path / "eyes" / f"{place}.npz", race=place % 3, male=place % 2, glaucoma=place // 4)
    config = str(Path(__file__).parents[2] / "configs" / "fairvision.yaml")
    values = [f"data.path={tmp_path / 'eyes'}", "data.partition.sites=0", "data.options.cache=false"]
    sets = [part for value in values for part in ("--set", value)]
    assert main(["simulate", config, "--output", str(tmp_path / "out"), *sets]) == 1
    told = capsys.readouterr().err
    assert "must have its records in folders Training, Validation, Test or their sides in a table" in told
    assert "set `data.split: stratified`" in told
    assert told.count("\n") == 1


def test_a_tree_of_a_program_is_called_synthetic(tree: Path, tmp_path: Path) -> None:
    from fedfair.data import is_made_up

    assert is_made_up("fairvision", str(tree))
    assert not is_made_up("fairvision", str(tmp_path))
    assert not is_made_up("csv", None)
    assert is_made_up("phantom", None)
