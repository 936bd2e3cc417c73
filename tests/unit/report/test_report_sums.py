"""The report of runs that summed securely: the same figures of all sites together, none of one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.report import comparison_table, write_report
from fedfair.report._load import Experiment, load
from fedfair.report._results import differences, headline
from fedfair.report._sums import opening
from fedfair.report._tables import coverage_rows, group_tables, patient_rows, pooled_and_within, site_rows
from tests.unit.report.test_report_privacy import privatise, release

Writer = Callable[..., Path]
SITES = ("Cleveland", "Budapest", "Zurich", "Long Beach")
ALL = "all sites"


def sum_up(folder: Path, **rule: Any) -> Path:
    """Make an experiment's folder that of one in which the server saw sums alone."""
    plan = json.loads((folder / "experiment.json").read_text())
    plan["config"]["secure"] = {"enabled": True, **rule}
    (folder / "experiment.json").write_text(json.dumps(plan))
    for run in folder.glob("seed-*/*"):
        with np.load(run / "evaluation.npz") as arrays:
            stored = {name: arrays[name].sum(0, keepdims=True) for name in arrays.files}
        np.savez_compressed(run / "evaluation.npz", **stored)
        records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        for record in records:
            if record["test"]:
                record["test"]["site_auc"] = {ALL: record["test"]["auc"]}
        (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def page_of(folder: Path) -> str:
    return " ".join(write_report(folder).read_text(encoding="utf-8").split())


def section(page: str, heading: str) -> str:
    """Return a section of the page, up to the next one."""
    return page.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, write_experiment: Writer) -> tuple[Path, Path]:
    """Return an experiment that shows its sites, and the same one summed."""
    path = tmp_path_factory.mktemp("sums")
    plain, summed = (write_experiment(path / name, seeds=[0, 1, 2], rounds=2) for name in ("plain", "summed"))
    return plain, sum_up(summed)


def test_figures_of_all_sites_are_those_of_the_run_that_shows_each(pair: tuple[Path, Path]) -> None:
    plain, summed = map(load, pair)
    assert headline(summed) == headline(plain)
    assert differences(summed) == differences(plain)
    # As text, since NaN is not equal to itself.
    assert repr(group_tables(summed)) == repr(group_tables(plain))
    assert comparison_table(pair[1]) == comparison_table(pair[0])
    for heading in ("Main results", "By group", "Who took part"):
        assert section(page_of(pair[1]), heading) == section(page_of(pair[0]), heading) != ""


def test_records_are_counted_together(pair: tuple[Path, Path]) -> None:
    plain, summed = map(load, pair)
    (patients,), (coverage,) = patient_rows(summed), coverage_rows(summed)
    for part in ("train", "test"):
        by_site = [getattr(row, part) for row in patient_rows(plain)]
        assert np.array_equal(getattr(patients, part), np.sum(by_site, axis=0))
    assert coverage.observed == np.sum([row.observed for row in coverage_rows(plain)], axis=0).tolist()
    assert coverage.total == sum(row.total for row in coverage_rows(plain))
    train, test = (int(np.sum(getattr(patients, part))) for part in ("train", "test"))
    assert f"on {train} patient records and assessed on {test} that were held out" in page_of(pair[1])
    found = section(page_of(pair[1]), "Patients")
    assert found.count("all hospitals") == 2
    assert "Records that have each modality, of all records." in found


def test_no_site_has_figures_of_its_own(pair: tuple[Path, Path]) -> None:
    experiment, page = load(pair[1]), page_of(pair[1])
    assert site_rows(experiment) == []
    assert pooled_and_within(experiment) == []
    for heading in ("By group", "By hospital", "Patients", "Over rounds"):
        assert not [site for site in SITES if site in section(page, heading)]
    assert "<table" not in section(page, "By hospital")
    assert "not shown one by one: the run summed securely" in section(page, "By hospital")
    assert "hospitals that differ in prevalence cannot be told" in section(page, "Limits")
    assert "Cleveland" in section(page_of(pair[0]), "By hospital")
    assert "summed securely" not in page_of(pair[0])


def test_kept_models_are_compared_by_their_sums(tmp_path: Path, write_experiment: Writer) -> None:
    folder = sum_up(write_experiment(tmp_path / "chosen", seeds=[0], rounds=2))
    last = load(folder).runs[0, "fedavg"].records[-1]["test"]
    plan = json.loads((folder / "experiment.json").read_text())
    plan["config"]["data"] = {"validation_fraction": 0.2}
    (folder / "experiment.json").write_text(json.dumps(plan))
    kept = load(folder).compared("fedavg")[0]
    assert list(kept["site_auc"]) == [ALL]
    # Counted over all groups at once, where the record's AUC is summed over groups first.
    assert kept["site_auc"][ALL] == pytest.approx(last["auc"], rel=1e-12)
    assert {**kept, "site_auc": {}} == {**last, "site_auc": {}}
    assert "summed securely" in page_of(folder)


