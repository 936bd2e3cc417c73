"""The tables, verdict and figures of a privacy-budget experiment, from cells made of known numbers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedfair.config import load
from fedfair.report import write_budget
from fedfair.report._budget import load_budget
from fedfair.report._budget_page import markdown
from fedfair.report._budget_tables import tables
from fedfair.report._budget_verdict import verdict
from simulations.arms import ARMS, PAIRS, REFERENCE, Setting, settings

BASE = load(Path(__file__).parents[3] / "configs" / "heart_private.yaml", ["rounds=2"])
SEEDS = (0, 1, 2, 3)
ACCOUNT = {
    "delta": 1e-5,
    "unit": "one patient (one record) of one site",
    "relation": "add or remove one record",
    "accountant": "Opacus PRV 1.6.0",
}
# Mean AUC by arm at epsilon 8; each halving of epsilon costs the noised ones more.
MEANS = {
    "none": 0.86,
    "clip_only": 0.85,
    "noisy_statistics": 0.85,
    "neutral_flat": 0.80,
    "neutral_block": 0.81,
    "gated": 0.82,
    "ungated": 0.79,
    "oracle_statistics": 0.83,
}


def auc_of(setting: Setting, seed: int, scale: float = 1.0) -> float:
    """Return a number that differs by setting and seed."""
    rng = np.random.default_rng(
        [seed, len(setting.arm), len(setting.method), int(min(setting.epsilon, 99) * 8)]
    )
    noise = 0.0 if math.isinf(setting.epsilon) else 0.05 * math.log2(8 / setting.epsilon)
    return float(MEANS[setting.arm] - scale * noise + rng.normal(0, 0.01))


def write_cell(folder: Path, setting: Setting, auc: float) -> None:
    """Write the files of a run that the report reads."""
    folder.mkdir(parents=True)
    test = {
        "auc": auc,
        "es_auc": auc - 0.05,
        "worst_group_auc": auc - 0.03,
        "group_auc": {"female": auc + 0.02, "male": auc - 0.03},
        "group_counts": {"female": [40, 20], "male": [90, 150]},
    }
    seen = {"auc_weight": [[0.0, 0.5]], "loss_weight": [[0.0, 0.0]]} if setting.arm == "gated" else {}
    record = {"round": 2, "test": test, "diagnostics": seen, "failed": {}}
    (folder / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    private = not setting.config.privacy.exact
    account = {"epsilon": setting.epsilon - 0.004 if private else None, **ACCOUNT}
    (folder / "privacy.json").write_text(json.dumps(account))
    (folder / "model.pt").touch()


def write(
    folder: Path,
    epsilons: Sequence[float] = (math.inf, 8, 3, 1),
    methods: Sequence[str] = ("dual_mimo", "multifair"),
    arms: Sequence[str] = tuple(ARMS),
    seeds: Sequence[int] = SEEDS,
    scale: float = 1.0,
    **changes: Any,
) -> Path:
    found = settings(BASE, arms, methods, epsilons)
    plan = {
        "name": "budget",
        "command": "fedfair sweep configs/privacy_budget.yaml",
        "synthetic": False,
        "sweep": {"methods": list(methods)},
        "config": BASE.to_dict(),
        "seeds": list(seeds),
        "groups": ["female", "male"],
        "arms": {name: ARMS[name].meaning for name in arms},
        "pairs": PAIRS,
        "reference": REFERENCE,
        "trained_values": 752,
        "records": {"Cleveland": 303, "Switzerland": 123},
        "versions": {"fedfair": "0.1.0"},
        "code_digest": "0123456789abcdef",
        "settings": [setting.to_dict() for setting in found],
    }
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({**plan, **changes}))
    for setting in found:
        for seed in seeds:
            write_cell(
                folder / "cells" / setting.folder / f"seed-{seed}", setting, auc_of(setting, seed, scale)
            )
    return folder


def test_rounds_on_validation_records_give_no_test_figures(tmp_path: Path) -> None:
    folder = write(tmp_path / "validated", epsilons=(math.inf, 8), methods=["dual_mimo"], seeds=[0])
    cells = load_budget(folder).cells
    assert not any(math.isnan(cell.value("auc")) for cell in cells)
    plan = json.loads((folder / "sweep.json").read_text())
    for setting in plan["settings"]:
        setting["config"]["data"]["validation_fraction"] = 0.2
    (folder / "sweep.json").write_text(json.dumps(plan))
    assert all(math.isnan(cell.value("auc")) for cell in load_budget(folder).cells)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole sweep; tests only read it."""
    return write(tmp_path_factory.mktemp("budget") / "whole")


