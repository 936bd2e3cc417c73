"""The examples run, count right, and are what the page shows."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from examples.own_adapter.shapes import SCHEMA, open_shapes
from examples.own_csv.make_table import TABLE, table
from examples.own_folder.clinic import open_clinic
from examples.own_folder.make_clinic import HOSPITALS, write
from fedfair.cli import main
from fedfair.data import is_made_up
from fedfair.data.crossing import group_names, memberships
from fedfair.data.schema import DataAdapter
from fedfair.errors import DataError

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "your-own-data-and-model.md").read_text(encoding="utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
SHOWN = (
    *("own_csv/config.yaml", "own_adapter/shapes.py", "own_adapter/model.py", "own_adapter/config.yaml"),
    *("own_folder/clinic.py", "own_folder/config.yaml"),
)
ROUNDS = {"own_csv": 2, "own_adapter": 2, "own_folder": 8}
LONGEST = 40  # what the page promises of an adapter and of a model


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that examples/own_folder reads, made as its script makes it."""
    folder = tmp_path_factory.mktemp("clinic") / "synthetic_clinic"
    write(folder)
    return folder


def simulate(config: str, folder: Path, *overrides: str) -> None:
    """Run an example at the root of the checkout, in short."""
    settings = [part for text in ("report.resamples=20", *overrides) for part in ("--set", text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["simulate", config, *settings, "--output", str(folder)]) == 0


@pytest.fixture(scope="module", params=list(ROUNDS))
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clinic: Path
) -> tuple[str, Path]:
    """Return an example's name and the folder of a run of it, started as the page says."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    where = [f"data.path={clinic}"] if request.param == "own_folder" else []
    simulate(f"examples/{request.param}/config.yaml", folder, f"rounds={ROUNDS[request.param]}", *where)
    return request.param, folder


def test_an_example_runs_to_its_report(finished: tuple[str, Path]) -> None:
    name, folder = finished
    method = yaml.safe_load((EXAMPLES / name / "config.yaml").read_text(encoding="utf-8"))["method"]["name"]
    assert (folder / "report.html").is_file()
    for arm in ("fedavg", method):
        assert [record["round"] for record in records(folder, arm)] == list(range(ROUNDS[name] + 1))


def records(folder: Path, arm: str) -> list[dict[str, Any]]:
    lines = (folder / "seed-0" / arm / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_record_is_counted_where_it_belongs(finished: tuple[str, Path], clinic: Path) -> None:
    """By site, group of each attribute, class and modality, against a plain count of the records."""
    name, folder = finished
    schema = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))["schema"]
    with np.load(folder / "seed-0" / "fedavg" / "evaluation.npz") as stored:
        counts = stored["counts"] + stored["train_counts"]
    sizes = [len(groups) for groups in schema["attributes"].values()]
    found: Counter[tuple[str, ...]] = Counter()
    for (k, h, cell, c), number in np.ndenumerate(counts):
        index = np.unravel_index(cell, sizes)
        groups = [names[i] for names, i in zip(schema["attributes"].values(), index, strict=True)]
        head = ["fused", *schema["modalities"]][h]
        found[schema["sites"][k], head, *groups, schema["classes"][c]] += int(number)
    expected = {
        "own_csv": lambda: counted_rows(list(schema["attributes"])),
        "own_adapter": counted_shapes,
        "own_folder": lambda: counted_files(clinic),
    }
    assert +found == expected[name]()


def counted_rows(attributes: list[str]) -> Counter[tuple[str, ...]]:
    result: Counter[tuple[str, ...]] = Counter()
    for row in csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()):
        age = int(row["age"])
        group = {
            "age": "<50" if age < 50 else "50-64" if age < 65 else "65+",
            "sex": {"F": "female", "M": "male"}[row["sex"]],
        }
        heads = ["fused", "interview", *(["blood"] if row["crp"] or row["leucocytes"] else [])]
        label = "healthy" if row["diagnosis"] == "healthy" else "pneumonia"
        result.update((row["clinic"], head, *(group[a] for a in attributes), label) for head in heads)
    return result


def counted_shapes() -> Counter[tuple[str, ...]]:
    result: Counter[tuple[str, ...]] = Counter()
    for site in SCHEMA.sites:
        data = open_shapes(None, {}, seed=0).load(site)
        for i in range(len(data)):
            ink = SCHEMA.attributes["ink"][data.attributes["ink"][i]]
            heads = ["fused", *(m for m, raw in data.modalities.items() if not np.isnan(raw[i]).all())]
            result.update((site, head, ink, SCHEMA.classes[data.labels[i]]) for head in heads)
    return result


def patients(clinic: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((clinic / "patients.csv").read_text(encoding="utf-8").splitlines()))


def counted_files(clinic: Path) -> Counter[tuple[str, ...]]:
    result: Counter[tuple[str, ...]] = Counter()
    for row in patients(clinic):
        age = int(row["age"])
        groups = (
            {"F": "female", "M": "male"}[row["sex"]],
            "<50" if age < 50 else "50-69" if age < 70 else "70+",
            {"local": "local", "other": "interpreter"}[row["language"]],
        )
        heads = ["fused", "vitals"]
        heads += ["image"] if (clinic / "images" / f"{row['patient']}.npz").is_file() else []
        heads += ["note"] if (clinic / "notes" / f"{row['patient']}.txt").is_file() else []
        result.update((row["hospital"], head, *groups, row["grade"]) for head in heads)
    return result


def test_the_examples_lack_modalities(clinic: Path) -> None:
    """Else the counts above would not show that a missing one is counted as missing."""
    files = counted_files(clinic)
    assert {row[0] for row in files if row[1] == "image"} == set(HOSPITALS) - {"East"}
    by_head = {
        head: sum(n for row, n in files.items() if row[1] == head) for head in ("fused", "image", "note")
    }
    assert by_head["image"] < by_head["note"] < by_head["fused"] == sum(HOSPITALS.values())
    assert {row[0] for row in counted_rows(["age", "sex"]) if row[1] == "blood"} == {"North", "South"}
    assert {row[0] for row in counted_shapes() if row[1] == "table"} == {"North", "East"}


def test_every_field_of_a_round_is_explained(finished: tuple[str, Path]) -> None:
    _, folder = finished
    named = set(re.findall(r"`([\w.]+)`", CONCEPTS))
    assert fields(records(folder, "fedavg")[-1]) <= named


def fields(record: Mapping[str, Any]) -> set[str]:
    """Return the fields as the page names them: ``test.auc``, ``coefficients.live``, ``sites``."""
    inner = {f"{part}.{key}" for part in ("test", "coefficients") for key in record[part]}
    return inner | (record.keys() - {"test"})


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_the_file(name: str) -> None:
    language = {".py": "python", ".yaml": "yaml"}[Path(name).suffix]
    assert (EXAMPLES / name).read_text(encoding="utf-8") in blocks(language)


def test_the_page_shows_no_other_code() -> None:
    assert len(blocks("python")) + len(blocks("yaml")) == len(SHOWN)


def test_the_page_shows_the_head_of_each_table(clinic: Path) -> None:
    for table_file in (TABLE, clinic / "patients.csv"):
        head = table_file.read_text(encoding="utf-8").splitlines()[:4]
        assert "```\n" + "\n".join(head) + "\n```" in PAGE


def test_the_page_lists_files_of_the_clinic(clinic: Path) -> None:
    (listed,) = [block for block in blocks("text") if "patients.csv" in block]
    assert all((clinic / line.split()[0]).is_file() for line in listed.splitlines())
    assert {line.split("/")[0].split()[0] for line in listed.splitlines()} == {
        path.name for path in clinic.iterdir()
    }


def test_the_table_is_what_its_script_writes() -> None:
    assert TABLE.read_text(encoding="utf-8") == table()


def test_adapter_and_model_are_as_short_as_promised() -> None:
    shapes, model, clinic = (
        ast.parse((EXAMPLES / name).read_text())
        for name in ("own_adapter/shapes.py", "own_adapter/model.py", "own_folder/clinic.py")
    )
    for tree in (shapes, clinic):
        (adapter,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        assert adapter.end_lineno is not None
        assert adapter.end_lineno - adapter.lineno + 1 < LONGEST
    last = model.body[-1].end_lineno
    assert last is not None
    assert last < LONGEST


def test_the_bundle_pattern_of_the_page_extends_the_real_one() -> None:
    """A reader copies this list into pyproject.toml: it must lose nothing that is bundled today."""
    listed = re.search(r"fab-include = \[\n(.*?)\]", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL)
    assert listed is not None
    assert [block for block in blocks("toml") if block.startswith("fab-include") and listed[1] in block]


@pytest.fixture(scope="module")
def opened(clinic: Path) -> DataAdapter:
    config = yaml.safe_load((EXAMPLES / "own_folder" / "config.yaml").read_text(encoding="utf-8"))
    return open_clinic(str(clinic), config["data"]["options"], seed=0)


def test_every_file_of_the_clinic_says_that_it_is_synthetic(clinic: Path, tmp_path: Path) -> None:
    assert is_made_up("examples.own_folder.clinic:open_clinic", str(clinic))
    assert all(row["patient"].startswith("synthetic-") for row in patients(clinic))
    files = sorted(path for path in clinic.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".npz":
            with np.load(path) as members:
                assert str(members["source"]) == "synthetic"
        else:
            assert "synthetic" in path.read_text(encoding="utf-8").lower()
    assert f"{len(files) // 100 / 10:.1f}00".replace(".", ",") in PAGE
    write(tmp_path / "again")
    again = sorted(path for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_rows_images_and_notes_are_of_one_patient(clinic: Path, opened: DataAdapter) -> None:
    for site in HOSPITALS:
        records, rows = opened.load(site), [row for row in patients(clinic) if row["hospital"] == site]
        assert len(records) == len(rows)
        for i, row in enumerate(rows):
            assert opened.schema.classes[records.labels[i]] == row["grade"]
            image, file = records.modalities["image"][i, 0], clinic / "images" / f"{row['patient']}.npz"
            if file.is_file():
                with np.load(file) as members:
                    np.testing.assert_array_equal(np.round(image * 255), members["image"])
            else:
                assert np.isnan(image).all()
            note = clinic / "notes" / f"{row['patient']}.txt"
            words = len(re.findall(r"\w+", note.read_text(encoding="utf-8"))) if note.is_file() else 0
            assert np.isfinite(records.modalities["note"][i]).sum() == words


def test_a_server_has_the_clinics_schema_without_its_folder(opened: DataAdapter) -> None:
    config = yaml.safe_load((EXAMPLES / "own_folder" / "config.yaml").read_text(encoding="utf-8"))
    server = open_clinic(None, config["data"]["options"], seed=0)
    assert server.schema.digest() == opened.schema.digest()
    with pytest.raises(DataError, match=r"`data\.path` must be"):
        server.load("North")


def test_the_page_counts_the_groups_of_all_attributes_crossed(opened: DataAdapter) -> None:
    crossed = "*".join(opened.schema.attributes)
    names = group_names(opened.schema.attributes, crossed)
    every = [memberships(opened.load(site), opened.schema.attributes, crossed) for site in HOSPITALS]
    assert len(names) == 12
    smallest = np.bincount(np.concatenate(every), minlength=12).min()
    assert f"`attribute: {crossed}`, are twelve groups, the smallest\nof {smallest} patients" in PAGE


@pytest.mark.parametrize("finished", ["own_folder"], indirect=True)
def test_the_report_of_the_clinic_is_as_the_page_says(finished: tuple[str, Path]) -> None:
    _, folder = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "SYNTHETIC" in text
    assert "predict healthy, mild, moderate or severe." in text
    for attribute in ("sex", "age_group", "language", "sex*language", "age_group*language"):
        assert f" {attribute} Test records of seed 0" in text
    assert " sex*age_group (modulated) Test records" in text
    assert re.search(r"&lt;50 &amp; interpreter [\d /]+ fedavg n\.e\.", text)
    for arm in ("fedavg", "dual_mimo"):
        first, *_, last = (record["test"]["auc"] for record in records(folder, arm))
        # The standard error of one class's AUC on 336 records is about 0.03, and of a mean over four no more.
        assert last > 0.5 + 4 * 0.03
        assert last > first
    coefficients = records(folder, "dual_mimo")[-1]["coefficients"]["fused"]
    assert np.shape(coefficients) == (4, 6)
    assert np.ptp(coefficients) > 0


def test_the_table_of_the_clinic_runs_without_code(clinic: Path, tmp_path: Path) -> None:
    """By the page's own command."""
    (command,) = re.findall(
        r"^fedfair simulate (examples/own_folder.* data\.name=csv .*)$", PAGE, flags=re.MULTILINE
    )
    config, *words = command.replace("runs/synthetic_clinic", str(clinic)).split()
    simulate(config, tmp_path / "run", *words[1::2], "rounds=1")
    schema = json.loads((tmp_path / "run" / "experiment.json").read_text(encoding="utf-8"))["schema"]
    assert list(schema["modalities"]) == ["vitals"]
    assert len(schema["classes"]) == 4
