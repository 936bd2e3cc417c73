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
from fedfair.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs" / "your-own-data-and-model.md").read_text(encoding="utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
SHOWN = ("own_csv/config.yaml", "own_adapter/shapes.py", "own_adapter/model.py", "own_adapter/config.yaml")
LONGEST = 40  # what the page promises of an adapter and of a model


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", params=["own_csv", "own_adapter"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return an example's name and the folder of a run of it, started as the page says."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    config = f"examples/{request.param}/config.yaml"
    short = ["--set", "rounds=2", "--set", "report.resamples=20", "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main(["simulate", config, *short]) == 0
    return request.param, folder


def test_an_example_runs_to_its_report(finished: tuple[str, Path]) -> None:
    name, folder = finished
    method = yaml.safe_load((EXAMPLES / name / "config.yaml").read_text(encoding="utf-8"))["method"]["name"]
    assert (folder / "report.html").is_file()
    for arm in ("fedavg", method):
        assert [record["round"] for record in records(folder, arm)] == [0, 1, 2]


def records(folder: Path, arm: str) -> list[dict[str, Any]]:
    lines = (folder / "seed-0" / arm / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_record_is_counted_where_it_belongs(finished: tuple[str, Path]) -> None:
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
    expected = counted_rows(list(schema["attributes"])) if name == "own_csv" else counted_shapes()
    assert +found == expected


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


def test_the_examples_lack_modalities() -> None:
    """Else the counts above would not show that a missing one is counted as missing."""
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


def test_the_page_shows_the_head_of_the_table() -> None:
    head = TABLE.read_text(encoding="utf-8").splitlines()[:4]
    assert "```\n" + "\n".join(head) + "\n```" in PAGE


def test_the_table_is_what_its_script_writes() -> None:
    assert TABLE.read_text(encoding="utf-8") == table()


def test_adapter_and_model_are_as_short_as_promised() -> None:
    shapes, model = (
        ast.parse((EXAMPLES / "own_adapter" / f"{x}.py").read_text()) for x in ("shapes", "model")
    )
    (adapter,) = [node for node in shapes.body if isinstance(node, ast.ClassDef)]
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
