"""Whole runs and their ledgers: what was charged stays charged, adds up over runs, and ends at the cap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fedfair.budget import planned, site_ledger
from fedfair.cli import main
from fedfair.config import load
from fedfair.data.heart import heart
from fedfair.privacy.accounting import Event, epsilon, merge
from tests.apps.runs import ROOT

CONFIG = ROOT / "configs" / "heart_private.yaml"
TRAINING, RELEASE = Event(4.0, 0.25, 4), Event(20.0, 1.0, 1)
# One arm, so that all that is charged is one run's.
QUICK = [
    "method.name=fedavg",
    "privacy.target_epsilon=null",
    f"privacy.noise_multiplier={TRAINING.noise_multiplier}",
    f"privacy.statistics.noise_multiplier={RELEASE.noise_multiplier}",
    "privacy.statistics.every=2",
    "privacy.evaluation=released",
    "report.resamples=20",
]
DELTA = 1e-5


def arguments(folder: Path, output: str, *overrides: str) -> list[str]:
    sets = [*QUICK, f"privacy.ledger={folder / 'ledgers'}", *overrides]
    return [
        *("simulate", str(CONFIG), "--output", str(folder / output)),
        *(part for override in sets for part in ("--set", override)),
    ]


def charged(folder: Path) -> dict[str, tuple[Event, ...]]:
    """Return what each hospital's ledger holds."""
    config = load(CONFIG, QUICK)
    return {site: site_ledger(config, folder / "ledgers", site).events() for site in heart().schema.sites}


def cost(rounds: int, releases: int) -> tuple[Event, ...]:
    """Return the charge of so many rounds and releases, the final evaluation among them."""
    events = [Event(TRAINING.noise_multiplier, TRAINING.sample_rate, TRAINING.steps * rounds)]
    return merge([*events, Event(RELEASE.noise_multiplier, 1.0, releases)])


def account(folder: Path, output: str = "out") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / output / "seed-0" / "fedavg" / "privacy.json").read_text())
    return read


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_is_charged_what_was_planned_and_reports_it(tmp_path: Path) -> None:
    assert main(arguments(tmp_path, "out", "rounds=3")) == 0
    plan = planned(load(CONFIG, [*QUICK, "rounds=3"]))
    assert plan == cost(3, 3)
    assert charged(tmp_path) == dict.fromkeys(heart().schema.sites, plan)
    told = account(tmp_path)
    assert told["epsilon"] == epsilon(plan, DELTA)
    assert (told["stopped"], told["not_private"]) == (None, None)
    assert told["statement"].startswith(f"epsilon {told['epsilon']:.4g} at delta 1e-05 for one patient")


def test_a_second_run_on_the_same_records_adds_up(tmp_path: Path) -> None:
    for output in ("one", "two"):
        assert main(arguments(tmp_path, output, "rounds=1")) == 0
    assert charged(tmp_path) == dict.fromkeys(heart().schema.sites, cost(2, 4))
    assert len(list((tmp_path / "ledgers").glob("*.json"))) == 4


def test_a_run_that_is_killed_has_paid_and_its_next_pays_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedfair", *arguments(tmp_path, "killed", "rounds=2000")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        log = tmp_path / "killed" / "seed-0" / "fedavg" / "rounds.jsonl"
        end = time.monotonic() + 60
        while not (log.is_file() and log.read_text().count("\n") >= 3) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    committed = log.read_text().count("\n")
    assert committed >= 3
    before = charged(tmp_path)
    for events in before.values():
        # The round in which it died may have been charged and never committed; no round is the other way.
        (steps,) = (e.steps for e in events if e.sample_rate == TRAINING.sample_rate)
        assert committed * TRAINING.steps <= steps <= (committed + 2) * TRAINING.steps
    assert main(arguments(tmp_path, "next", "rounds=1")) == 0
    for site, events in charged(tmp_path).items():
        assert events == merge([*before[site], *cost(1, 2)])


def capped(rounds: int, releases: int) -> str:
    """Return a cap that so much reaches, and a round more does not."""
    return f"privacy.max_epsilon={epsilon(cost(rounds, releases), DELTA) + 1e-6!r}"


def test_the_cap_ends_a_run_after_a_whole_round_with_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Releases in rounds 1 and 3, and the final one that is held in reserve.
    assert main(arguments(tmp_path, "out", "rounds=6", capped(3, 3))) == 0
    assert charged(tmp_path) == dict.fromkeys(heart().schema.sites, cost(3, 3))
    run = tmp_path / "out" / "seed-0" / "fedavg"
    told = account(tmp_path)
    assert told["rounds"] == 3
    assert told["epsilon"] == epsilon(cost(3, 3), DELTA)
    assert "must not be exceeded" in told["stopped"]
    assert [json.loads(line)["round"] for line in (run / "rounds.jsonl").read_text().splitlines()] == [
        0,
        1,
        2,
        3,
    ]
    state = torch.load(run / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    assert any(value.abs().sum() > 0 for value in state.values())
    assert (tmp_path / "out" / "report.html").is_file()
    capsys.readouterr()


def test_a_cap_keeps_what_the_final_evaluation_needs(tmp_path: Path) -> None:
    """Three rounds would fit, but then nobody would know how good the model is."""
    assert main(arguments(tmp_path, "out", "rounds=6", capped(3, 2))) == 0
    assert charged(tmp_path) == dict.fromkeys(heart().schema.sites, cost(2, 2))
    assert account(tmp_path)["rounds"] == 2
    assert (tmp_path / "out" / "seed-0" / "fedavg" / "evaluation.npz").is_file()


def test_an_exhausted_ledger_refuses_the_next_run_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = capped(1, 2)
    assert main(arguments(tmp_path, "out", "rounds=1", cap)) == 0
    capsys.readouterr()
    before = charged(tmp_path)
    assert main(arguments(tmp_path, "next", "rounds=1", cap)) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedfair: ")]
    assert len(said) == 1
    assert "`privacy.max_epsilon` of site Cleveland must not be exceeded" in said[0]
    assert "stop here, or let the site's data protection raise the cap" in said[0]
    assert charged(tmp_path) == before
    assert not (tmp_path / "next" / "seed-0" / "fedavg" / "model.pt").exists()


def test_what_one_exhausted_site_ends_is_paid_by_all_that_answered(tmp_path: Path) -> None:
    """The others have released a round more than was committed, and the account says so."""
    config = load(CONFIG, QUICK)
    earlier = site_ledger(config, tmp_path / "ledgers", "Hungary")
    earlier.charge("an earlier study", [Event(TRAINING.noise_multiplier, 0.25, 4)])
    assert main(arguments(tmp_path, "out", "rounds=6", capped(3, 3))) == 0
    found = charged(tmp_path)
    # Hungary had paid for a round before, and ends the third; the others have answered it.
    assert found["Hungary"] == cost(3, 2)
    assert found["Cleveland"] == cost(3, 3)
    assert account(tmp_path)["epsilon"] >= epsilon(found["Cleveland"], DELTA)


def test_a_resumed_run_goes_on_with_the_same_account(tmp_path: Path) -> None:
    assert main(arguments(tmp_path, "out", "rounds=2")) == 0
    (tmp_path / "out" / "seed-0" / "fedavg" / "model.pt").unlink()
    assert main([*arguments(tmp_path, "out", "rounds=2"), "--resume"]) == 0
    # No round was repeated, the final evaluation was.
    assert charged(tmp_path) == dict.fromkeys(heart().schema.sites, cost(2, 3))
