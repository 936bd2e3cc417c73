"""Whole runs under privacy of sites: the account, the cap, and a word about what to expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedfair.budget import notices
from fedfair.cli import main
from fedfair.coordinator import Coordinator
from fedfair.privacy.accounting import Event, epsilon
from fedfair.privacy.site_level import feasibility
from fedfair.site import Workbench
from tests.apps.runs import ROOT
from tests.privacy.hospital import configured
from tests.privacy.people import schema

SIGMA = 2.0
MODE = (
    f"privacy={{mode: site, noise_multiplier: {SIGMA}, target_delta: 1e-5, clipping_norm: 0.05, "
    "evaluation: exact, statistics: {every: 1, bins: 8, noise_multiplier: 5.0}}"
)


def test_the_note_says_when_noise_outvotes_the_sites() -> None:
    assert feasibility(1.0, 16, 4) is None
    note = feasibility(1.0, 100, 4)
    assert note is not None
    assert "2.5 times the largest signal (100 trained values; about 16" in note


def test_a_run_says_it_before_it_starts() -> None:
    config = configured(MODE)
    coordinator = Coordinator(config, schema(), Workbench(config, schema()).vectors())
    *_, note = notices(config, 4, coordinator.values)
    assert note.startswith("site-level privacy asks for more noise than 4 sites can outvote")


def run(*overrides: str) -> dict[str, Any]:
    """Run the real hospitals and return the account."""
    sets = [
        part for o in (MODE, "method.name=fedavg", "report.resamples=20", *overrides) for part in ("--set", o)
    ]
    assert main(["simulate", str(ROOT / "configs" / "heart_private.yaml"), "--output", "out", *sets]) == 0
    told: dict[str, Any] = json.loads(Path("out/seed-0/fedavg/privacy.json").read_text())
    return told


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out" / "seed-0" / "fedavg"


def test_a_whole_run(folder: Path) -> None:
    told = run("rounds=2")
    assert told["unit"] == "all training records of one site (test figures are not protected)"
    assert told["relation"] == "emptying one site (who takes part is public)"
    assert [Event(**event) for event in told["events"]] == [Event(SIGMA, 1.0, 2)]
    (ledger,) = (folder / "ledgers").glob("*.json")
    assert "all sites" in ledger.read_text()


def test_the_cap_ends_a_run_after_a_whole_round(folder: Path) -> None:
    spent = epsilon([Event(SIGMA, 1.0, 2)], 1e-5)
    told = run("rounds=5", f"privacy.max_epsilon={spent + 1e-6!r}")
    assert told["rounds"] == 2
    assert told["epsilon"] == spent
    assert "must not be exceeded" in told["stopped"]
    assert (folder / "model.pt").is_file()


def test_no_evaluation_records_no_test_figure(folder: Path) -> None:
    run("privacy.evaluation=none", "rounds=1")
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["test"] for line in lines] == [{}, {}]
