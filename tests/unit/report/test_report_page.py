from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedfair.errors import RunError
from fedfair.metrics import auc_bound
from fedfair.report import comparison_table, write_report
from fedfair.report._load import load
from fedfair.report._results import differences, headline
from fedfair.report._style import STYLE
from fedfair.report._table_sections import TABLES

Writer = Callable[..., Path]


class Outline(HTMLParser):
    """Checks that elements nest, and collects texts, table rows and attributes."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += f" {data.strip()}" if data.strip() else ""


def outline(folder: Path) -> tuple[str, Outline]:
    page = write_report(folder).read_text(encoding="utf-8")
    return page, Outline(page)


def test_page_stands_alone(folder: Path) -> None:
    page, parsed = outline(folder)
    tags = {tag for tag, _, _ in parsed.attributes}
    assert "<script" not in page
    assert not tags & {"link", "iframe", "object", "embed"}
    loaded = [value for _, name, value in parsed.attributes if name in ("src", "href", "xlink:href")]
    assert all(value and value.startswith(("#", "data:")) for value in loaded)
    assert "url(http" not in page
    assert "@import" not in page
    identifiers = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_page_shows_the_numbers_of_the_records(folder: Path) -> None:
    page, parsed = outline(folder)
    experiment = load(folder)
    for arm, label in (("fedavg", "fedavg baseline"), ("dual_mimo", "dual_mimo")):
        row = next(row for row in parsed.rows if row[0].strip() == label and len(row) == 7)
        tests = experiment.compared(arm).values()
        for cell, key in zip(row[1:6], ("auc", "es_auc", "dpd", "deodds", "worst_group_auc"), strict=True):
            assert cell.split()[0] == f"{np.mean([test[key] for test in tests]):.3f}"
    names = (*experiment.schema["sites"], *experiment.schema["modalities"], *experiment.attributes["age"])
    for text in (*names, "0123456789abcdef", "torch 2.13.0"):
        assert text in page
    assert "fedfair simulate configs/heart.yaml" in page
    assert "group_min: 10" in page


def test_a_count_of_one_has_a_singular_noun(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(
        tmp_path / "one",
        seeds=[0],
        arms=["fedavg"],
        rounds=1,
        every=1,
        config={"report": {"bins": 64, "group_min": 1, "resamples": 1}},
    )
    for page in (outline(folder)[0], comparison_table(folder)):
        # No unit of a figure in one of the page's drawings, nor the end of a decimal number.
        assert not re.findall(
            r"(?<![\d.])1 (?:\w+ )?(?:rounds|seeds|records|runs|sites|hospitals|bins)\b", page
        )
    assert "from fewer than 1 record of a class" in " ".join(outline(folder)[0].split())


def test_no_name_breaks_at_its_hyphens_on_a_screen() -> None:
    """A browser breaks lines after a hyphen unless it is told not to; wide tables scroll in a box."""
    screen = STYLE.partition("@media print")[0]
    rules = [
        (name.strip(), body)
        for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", screen)
        for name in selector.split(",")
    ]
    assert [name for name, body in rules if "white-space: nowrap" in body] == ["th", "td"]
    assert {name for name, body in rules if "white-space: normal" in body} == {"td.said"}
    assert [name for name, body in rules if "overflow-x: auto" in body] == [".scroll"]
    assert "h1" in {name for name, body in rules if "overflow-wrap: anywhere" in body}
    assert len(re.findall("<table", TABLES)) == len(re.findall(r'<div class="scroll"><table', TABLES))


def test_same_folder_gives_the_same_page(folder: Path) -> None:
    assert outline(folder)[0] == outline(folder)[0]


def test_banners_are_there_only_when_true(folder: Path, tmp_path: Path, write_experiment: Writer) -> None:
    page, _ = outline(folder)
    assert "SYNTHETIC DATA" not in page
    assert "INCOMPLETE" not in page
    page, _ = outline(write_experiment(tmp_path / "made", seeds=[0], rounds=2, synthetic=True))
    assert "SYNTHETIC DATA" in page
    assert "hospital" not in page
    assert "patient records" not in page


def test_interrupted_experiment_is_reported_as_far_as_it_went(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = write_experiment(tmp_path / "half", seeds=[0, 1], rounds=6, status="interrupted", finished=None)
    cut = folder / "seed-1" / "dual_mimo"
    (cut / "evaluation.npz").unlink()
    whole = (cut / "rounds.jsonl").read_text().splitlines(keepends=True)
    (cut / "rounds.jsonl").write_text("".join(whole[:2]) + whole[2][:40])
    (folder / "seed-1" / "fedavg" / "evaluation.npz").unlink()
    experiment = load(folder)
    assert experiment.gaps() == ["seed 1, fedavg: no final evaluation", "seed 1, dual_mimo: 2 of 6 rounds"]
    assert list(experiment.compared("dual_mimo")) == [0]
    assert differences(experiment)["dual_mimo"]["auc"].estimate.seeds == 1
    page, _ = outline(folder)
    assert "INCOMPLETE" in page
    assert "2 of 6 rounds" in page
    assert "not finished" in page
    assert "incomplete: seed 1, dual_mimo: 2 of 6 rounds" in comparison_table(folder)


def test_before_the_last_round_arms_are_compared_at_one_round(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = write_experiment(tmp_path / "early", seeds=[0], rounds=6, status="running", finished=None)
    for arm, kept in (("fedavg", 3), ("dual_mimo", 2)):
        run = folder / "seed-0" / arm
        (run / "evaluation.npz").unlink()
        lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
        (run / "rounds.jsonl").write_text("".join(lines[:kept]))
    experiment = load(folder)
    assert experiment.compared_round == 2
    assert (
        headline(experiment)["fedavg"]["auc"].value == experiment.runs[0, "fedavg"].records[1]["test"]["auc"]
    )
    page, _ = outline(folder)
    assert "after round 2 of 6" in page
    assert "No final evaluation yet." in page


def test_experiment_without_results_is_reported(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "none", seeds=[], status="running")
    plan = json.loads((folder / "experiment.json").read_text())
    (folder / "experiment.json").write_text(json.dumps({**plan, "seeds": [0]}))
    page, _ = outline(folder)
    assert "No model was evaluated yet." in page
    assert "nothing can be compared" in page


def test_several_classes_and_a_single_arm(tmp_path: Path, write_experiment: Writer) -> None:
    names = ("none", "mild", "severe")
    page, parsed = outline(write_experiment(tmp_path / "classes", seeds=[0], arms=["fedavg"], classes=names))
    assert "3 classes" in page
    assert "nothing to compare it with" in page
    heads = [cell.strip() for cell in parsed.rows[2][:3]]
    assert heads == ["group", "records", "none / mild / severe"]


def test_names_cannot_break_the_page(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "names", seeds=[0])
    text = (
        (folder / "experiment.json")
        .read_text()
        .replace('"heart"', '"<script>a & b"')
        .replace("female", "$<f>$")
    )
    (folder / "experiment.json").write_text(text)
    for run in folder.glob("seed-*/*/rounds.jsonl"):
        run.write_text(run.read_text().replace("female", "$<f>$"))
    page, _ = outline(folder)
    assert "<script>" not in page
    assert "&lt;script&gt;a &amp; b" in page
    assert "$&lt;f&gt;$" in page


def test_what_is_not_estimable_is_said(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "few", seeds=[0, 1, 2], rounds=2)
    for run in folder.glob("seed-*/*/rounds.jsonl"):
        records = [json.loads(line) for line in run.read_text().splitlines()]
        for record in records:
            record["test"]["site_auc"]["Zurich"] = None
            record["test"]["dpd"] = None
        run.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, parsed = outline(folder)
    zurich = next(row for row in parsed.rows if row[0].strip() == "Zurich" and len(row) == 5)
    assert [cell.strip() for cell in zurich[3:]] == ["n.e.", "n.e."]
    assert "n.e." in comparison_table(folder)


def test_terminal_table_is_aligned_and_ends_with_the_verdict(folder: Path) -> None:
    lines = comparison_table(folder).splitlines()
    assert lines[0].split()[:3] == ["method", "AUC", "ES-AUC"]
    columns = [match.start() for match in re.finditer(r"\S+(?: \S+)*", lines[0])]
    assert all(row[start - 1] == " " != row[start] for row in lines[2:5] for start in columns[1:])
    assert lines[4].startswith("dual_mimo - fedavg")
    assert lines[5].startswith("dual_mimo against fedavg, over 3 seeds: ")
    assert lines[2].split()[1] == f"{headline(load(folder))['fedavg']['auc'].value:.3f}"


def test_folder_without_an_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold experiment.json"):
        write_report(tmp_path)
    (tmp_path / "experiment.json").write_text('{"name": "x"}')
    with pytest.raises(RunError, match="must have the keys"):
        comparison_table(tmp_path)


def test_page_says_what_heads_do_and_what_binning_costs(
    folder: Path, tmp_path: Path, write_experiment: Writer
) -> None:
    page, _ = outline(folder)
    evaluations = load(folder).evaluations.values()
    bound = max(float(auc_bound(e.pooled.histograms[0].sum((0, 1)))) for e in evaluations)
    assert f"most {bound:.4f}" in page
    assert "also train the encoders" in page
    probes = write_experiment(tmp_path / "probes", seeds=[0], rounds=2)
    for run in probes.glob("seed-*/*/rounds.jsonl"):
        run.write_text(run.read_text().replace('"live": true', '"live": false'))
    assert "do not train the encoders" in outline(probes)[0]