def values(arm: str, method: str, epsilon: float) -> list[float]:
    """Return the AUCs that were written, by seed."""
    setting = Setting(arm, method, epsilon, BASE)
    return [auc_of(setting, seed) for seed in SEEDS]


def row_of(folder: Path, title: str, *names: str) -> Mapping[str, str]:
    """Return the one row of a table whose first columns are `names`."""
    (table,) = [t for t in tables(load_budget(folder)) if t.title == title]
    (row,) = [r for r in table.rows if tuple(r[: len(names)]) == names]
    return dict(zip(table.heads, row, strict=True))


def interval(found: Sequence[float], form: str) -> str:
    """Return mean and t interval as the tables write them, by scipy."""
    low, high = stats.t.interval(0.95, len(found) - 1, np.mean(found), stats.sem(found))
    minus = "\N{MINUS SIGN}"
    return f"{np.mean(found):{form}} ({low:{form}} to {high:{form}})".replace("-", minus)


def test_levels_are_means_with_t_intervals(folder: Path) -> None:
    row = row_of(folder, "By arm", "gated", "dual_mimo", "3 (2.996)")
    assert row["AUC"] == interval(values("gated", "dual_mimo", 3), ".3f")
    assert row["runs"] == "4"


@pytest.mark.parametrize(
    ("own", "other", "method", "against"),
    [
        ("gated", "neutral_block", "multifair", "fedavg"),  # which has no methods of its own
        ("ungated", "neutral_block", "dual_mimo", "fedavg"),
        ("gated", "oracle_statistics", "multifair", "multifair"),
        ("neutral_block", "neutral_flat", "fedavg", "fedavg"),
    ],
)
def test_differences_are_paired_by_seed(
    folder: Path, own: str, other: str, method: str, against: str
) -> None:
    row = row_of(folder, "Differences", f"{own} \N{MINUS SIGN} {other}", method, "1 (0.996)")
    changes = np.subtract(values(own, method, 1), values(other, against, 1))
    assert row["AUC"] == interval(changes, "+z.3f")


def test_clipping_is_compared_within_a_method(folder: Path) -> None:
    for method in ("fedavg", "dual_mimo", "multifair"):
        name = "clip_only \N{MINUS SIGN} none"
        row = row_of(folder, "Differences", name, method, "none (not private)")
        changes = np.subtract(values("clip_only", method, math.inf), values("none", method, math.inf))
        assert row["AUC"] == interval(changes, "+z.3f")


def test_no_number_of_an_exact_arm_reads_as_a_promise(folder: Path) -> None:
    for title in ("By arm", "Mechanisms"):
        (table,) = [t for t in tables(load_budget(folder)) if t.title == title]
        for arm, _, epsilon, *_ in table.rows:
            exact = bool(ARMS[arm].privacy.get("exact"))
            assert ("not private" in epsilon) == exact
    write_budget(folder)
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            exact = bool(ARMS[row["arm"]].privacy.get("exact"))
            assert (row["epsilon_spent"] == "inf") == exact == bool(row["not_private"])


def test_csv_has_a_row_per_run_with_what_it_promised(folder: Path) -> None:
    write_budget(folder)
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SEEDS) * len(load_budget(folder).settings)
    (row,) = [
        r
        for r in rows
        if (r["arm"], r["method"], r["epsilon_target"], r["seed"]) == ("gated", "dual_mimo", "8.0", "2")
    ]
    assert float(row["auc"]) == values("gated", "dual_mimo", 8)[2]
    assert {key: row[key] for key in ("delta", "unit", "relation", "accountant")} == {
        **ACCOUNT,
        "delta": "1e-05",
    }
    assert (row["epsilon_spent"], row["q"], row["steps"], row["rounds"], row["C"]) == (
        "7.996",
        "0.25",
        "4",
        "2",
        "1.0",
    )
    assert (row["trained_values"], row["resolved_share"], row["status"]) == ("752", "0.5", "done")
    (quiet,) = [r for r in rows if (r["arm"], r["method"], r["seed"]) == ("none", "fedavg", "0")]
    assert (quiet["C"], quiet["sigma_g"], quiet["resolved_share"]) == ("inf", "0.0", "")


def test_verdict_when_nothing_is_useless(tmp_path: Path) -> None:
    text = verdict(load_budget(write(tmp_path / "x", (math.inf, 8))))
    assert text.startswith(
        "Differential privacy does not make the model useless: in no private setting (of 6)"
    )
    assert "0.1 below that without privacy" in text


