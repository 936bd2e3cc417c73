"""The report of private runs: what is promised, what is not known, what is hidden by noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedfair.assessment import assess
from fedfair.budget import account
from fedfair.config import parse
from fedfair.privacy.accounting import Event, epsilon
from fedfair.privacy.ledger import Ledger
from fedfair.report import comparison_table, write_report
from fedfair.report._load import load
from fedfair.report._privacy import accounts, ledgers, not_private, released_tables
from fedfair.report._results import differences, headline
from fedfair.report._tables import coverage_rows, group_tables, patient_rows, pooled_and_within, site_rows
from fedfair.signals import Signals, Variance

Writer = Callable[..., Path]
MODALITIES, GROUPS, CELLS = ("history", "ecg", "stress test"), ("female", "male"), (2, 3)

PRIVACY = {
    "mode": "sample",
    "noise_multiplier": 1.5,
    "target_delta": 1e-5,
    "sample_rate": 0.25,
    "local_steps": 4,
    "expected_batch": 20,
    "max_grad_norm": 1.25,
    "evaluation": "exact",
    "statistics": {"noise_multiplier": 4.0, "every": 2},
}


def privatise(folder: Path, rounds: int = 6, stopped: str | None = None, **changes: Any) -> Path:
    """Make an experiment's folder that of a private one; what only exact runs know is taken away."""
    privacy = {**PRIVACY, **changes}
    plan = json.loads((folder / "experiment.json").read_text())
    plan["config"]["privacy"] = privacy
    (folder / "experiment.json").write_text(json.dumps(plan))
    for run in folder.glob("seed-*/*"):
        plain = {"name": "heart", "rounds": plan["rounds"], "method": {"name": run.name}, "privacy": privacy}
        (run / "config.yaml").write_text(yaml.safe_dump(plain))
        config = parse(plain)
        (run / "privacy.json").write_text(
            json.dumps(account(config, rounds, [*range(1, rounds + 1), config.rounds + 1], stopped))
        )
        change_evaluation(run / "evaluation.npz", train_counts=0.0)
        change_records(run, {"train_loss": None})
        for site in plan["schema"]["sites"]:
            charge(run, site)
    return folder


def charge(run: Path, site: str, name: str = "this run") -> None:
    told = json.loads((run / "privacy.json").read_text())
    path = run / "ledgers" / f"{site.replace(' ', '-')}.json"
    Ledger(path, "heart", site, 1e-5, None).charge(name, [Event(**event) for event in told["events"]])


def change_evaluation(path: Path, **factors: float) -> None:
    with np.load(path) as arrays:
        stored = {name: factors.get(name, 1.0) * arrays[name] for name in arrays.files}
    np.savez_compressed(path, **stored)


def change_records(
    run: Path, change: Mapping[str, Any], where: Callable[[int], bool] = lambda _: True
) -> None:
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    changed = [{**record, **change} if where(record["round"]) else record for record in records]
    (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))


def release(folder: Path, sd: float, times: int) -> Path:
    """Have the folder's evaluations released: `times` as many records in 8 bins, with noise in each cell."""
    for number, run in enumerate(sorted(folder.glob("seed-*/*"))):
        rng = np.random.default_rng(number)
        with np.load(run / "evaluation.npz") as arrays:
            stored = {name: times * arrays[name] for name in arrays.files}
        cells = stored["histograms"].reshape(*stored["histograms"].shape[:-1], 8, -1).sum(-1)
        stored["histograms"] = cells + sd * rng.normal(size=cells.shape)
        stored["counts"] = stored["histograms"].sum(-1)[:, :, :, 0]
        stored["variance"] = np.tile([sd**2, sd**2, 0.0], (4, 1))
        np.savez_compressed(run / "evaluation.npz", **stored)
        noise = Variance(*stored["variance"].sum(0))
        pooled = Signals(*(stored[k].sum(0) for k in ("counts", "losses", "histograms")), variance=noise)
        table = assess(pooled, CELLS, 0, 10).to_dict(MODALITIES, GROUPS)
        sites = dict.fromkeys(("Cleveland", "Budapest", "Zurich", "Long Beach"))
        change_records(run, {"test": {}}, lambda r: r % 4 != 2)
        change_records(run, {"test": {**table, "site_auc": sites}}, lambda r: r % 4 == 2)
    return folder


