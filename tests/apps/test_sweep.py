"""A privacy-budget experiment end to end on the heart data: two rounds, two seeds, two epsilons."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fedfair.cli import main
from fedfair.config import load
from fedfair.privacy.ledger import Ledger
from tests.apps.runs import ROOT, same_bits

pytest.importorskip("opacus")

ARMS = ("none", "neutral_block", "gated", "oracle_statistics")
SETTINGS = (
    *("none-fedavg-epsinf", "none-dual_mimo-epsinf"),
    *("neutral_block-fedavg-eps8", "gated-dual_mimo-eps8", "oracle_statistics-dual_mimo-eps8"),
)


def sweep_file(folder: Path, **changes: object) -> Path:
    plain = {
        "name": "sweep",
        "base": str(ROOT / "configs" / "heart_private.yaml"),
        "epsilons": [math.inf, 8],
        "methods": ["dual_mimo"],
        "arms": list(ARMS),
        "seeds": 2,
        "set": {"rounds": 2},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**plain, **changes}))
    return path


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a sweep's file and its folder, all cells done; noise of a fixed seed, so that bits repeat."""
    folder = tmp_path_factory.mktemp("sweep")
    path = sweep_file(folder, set={"rounds": 2, "privacy.noise_seed": 5})
    assert main(["sweep", str(path), "--output", str(folder / "out"), "--workers", "2"]) == 0
    return path, folder / "out"


def test_every_cell_is_a_run_of_its_own(swept: tuple[Path, Path]) -> None:
    _, out = swept
    assert sorted(p.name for p in (out / "cells").iterdir()) == sorted(SETTINGS)
    for cell in out.glob("cells/*/seed-*"):
        config = load(cell / "config.yaml")
        assert config.seed == int(cell.name.partition("-")[2])
        assert Path(str(config.privacy.ledger)).parent == cell
        assert list((cell / "ledgers").glob("*.json"))
        assert (cell / "model.pt").is_file()
    rows = read(out)
    assert [row["status"] for row in rows] == ["done"] * 10
    assert len({row["auc"] for row in rows}) == 10
    assert json.loads((out / "sweep.json").read_text())["status"] == "complete"


def test_a_cell_is_bit_for_bit_the_run_that_its_configuration_describes(
    swept: tuple[Path, Path], tmp_path: Path
) -> None:
    cell = swept[1] / "cells" / "gated-dual_mimo-eps8" / "seed-1"
    out = tmp_path / "alone"
    config = str(cell / "config.yaml")
    assert main(["simulate", config, "--set", "privacy.ledger=null", "--output", str(out)]) == 0
    assert same_bits(cell, out / "seed-1" / "dual_mimo")


def test_what_is_written_as_spent_is_what_the_ledgers_hold(swept: tuple[Path, Path]) -> None:
    _, out = swept
    (row,) = [r for r in read(out) if (r["arm"], r["seed"]) == ("gated", "0")]
    cell = out / "cells" / "gated-dual_mimo-eps8" / "seed-0"
    for path in (cell / "ledgers").glob("*.json"):
        owner = json.loads(path.read_text())
        ledger = Ledger(path, owner["dataset"], owner["site"], 1e-5, None)
        # The noise of this sweep can be drawn again, so the ledgers count it as none.
        counted = [(event.sample_rate, event.steps) for event in ledger.events()]
        assert ledger.statement("x").epsilon == math.inf
        assert sorted(counted) == [(0.25, 8), (1.0, 1)]
    told = json.loads((cell / "privacy.json").read_text())
    assert told["epsilon"] == float(row["epsilon_spent"]) <= 8
    assert (row["delta"], row["relation"]) == ("1e-05", "add or remove one record")
    assert row["accountant"].startswith("Opacus PRV")


def test_gated_and_oracle_have_the_same_noise_on_gradients(swept: tuple[Path, Path]) -> None:
    rows = {row["arm"]: row for row in read(swept[1])}
    assert rows["gated"]["sigma_g"] == rows["oracle_statistics"]["sigma_g"]
    assert rows["oracle_statistics"]["sigma_h"] == "0.0"
    assert float(rows["neutral_block"]["sigma_g"]) < float(rows["gated"]["sigma_g"])