@pytest.mark.parametrize(("scale", "why"), [(1.0, "below no privacy"), (2.2, "interval 0.4")])
def test_verdict_names_what_is_useless(tmp_path: Path, scale: float, why: str) -> None:
    """At epsilon 1 the mean falls by 0.15 * scale from its arm's: 0.19 below none, or down to 0.48."""
    text = verdict(load_budget(write(tmp_path / "x", (math.inf, 8, 1), ["dual_mimo"], scale=scale)))
    private, partly = text.split("; noise on a part alone does so ")
    assert private.startswith(
        "Differential privacy makes the model useless at epsilon 1 in 4 of 4 settings: "
    )
    assert why in private[private.index("neutral_block fedavg (") :].partition(")")[0]
    assert "epsilon 8" not in text
    assert "oracle_statistics" not in private
    assert "oracle_statistics dual_mimo (" in partly


def test_verdict_says_when_the_model_is_useless_without_privacy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEANS, "none", 0.5)
    text = verdict(load_budget(write(tmp_path / "x", (math.inf, 8), ["dual_mimo"])))
    assert text.endswith("; fedavg, dual_mimo is no better without privacy.")


def test_verdict_says_when_nothing_can_be_compared(tmp_path: Path) -> None:
    text = verdict(load_budget(write(tmp_path / "x", (8,), ["dual_mimo"], ["neutral_block", "gated"])))
    assert text.endswith("; without the arm without privacy, losses are not known.")
    assert "below that" not in text


@pytest.mark.parametrize("arms", [["none"], ["none", "oracle_statistics"]])
def test_verdict_says_nothing_without_a_private_run(tmp_path: Path, arms: Sequence[str]) -> None:
    text = verdict(load_budget(write(tmp_path / "x", (math.inf, 8), ["dual_mimo"], arms)))
    assert text.startswith("No private run is done yet")


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    text = verdict(load_budget(write(tmp_path / "x", (math.inf, 1), ["dual_mimo"], seeds=[0], scale=2.5)))
    assert "as far as fewer than 3 seeds can tell" in text
    assert "in one run" in text


def test_one_run_at_one_setting_is_told_in_the_singular(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "x", (8,), ["dual_mimo"], ["gated"], seeds=[0], records={"Cleveland": 1}, pairs=[]
    )
    text = markdown(load_budget(folder))
    assert "1 of 1 planned run (1 setting, seeds: 1) is behind these figures" in text
    assert "The smallest site, Cleveland, has 1 record: delta should lie well below 1/1" in text


def test_failed_and_missing_runs_are_shown_and_lose_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", (math.inf, 8), ["dual_mimo"])
    cells = folder / "cells" / "gated-dual_mimo-eps8"
    (cells / "seed-1" / "error.txt").write_text("the model must stay finite, got NaN\n")
    (cells / "seed-2" / "model.pt").unlink()
    text = markdown(load_budget(folder))
    assert "gated dual_mimo at epsilon 8, seed 1: failed: the model must stay finite, got NaN" in text
    assert "gated dual_mimo at epsilon 8, seed 2: missing" in text
    row = row_of(folder, "By arm", "gated", "dual_mimo", "8 (7.996)")
    assert row["runs"] == "2, 1 failed"
    kept = [values("gated", "dual_mimo", 8)[seed] for seed in (0, 3)]
    assert row["AUC"].startswith(f"{np.mean(kept):.3f} (")
    pair = row_of(folder, "Differences", "gated \N{MINUS SIGN} neutral_block")
    changes = np.subtract(kept, [values("neutral_block", "fedavg", 8)[seed] for seed in (0, 3)])
    assert pair["AUC"] == interval(changes, "+z.3f")
    page, _ = write_budget(folder)
    assert "INCOMPLETE" in page.read_text()


def test_page_states_what_epsilon_means_and_how_many_runs(folder: Path) -> None:
    page, sentence = write_budget(folder)
    html, text = page.read_text(), (folder / "table.md").read_text()
    statement = (
        f"at delta 1e-05 for {ACCOUNT['unit']} under {ACCOUNT['relation']}, by {ACCOUNT['accountant']}."
    )
    runs = f"{len(SEEDS) * len(load_budget(folder).settings)} of"
    for content in (html, text):
        assert statement in content
        assert runs in content
        assert sentence in content
    assert html.count("<svg") == 3
    assert "INCOMPLETE" not in html
    assert not [
        word
        for word in ("http://", "https://", "<script", "<link")
        if word in html.replace("http://www.w3.org", "")
    ]
    for name in ("auc", "groups", "statistics"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        svg = (folder / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert ">gated<" in svg if name != "statistics" else ">dual_mimo<" in svg  # text stays text


def test_noise_from_a_fixed_seed_is_told(tmp_path: Path) -> None:
    plain = BASE.to_dict()
    plain["privacy"]["noise_seed"] = 3
    folder = write(tmp_path / "x", (8,), ["dual_mimo"], ["gated"], config=plain)
    assert "protect nobody" in load_budget(folder).statement