def seen(value: float, resolved: bool = True) -> dict[str, Any]:
    """Return what a gate tells of 4 heads and 2 groups."""
    names = ("auc", "auc_sd", "auc_gap", "auc_gap_sd", "auc_weight", "loss_gap", "loss_gap_sd", "loss_weight")
    table = {name: [[value + 0.01 * i] * 2] * 4 for i, name in enumerate(names)}
    return {"diagnostics": {**table, "resolved": [[float(resolved)] * 2] * 4}}


def page_of(folder: Path) -> str:
    return " ".join(write_report(folder).read_text(encoding="utf-8").split())


def test_page_and_terminal_hold_the_statement_of_each_arm(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "exact"))
    page, lines = page_of(folder), comparison_table(folder).splitlines()
    found = {item.arm: item for item in accounts(load(folder))}
    # Only the modulating arm releases statistics: in rounds 1, 3 and 5, on top of 6 rounds of 4 steps.
    assert [found[arm].account["releases"] for arm in ("fedavg", "dual_mimo")] == [0, 3]
    spent = {arm: epsilon([Event(**e) for e in item.account["events"]], 1e-5) for arm, item in found.items()}
    assert spent["fedavg"] < spent["dual_mimo"]
    for arm, line in zip(found, lines[-2:], strict=True):
        assert found[arm].account["statement"] in page
        assert line == f"privacy of {arm}: {found[arm].account['statement']}"
        assert f"epsilon {spent[arm]:.4g} at delta 1e-05" in line
    assert page.index("<h2>Privacy</h2>") < page.index("<h2>Main results</h2>")
    for text in ("Test patients.", "A patient at two hospitals.", "clipping bound C of a record 1.25"):
        assert text in page
    assert "NOT PRIVATE" not in page
    assert "STOPPED" not in page


def test_other_runs_have_no_privacy_section(folder: Path) -> None:
    assert "<h2>Privacy</h2>" not in page_of(folder)
    assert "privacy" not in comparison_table(folder)


def test_training_records_that_nobody_may_know_are_not_shown(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = privatise(write_experiment(tmp_path / "exact", seeds=[0]))
    experiment = load(folder)
    assert all(row.train is None for row in patient_rows(experiment))
    with np.load(folder / "seed-0" / "fedavg" / "evaluation.npz") as stored:
        assert coverage_rows(experiment)[0].total == stored["counts"][0, 0].sum()
    page = page_of(folder)
    assert "Those for training are not told." in page
    assert "Test records that have each modality" in page
    assert " 0 + " not in page


def test_nothing_fails_where_no_test_figure_is_released(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "none", seeds=[0, 1, 2]), evaluation="none")
    for run in folder.glob("seed-*/*"):
        (run / "evaluation.npz").unlink()
        change_records(run, {"test": {}})
        change_records(run, {"train_loss": 0.6}, lambda r: r == 4)
    page, text = page_of(folder), comparison_table(folder)
    assert load(folder).gaps() == []
    assert "INCOMPLETE" not in page
    assert "Test figures are not released" in page
    assert "Training loss" in page
    assert "Worst-group AUC</text>" not in page
    assert "<h2>By group</h2>" not in page
    assert text.startswith("test figures are not released")
    assert "so nothing can be compared" in text
    for run in folder.glob("seed-*/*"):
        change_records(run, {"train_loss": None, "coefficients": None})
    assert "<svg" not in page_of(folder)


