"""Several runs at a time: the same numbers, all of their news, one sentence, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfair.cli import main
from fedfair.config import load
from fedfair.record import RunFolder
from simulations.pool import run_in_pool
from tests.apps.runs import HEART, ROOT, rounds, same_bits

SMALL = ("--set", "rounds=2", "--set", "report.resamples=20", "--seeds", "2")
RUNS = [f"seed-{seed}/{arm}" for seed in (0, 1) for arm in ("fedavg", "dual_mimo")]


def simulate(out: Path, *more: str) -> int:
    """Run configs/heart.yaml into `out`, two seeds unless told otherwise."""
    return main(["simulate", str(HEART), *SMALL, "--output", str(out), *more])


def living(session: int) -> list[str]:
    """Return the processes of a session that have not ended, where the system tells."""
    found = [path.read_text().rpartition(") ")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    # State, parent, group, session.
    return [" ".join(stat[:4]) for stat in found if stat[3] == str(session) and stat[0] != "Z"]


@pytest.mark.slow
def test_runs_at_once_give_the_same_bits_and_tell_of_all_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(tmp_path / "one") == 0
    one = capsys.readouterr()
    # Four runs, four sites: as many processes as both can use, so runs share them.
    assert simulate(tmp_path / "many", "--workers", "2") == 0
    many = capsys.readouterr()
    for folder in RUNS:
        assert same_bits(tmp_path / "one" / folder, tmp_path / "many" / folder)
    # Without a terminal the initial model of each run is told.
    assert len(one.err.splitlines()) == len(RUNS)
    assert sorted(many.err.splitlines()) == sorted(one.err.splitlines())
    assert many.out.replace("many", "one") == one.out


@pytest.mark.slow
def test_sites_share_the_processes_where_there_are_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of four sites on four processes: two would lie idle if runs shared them."""
    monkeypatch.setattr("simulations.pool.run_in_pool", lambda *_: pytest.fail("runs shared them"))
    assert simulate(tmp_path / "out", "--seeds", "1", "--workers", "4") == 0
    assert [r["round"] for r in rounds(tmp_path / "out/seed-0/dual_mimo")] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_that_fails_ends_the_others_with_its_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No number is left after the first step, and three attempts say the same."""
    out, command = tmp_path / "out", ["--set", "training.learning_rate=1e30", "--workers", "2"]
    assert simulate(out, *command) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("fedfair: round 1 could not be committed in 3 attempts")
    assert len(said) == len(set(said))
    assert not any("Traceback" in line for line in said)
    assert not out.exists()  # nothing was trained


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_all_of_them_and_resume_goes_on(tmp_path: Path, whole_group: bool) -> None:
    """A terminal tells each process, `kill -INT` the first alone; 60 rounds leave time for both."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "fedfair",
        "simulate",
        str(HEART),
        "--output",
        str(out),
        "--workers",
        "2",
    ]
    command += ["--set", "rounds=60", "--set", "report.resamples=20"]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    logs = [out / "seed-0" / arm / "rounds.jsonl" for arm in ("fedavg", "dual_mimo")]
    end = time.monotonic() + 60
    while not all(log.is_file() and log.read_text().count("\n") >= 3 for log in logs):
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    if whole_group:
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert f"--seeds 1 --resume --output {out}" in said
    assert "Traceback" not in said
    # Python's own tracker of what processes share sees their end, and ends.
    end = time.monotonic() + 20
    while living(running.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not living(running.pid)
    done = [len(rounds(log.parent)) for log in logs]
    assert subprocess.run([*command, "--resume"], cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert [len(rounds(log.parent)) for log in logs] == [61, 61]
    assert min(done) >= 3


@pytest.mark.slow
def test_a_run_gets_no_further_round_once_another_has_ended_all(tmp_path: Path) -> None:
    """What is told may end the others: with a run that is done at once, a long one stops."""
    short, long = tmp_path / "short", tmp_path / "long"
    for folder, count in ((short, 1), (long, 5000)):
        folder.mkdir()
        RunFolder(folder).save_config(load(HEART, [f"rounds={count}"]))

    def told(folder: Path, error: str | None) -> None:
        end = time.monotonic() + 60
        while not (long / "rounds.jsonl").is_file() and time.monotonic() < end:
            time.sleep(0.02)
        raise InterruptedError(f"{folder.name} {error}")

    with pytest.raises(InterruptedError, match="short None"):
        run_in_pool({short: "short", long: "long"}, 4, 2, told)
    assert 0 < len(rounds(long)) < 5000
    assert not (long / "model.pt").exists()