def test_resume_runs_what_failed_and_keeps_the_rest(
    swept: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = swept
    again = ["sweep", str(path), "--output", str(out), "--resume", "--workers", "1"]
    cell = out / "cells" / "gated-dual_mimo-eps8" / "seed-1"
    before = {p: p.stat().st_mtime_ns for p in out.glob("cells/*/*/model.pt") if p.parent != cell}
    good, model = {p: p.read_bytes() for p in cell.glob("checkpoints/*")}, (cell / "model.pt").read_bytes()
    (cell / "model.pt").unlink()
    for path, content in good.items():
        path.write_bytes(b"x" + content)
    assert main(again) == 1
    assert "all are damaged" in (cell / "error.txt").read_text()
    assert "9 of 10 cells are done, 1 failed" in capsys.readouterr().err
    (row,) = [r for r in read(out) if r["status"] != "done"]
    assert (row["arm"], row["seed"], row["status"], row["auc"]) == ("gated", "1", "failed", "")
    assert "failed: " in (out / "table.md").read_text()

    for path, content in good.items():
        path.write_bytes(content)
    assert main(again) == 0
    assert not (cell / "error.txt").exists()
    assert (cell / "model.pt").read_bytes() == model
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert {r["status"] for r in read(out)} == {"done"}


@pytest.mark.parametrize(
    ("changes", "override", "key"),
    [
        ({"epsilons": [math.inf, 4]}, "rounds=2", "sweep.epsilons"),
        ({"seeds": 3}, "rounds=2", "sweep.seeds"),
        ({}, "training.learning_rate=0.25", "config.training.learning_rate"),
    ],
)
def test_resume_refuses_another_sweep(
    swept: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    override: str,
    key: str,
) -> None:
    settings = {"rounds": 2, "privacy.noise_seed": 5}
    path = sweep_file(tmp_path, **{"set": settings, **changes})
    arguments = ["sweep", str(path), "--set", override, "--output", str(swept[1]), "--resume"]
    assert main(arguments + (["--seeds", "3"] if "seeds" in changes else [])) == 1
    assert f"`{key}` must be as in the sweep to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("heart.yaml", "`privacy.mode` of a sweep's base must be sample, got 'off'"),
        ("hart_private.yaml", "must be an existing file"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str, message: str
) -> None:
    path = sweep_file(tmp_path, base=str(ROOT / "configs" / base))
    assert main(["sweep", str(path), "--output", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_noised_test_figures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = sweep_file(tmp_path), tmp_path / "out"
    assert main(["sweep", str(path), "--set", "privacy.evaluation=released", "--output", str(out)]) == 1
    assert "`privacy.evaluation` of a sweep's base must be exact" in capsys.readouterr().err


def test_rounds_on_validation_records_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = sweep_file(tmp_path, set={"rounds": 2, "data.validation_fraction": 0.2}), tmp_path / "out"
    assert main(["sweep", str(path), "--output", str(out)]) == 1
    assert "`data.validation_fraction` of a sweep's base must be 0, got 0.2" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    path, out = sweep_file(tmp_path, seeds=8), tmp_path / "out"
    command = [sys.executable, "-m", "fedfair", "sweep", str(path), "--output", str(out), "--workers", "2"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("cells/*/*/model.pt")):
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert "go on with: fedfair sweep" in said
    assert "Traceback" not in said
    done = {p: p.stat().st_mtime_ns for p in out.glob("cells/*/*/model.pt")}
    assert 0 < len(done) < 40
    assert {row["status"] for row in read(out)} == {"done", "missing"}
    assert main(["sweep", str(path), "--output", str(out), "--resume", "--workers", "2"]) == 0
    assert len(list(out.glob("cells/*/*/model.pt"))) == 40
    assert done == {p: p.stat().st_mtime_ns for p in done}