def test_released_evaluation_shows_its_noise(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "released", seeds=[0]), evaluation="released")
    experiment = load(release(folder, 3.0, 40))
    row = group_tables(experiment)[0].rows[0]
    # Each class count of a sex is a sum of 4 sites x 3 ages x 8 bins.
    assert row.count_sd == pytest.approx(3 * math.sqrt(4 * 3 * 8))
    auc = row.arms[0].auc
    assert auc.low < auc.value < auc.high
    assert 0 < auc.noise < (auc.high - auc.low) / 2
    site = site_rows(experiment)[0]
    assert site.count_sd == pytest.approx([3 * math.sqrt(6 * 8 * 2), 3 * math.sqrt(6 * 8)])
    (pooled, within), _ = pooled_and_within(experiment)
    assert pooled.value == pytest.approx(experiment.compared("fedavg")[0]["auc"])
    assert math.isnan(within.value)
    assert headline(experiment)["fedavg"]["auc"].low < pooled.value
    assert patient_rows(experiment) == coverage_rows(experiment) == []
    page = page_of(folder)
    assert f"{sum(row.counts)} ± {round(row.count_sd * math.sqrt(2))}" in page
    assert f"noise ± {auc.noise:.3f}" in page
    assert "Test patients." not in page
    assert "<h2>Patients</h2>" not in page
    assert "pairs within" not in page


def test_noise_that_hides_all_leaves_a_page_without_impossible_values(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = privatise(write_experiment(tmp_path / "hidden", seeds=[0]), evaluation="released")
    experiment = load(release(folder, 60.0, 1))
    assert all(math.isnan(e.value) for e in headline(experiment)["fedavg"].values())
    assert all(n >= 0 for table in group_tables(experiment) for row in table.rows for n in row.counts)
    assert all(math.isnan(auc.value) for row in site_rows(experiment) for auc in row.auc)
    assert "n.e." in page_of(folder)
    assert "n.e." in comparison_table(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_seed": 3}, "the noise can be drawn again"),
        ({"exact": ["gradients"]}, "gradients leave without noise"),
    ],
)
def test_what_is_not_private_is_said_in_red_and_in_the_terminal(
    tmp_path: Path, write_experiment: Writer, changes: dict[str, Any], reason: str
) -> None:
    folder = privatise(write_experiment(tmp_path / "open", seeds=[0]), **changes)
    page, last = page_of(folder), comparison_table(folder).splitlines()[-1]
    assert 'class="banner alarm"><strong>NOT PRIVATE.' in page
    assert page.index(reason) < page.index("<h1>")
    assert last.startswith(f"NOT PRIVATE: {reason}")
    # Said before any run has ended, too.
    for run in folder.glob("seed-*/*"):
        (run / "privacy.json").unlink()
    assert not_private(load(folder)) == [last.removeprefix("NOT PRIVATE: ")]
    assert "not known before a run has ended" in comparison_table(folder)
    assert "No run has ended" in page_of(folder)


