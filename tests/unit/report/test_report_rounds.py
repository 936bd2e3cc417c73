"""Who took part, how runs ended, and which records the figures are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.report import comparison_table, write_report
from fedfair.report._evaluation import load_evaluation, metrics_of
from fedfair.report._load import load
from fedfair.report._results import headline
from fedfair.report._rounds import ABSENT, FAILED, TOOK_PART, failures, presences, ranges
from fedfair.report._rounds_figure import presence

Writer = Callable[..., Path]
Change = Callable[[dict[str, Any]], object]


class Cells(HTMLParser):
    """Collects the texts of table rows, as a browser shows them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._inside = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def change(run: Path, edit: Change) -> None:
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        edit(record)
    (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def miss(record: dict[str, Any], site: str, text: str | None) -> None:
    """Take a site out of a round, with what it said, if it said anything."""
    if site in record["sites"]:
        record["sites"].remove(site)
    if text is not None:
        record["failed"][site] = text


def tell(run: Path, **outcome: Any) -> None:
    told = {"stopped": None, "best_round": None, "monitor": None, "notices": []}
    (run / "outcome.json").write_text(json.dumps(told | outcome))


def validate(folder: Path) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    plan["config"]["data"] = {"validation_fraction": 0.2}
    (folder / "experiment.json").write_text(json.dumps(plan))


def page_of(folder: Path) -> str:
    return " ".join(write_report(folder).read_text(encoding="utf-8").split())


@pytest.fixture
def small(tmp_path: Path, write_experiment: Writer) -> Path:
    """One seed of two arms, records of models after 0, 1, 2 and 3 rounds."""
    return write_experiment(tmp_path / "small", seeds=[0], rounds=3, every=1)


def test_nothing_wrong_is_one_line(folder: Path, small: Path) -> None:
    whole = "All 4 hospitals took part in all rounds of every run, and no round had to be repeated."
    for path in (folder, small):
        page = page_of(path)
        assert f"<h2>Who took part</h2> <p>{whole}</p> <h2>Over rounds</h2>" in page
    assert presence(presences(load(folder))) is None


def test_one_run_says_nothing_of_other_runs(tmp_path: Path, write_experiment: Writer) -> None:
    page = page_of(write_experiment(tmp_path / "one", seeds=[0], arms=["fedavg"], rounds=2))
    assert "All 4 hospitals took part in all rounds, and no round had to be repeated." in page


def test_one_round_is_not_several(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "one", seeds=[0], arms=["fedavg"], rounds=1, every=1)
    page = page_of(folder)
    assert "The modulated attribute is <b>sex</b> (female, male). 1 round, 1 seed; each seed" in page
    assert "All 4 hospitals took part in the one round, and no round had to be repeated." in page
    run = folder / "seed-0" / "fedavg"
    (run / "rounds.jsonl").write_text((run / "rounds.jsonl").read_text().splitlines(keepends=True)[0])
    (run / "evaluation.npz").unlink()
    assert load(folder).gaps() == ["seed 0, fedavg: 0 of 1 round"]


def test_a_run_without_a_round_says_so(small: Path) -> None:
    for run in small.glob("seed-0/*"):
        first = (run / "rounds.jsonl").read_text().splitlines(keepends=True)[0]
        (run / "rounds.jsonl").write_text(first)
    assert "No round has ended yet." in page_of(small)


def test_each_state_is_told_from_the_others(small: Path) -> None:
    def edit(record: dict[str, Any]) -> None:
        if record["round"] == 1:
            miss(record, "Zurich", "site Zurich has not approved the code")
        if record["round"] >= 2:
            miss(record, "Budapest", "not connected")
        if record["round"] == 3:
            miss(record, "Cleveland", None)  # joins later, so nobody asked it

    change(small / "seed-0" / "dual_mimo", edit)
    (found,) = presences(load(small))
    assert (found.run.arm, list(found.rounds)) == ("dual_mimo", [1, 2, 3])
    assert found.states == {
        "Cleveland": [TOOK_PART, TOOK_PART, ABSENT],
        "Budapest": [TOOK_PART, ABSENT, ABSENT],
        "Zurich": [FAILED, TOOK_PART, TOOK_PART],
    }
    page = page_of(small)
    assert "All 4 hospitals" not in page
    for name in ("dual_mimo, seed 0", "Cleveland", "Budapest", "Zurich", "failed or refused", "not there"):
        assert f">{name}</text>" in page
    assert ">Long Beach</text>" not in page
    # Who was not there has said nothing.
    assert [(item.site, item.rounds) for item in failures(load(small))] == [("Zurich", "1")]


def test_a_cross_stands_in_each_failed_cell(small: Path) -> None:
    def marks(rounds: int) -> int:
        change(small / "seed-0" / "fedavg", lambda r: r["round"] <= rounds and miss(r, "Zurich", "error"))
        drawn = presence(presences(load(small)))
        assert drawn is not None
        return drawn.count("<use ")

    first = marks(1)
    assert (marks(2), marks(3)) == (first + 1, first + 2)


def test_a_site_s_words_stand_in_the_table_and_cannot_break_the_page(small: Path) -> None:
    words = "KeyError: <script>alert(1)</script> & \"chol\"</td>\nline\x1b[2J \u202e{{ 7 * 7 }} {% raw %} 'é'"
    long = "x" * 1000

    def edit(record: dict[str, Any]) -> None:
        if record["round"] in (1, 2):
            miss(record, "Zurich", words)
        if record["round"] == 3:
            miss(record, "Zurich", long)
            record["failed"]["node <b>7"] = "'Basel' is no site of the data"

    change(small / "seed-0" / "fedavg", edit)
    page = write_report(small).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<b>7" not in page
    assert not set(page) & {"\x1b", "\u202e"}
    cells = Cells(page).rows
    said = "KeyError: <script>alert(1)</script> & \"chol\"</td> line [2J  {{ 7 * 7 }} {% raw %} 'é'"
    assert ["Zurich", "fedavg, seed 0", "1–2", said] in cells
    assert ["Zurich", "fedavg, seed 0", "3", "x" * 299 + "…"] in cells
    assert ["node <b>7", "fedavg, seed 0", "3", "'Basel' is no site of the data"] in cells


def test_many_failures_are_counted_not_listed(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "many", seeds=range(4), rounds=12, every=1)
    for k, run in enumerate(sorted(folder.glob("seed-*/*"))):
        change(run, lambda r, k=k: r["round"] and miss(r, "Zurich", f"reason {k}.{r['round']}"))  # type: ignore[misc]
    page = page_of(folder)
    assert "56 more stand in the files rounds.jsonl." in page  # of 8 runs of 12 rounds, 40 are shown
    assert "2 more runs had some" in page  # of 8, 6 are drawn
    assert page.count("reason ") == 40


def test_repeats_endings_and_notices_are_said_once_for_equal_runs(small: Path) -> None:
    for arm in ("fedavg", "dual_mimo"):
        run = small / "seed-0" / arm
        change(run, lambda r: r.update(attempts={2: 2}.get(r["round"], 1)))
        tell(run, stopped="`train_loss` did not improve for 2 rounds", monitor="train_loss", best_round=1)
    tell(small / "seed-0" / "fedavg", notices=["round 2 is <used>"])
    page = page_of(small)
    assert "<li>fedavg, seed 0; dual_mimo, seed 0: round 2 (2 attempts)</li>" in page
    assert "All 4 hospitals took part in all rounds." in page
    assert "<li>fedavg, seed 0: round 2 is &lt;used&gt;</li>" in page
    assert (
        "<li>dual_mimo, seed 0: training ended after round 3 of 3, `train_loss` did not improve for 2 rounds;"
        " the model of round 1 was kept, the best by train_loss.</li>"
    ) in page


def test_a_run_that_stopped_by_itself_is_whole(small: Path) -> None:
    run = small / "seed-0" / "dual_mimo"
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text("".join(lines[:3]))
    assert load(small).gaps() == ["seed 0, dual_mimo: 2 of 3 rounds"]
    tell(run, stopped="`train_loss` did not improve for 1 round", monitor="train_loss", best_round=2)
    experiment = load(small)
    assert experiment.gaps() == []
    assert (
        experiment.compared("dual_mimo")[0] == experiment.runs[0, "dual_mimo"].records[2]["test"]
    )  # its last model, where the other arm's is of round 3
    assert "INCOMPLETE" not in page_of(small)


def test_metrics_of_an_evaluation_are_those_of_the_record(small: Path) -> None:
    experiment = load(small)
    for run in experiment.runs.values():
        stored = load_evaluation(run.folder / "evaluation.npz")
        assert stored is not None
        own = metrics_of(stored, experiment.shown_sites, experiment.schema, "sex", experiment.min_count)
        # Written by the fixture from the same records, by another way to the AUC of a site.
        last = run.records[-1]["test"]
        assert own.keys() == last.keys()
        assert own["site_auc"] == pytest.approx(last["site_auc"], rel=1e-12)
        assert own | {"site_auc": None} == last | {"site_auc": None}
        by_age = metrics_of(stored, experiment.shown_sites, experiment.schema, "age", experiment.min_count)
        assert list(by_age["group_counts"]) == experiment.attributes["age"]
        assert by_age["auc"] == own["auc"]


def test_figures_are_of_test_records_where_rounds_saw_validation_records(small: Path) -> None:
    before = {arm: row["auc"].value for arm, row in headline(load(small)).items()}
    assert "the rest of <b>test records</b>" in page_of(small)
    for run in small.glob("seed-0/*"):
        change(run, lambda r: r["test"].update(auc=0.123, es_auc=0.123, site_auc={"Cleveland": 0.123}))
    validate(small)
    experiment = load(small)
    after = {arm: row["auc"].value for arm, row in headline(experiment).items()}
    assert after == before
    page = page_of(small)
    assert "the rest of <b>validation records</b>" in page
    assert "0.123" not in page + comparison_table(small)
    sites = [row for row in Cells(page).rows if row and row[0] == "Cleveland"]
    assert any(f"{experiment.compared('fedavg')[0]['site_auc']['Cleveland']:.3f}" in row[3] for row in sites)


def test_without_a_final_evaluation_validated_runs_are_not_compared(small: Path) -> None:
    validate(small)
    (small / "seed-0" / "dual_mimo" / "evaluation.npz").unlink()
    experiment = load(small)
    assert experiment.compared("dual_mimo") == {}
    assert list(experiment.compared("fedavg")) == [0]
    assert experiment.gaps() == ["seed 0, dual_mimo: no final evaluation"]
    (small / "seed-0" / "fedavg" / "evaluation.npz").unlink()
    assert np.isnan(headline(load(small))["fedavg"]["auc"].value)
    assert "No model was evaluated yet." in page_of(small)


def test_ranges_are_as_short_as_they_can_be() -> None:
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([9, 2, 4, 3, 4, 7, 10]) == "2–4, 7, 9–10"