def among(experiment: Experiment, sites: int, **rule: Any) -> Experiment:
    """Return the experiment as if it had so many sites, and its sums that rule."""
    schema = {**experiment.schema, "sites": [f"site {k}" for k in range(sites)]}
    config = {**experiment.config, "secure": {"enabled": True, **rule}}
    return dataclasses.replace(experiment, schema=schema, config=config)


@pytest.mark.parametrize(
    ("sites", "rule", "threshold"),
    # t = floor((n + c) / 2) + 1 with c = floor(collusion n)
    [(4, {}, 3), (4, {"collusion": 0.0}, 3), (5, {"collusion": 0.0}, 3), (8, {}, 6), (12, {}, 8)],
)
def test_the_rule_is_the_one_that_was_set(
    pair: tuple[Path, Path], sites: int, rule: dict[str, float], threshold: int
) -> None:
    found = opening(among(load(pair[1]), sites, **rule))
    assert found is not None
    assert found.plan is not None
    assert found.plan.threshold == threshold
    assert found.rule.fewest == 3


def test_the_head_of_the_page_says_who_saw_what(
    pair: tuple[Path, Path], tmp_path: Path, write_experiment: Writer
) -> None:
    assert opening(load(pair[0])) is None
    assert "Secure aggregation" not in page_of(pair[0])
    head = page_of(pair[1]).partition("<h2>")[0]
    assert "Secure aggregation: the server saw sums over sites only." in head
    assert "No sum of fewer than 3 hospitals is opened." in head
    assert "With all 4 there, 3 must answer to the end to open one, so 1 may go missing." in head
    assert "allows for 25% of the hospitals working for the server and for 25% missing." in head
    made = write_experiment(tmp_path / "made", seeds=[0], rounds=2, synthetic=True)
    head = page_of(sum_up(made, fewest=5, collusion=0.5, dropout=0.2)).partition("<h2>")[0]
    assert "No sum of fewer than 5 sites is opened. The rule allows for 50% of the sites" in head


def test_many_sites_share_with_a_few_each(tmp_path: Path, write_experiment: Writer) -> None:
    folder = sum_up(write_experiment(tmp_path / "many", seeds=[0], arms=["fedavg"], rounds=2))
    many = among(load(folder), 100)
    plan = json.loads((folder / "experiment.json").read_text())
    plan |= {"schema": many.schema, "config": many.config}
    (folder / "experiment.json").write_text(json.dumps(plan))
    found = opening(many)
    assert found is not None
    assert found.plan is not None
    assert not found.plan.complete
    degree, holders = found.plan.degree, found.plan.degree + 1
    said = (
        f"shares its secrets with {degree} others, and {found.plan.threshold} of these {holders} must answer"
    )
    assert said in page_of(folder)


def test_a_site_without_keys_is_not_there(tmp_path: Path, write_experiment: Writer) -> None:
    folder = write_experiment(tmp_path / "lost", seeds=[0], rounds=2)
    path = folder / "seed-0" / "fedavg" / "rounds.jsonl"
    path.write_text(path.read_text().replace('"Zurich", "Long Beach"]', '"Long Beach"]'))
    assert "not connected when the round began." in section(page_of(folder), "Who took part")
    assert "without keys for its sum" in section(page_of(sum_up(folder)), "Who took part")


def test_privacy_does_not_count_on_sums(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "exact", seeds=[0]))
    assert "not counted on" not in page_of(folder)
    statement = section(page_of(folder), "Privacy")
    summed = section(page_of(sum_up(folder)), "Privacy")
    note = summed[summed.index('<p class="note">Each figure is of one') :].partition("</p> ")
    assert "that only sums were seen is not counted on" in note[0]
    assert summed.replace("".join(note[:2]), "") == statement
    assert "Those for training are not told." in page_of(folder)


def test_noise_adds_up_as_it_does_over_sites(tmp_path: Path, write_experiment: Writer) -> None:
    folder = release(
        privatise(write_experiment(tmp_path / "noised", seeds=[0]), evaluation="released"), 2.0, 20
    )
    plain = load(folder)
    summed = load(sum_up(folder))
    assert repr(group_tables(summed)) == repr(group_tables(plain))
    assert next(iter(summed.evaluations.values())).pooled.variance is not None
    assert coverage_rows(summed) == patient_rows(summed) == []
    assert "summed securely" in section(page_of(folder), "By hospital")