def test_infinite_loss_is_written_out(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "open", seeds=[0]), exact=["gradients"])
    for path in folder.glob("seed-*/*/privacy.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "epsilon": None, "epsilon_rdp": None}))
    assert "<td>infinite</td>" in page_of(folder)


def test_run_that_ended_at_its_cap_is_compared_by_its_last_model(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = privatise(write_experiment(tmp_path / "capped", seeds=[0]))
    run, message = folder / "seed-0" / "dual_mimo", "`cap` of site Zurich must not be exceeded"
    plain = parse(yaml.safe_load((run / "config.yaml").read_text()))
    (run / "privacy.json").write_text(json.dumps(account(plain, 4, [1, 2, 3, 4, plain.rounds + 1], message)))
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text("".join(lines[:3]))
    experiment = load(folder)
    assert experiment.compared_round == 6
    assert experiment.compared("dual_mimo")[0] == json.loads(lines[2])["test"]
    assert differences(experiment)["dual_mimo"]["auc"].estimate.seeds == 1
    assert experiment.gaps() == ["seed 0, dual_mimo: 4 of 6 rounds, where it reached its privacy cap"]
    page = page_of(folder)
    assert "STOPPED AT THE CAP" in page
    assert f"dual_mimo, seed 0: {message}" in page
    assert f"dual_mimo, seed 0: {message}" in comparison_table(folder)
    assert "or their privacy cap are compared" in page
    assert "How training ended" not in page


def test_run_that_stopped_improving_is_not_said_to_be_capped(
    tmp_path: Path, write_experiment: Writer
) -> None:
    folder = privatise(write_experiment(tmp_path / "settled", seeds=[0]))
    outcome = {
        "stopped": "`auc` did not improve for 2 rounds",
        "best_round": 4,
        "monitor": "auc",
        "notices": [],
    }
    (folder / "seed-0" / "dual_mimo" / "outcome.json").write_text(json.dumps(outcome))
    page = page_of(folder)
    assert "STOPPED AT THE CAP" not in page
    assert "training ended after round 6 of 6, `auc` did not improve for 2 rounds" in page


def test_ledgers_say_what_earlier_runs_spent(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "ledgers", seeds=[0]))
    run = folder / "seed-0" / "dual_mimo"
    charge(run, "Zurich", "an earlier run")
    (run / "ledgers" / "Cleveland.json").write_text("{}")
    entries = ledgers(load(folder))
    events = [Event(**event) for event in json.loads((run / "privacy.json").read_text())["events"]]
    assert list(entries)[:4] == ["Cleveland", "Budapest", "Zurich", "Long Beach"]
    once, twice = entries["Budapest"][1], entries["Zurich"][1]
    assert once is not None
    assert twice is not None
    assert (once.epsilon, once.runs) == (pytest.approx(epsilon(events, 1e-5)), 1)
    assert (twice.epsilon, twice.runs) == (pytest.approx(epsilon(events + events, 1e-5)), 2)
    assert twice.steps == 2 * once.steps == 2 * (6 * 4 + 3)
    assert entries["Cleveland"][1] is None
    page = page_of(folder)
    assert f"{twice.epsilon:.4g} (54 steps, 2 runs)" in page
    assert "damaged ledger Cleveland.json" in page


def test_last_release_is_shown_and_what_is_unresolved_said(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "seen", seeds=[0]))
    run = folder / "seed-0" / "dual_mimo"
    change_records(run, seen(0.3), lambda r: r == 2)
    change_records(run, seen(0.5), lambda r: r == 4)
    (table,) = released_tables(load(folder))
    assert (table.arm, table.round, len(table.rows)) == ("dual_mimo", 4, 8)
    assert (table.rows[0].auc, table.rows[0].auc_sd, table.rows[0].loss_kept) == pytest.approx(
        (0.5, 0.51, 0.57)
    )
    page = page_of(folder)
    assert "<td>0.500 ± 0.510</td>" in page
    assert '<td class="none">unresolved</td>' not in page
    change_records(run, seen(-1.37, resolved=False), lambda r: r == 6)
    page = page_of(folder)
    assert page.count('<td class="none">unresolved</td>') == 16  # AUC and its gap, of 4 heads and 2 groups
    assert "1.370 ±" not in page


def test_seed_that_spent_most_speaks_for_its_arm(tmp_path: Path, write_experiment: Writer) -> None:
    folder = privatise(write_experiment(tmp_path / "seeds", seeds=[0, 1]))
    path = folder / "seed-0" / "fedavg" / "privacy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epsilon": 0.1}))
    seeds: Sequence[int] = [item.seed for item in accounts(load(folder))]
    assert seeds == [1, 0]
    assert "each seed by itself" in page_of(folder)


def test_site_level_names_its_unit_and_whom_it_trusts(tmp_path: Path, write_experiment: Writer) -> None:
    none = dict.fromkeys(("sample_rate", "local_steps", "expected_batch", "max_grad_norm"))
    folder = privatise(
        write_experiment(tmp_path / "sites", seeds=[0]), mode="site", clipping_norm=0.5, **none
    )
    page = page_of(folder)
    assert "all training records of one site" in page
    assert "clipping bound C of a site 0.5" in page
    assert "Sites from the server." in page
    assert "A patient at two hospitals." not in page
