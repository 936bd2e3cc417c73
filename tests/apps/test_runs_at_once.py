"""Several runs at a time: the same numbers, all of their news, one sentence, nothing lost."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
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
from simulations.pool import _News, run_in_pool
from tests.apps.runs import HEART, PRIVATE, ROOT, rounds, same_bits

SMALL = ("--set", "rounds=2", "--set", "report.resamples=20", "--seeds", "2")
RUNS = [f"seed-{seed}/{arm}" for seed in (0, 1) for arm in ("fedavg", "dual_mimo")]


def simulate(out: Path, *more: str) -> int:
    """Run configs/heart.yaml into `out`, two seeds unless told otherwise."""
    return main(["simulate", str(HEART), *SMALL, "--output", str(out), *more])


def living(session: int) -> list[str]:
    """Return the processes of a session that have not ended, where the system tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            found.append([*path.read_text().rpartition(") ")[2].split()[:4], path.parent.name])
    # State, parent, group, session; the process itself last.
    return [" ".join(own) for own in found if own[3] == str(session) and own[0] != "Z"]


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


class Deaf(logging.Handler):
    """Fails at the first record, as a terminal does that is gone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise."""
        raise BrokenPipeError(record.name)


@pytest.mark.slow
def test_what_cannot_be_told_ends_the_runs(tmp_path: Path) -> None:
    """5000 records are more than a pipe holds: were they not read, the workers would never end."""
    runs = {}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        RunFolder(tmp_path / name).save_config(load(HEART, ["rounds=5000"]))
        runs[tmp_path / name] = name
    with pytest.raises(BrokenPipeError, match=r"fedfair\.rounds"):
        run_in_pool(runs, 4, 2, lambda *_: pytest.fail("a run has ended"), Deaf())
    assert not list(tmp_path.glob("*/model.pt"))


@pytest.mark.slow
def test_records_are_read_on_when_nobody_hears_them() -> None:
    spawn = multiprocessing.get_context("spawn")
    records, stop = spawn.Queue(), spawn.Event()
    record = logging.LogRecord("fedfair.rounds", logging.INFO, "", 0, "x" * 4096, None, None)
    with _News(records, Deaf(), stop) as heard:
        for _ in range(200):  # a pipe holds some sixteen
            records.put(record)
        end = time.monotonic() + 20
        while not records.empty() and time.monotonic() < end:
            time.sleep(0.02)
    assert records.empty()
    records.close()
    records.join_thread()
    assert isinstance(heard.failure, BrokenPipeError)
    assert stop.is_set()


@pytest.mark.slow
def test_an_interrupted_worker_interrupts_the_experiment(tmp_path: Path) -> None:
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
    command += ["--set", "rounds=400", "--set", "report.resamples=20"]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    log, end = out / "seed-0/dual_mimo/rounds.jsonl", time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert running.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    workers = [stat for stat in living(running.pid) if stat.split()[1] == str(running.pid)]
    for stat in workers:
        pid = int(stat.split()[4])
        # Python's tracker of what processes share is a child too, and ignores it.
        os.kill(pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "--resume" in said


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 1])
def test_nobody_outlives_a_killed_main_process(tmp_path: Path, seeds: int) -> None:
    """With three seeds runs share four processes, with one its sites do; orphans would train on."""
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
        "4",
    ]
    command += ["--set", "rounds=2000", "--seeds", str(seeds)]
    running = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    log, end = out / "seed-0/fedavg/rounds.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 2) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(living(running.pid)) > 4
    running.kill()
    running.wait()
    while living(running.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not living(running.pid)


@pytest.mark.slow
def test_a_killed_worker_of_sites_is_told_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedfair", "simulate", str(HEART), "--output", str(tmp_path / "out")]
    command += ["--workers", "4", "--set", "rounds=2000"]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    log, end = tmp_path / "out/seed-0/fedavg/rounds.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 2) and time.monotonic() < end:
        time.sleep(0.02)
    # The newest child: the first is Python's tracker of what processes share.
    children = [int(stat.split()[4]) for stat in living(running.pid) if stat.split()[1] == str(running.pid)]
    os.kill(max(children), signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "Traceback" not in said
    assert "every worker process must live until the end" in said.splitlines()[-1]


def test_runs_that_share_a_budget_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two would take what the other had counted on."""
    monkeypatch.setattr("simulations.pool.run_in_pool", lambda *_: pytest.fail("runs share a budget"))
    monkeypatch.setattr("simulations.engines._run_in_process", lambda *_: None)
    private = ["simulate", str(PRIVATE), "--seeds", "3", "--workers", "2"]
    shared = ["--set", f"privacy.ledger={tmp_path / 'ledger'}"]
    assert main([*private, *shared, "--output", str(tmp_path / "shared")]) == 0
    with pytest.raises(pytest.fail.Exception, match="share a budget"):
        main([*private, "--output", str(tmp_path / "own")])


def test_a_baseline_that_cannot_be_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["simulate", str(ROOT / "configs/synthetic_private.yaml"), "--output", str(out)]
    for text in (
        "method.name=fedavg",
        "report.baseline=dual_mimo",
        "privacy.engine=opacus",
        "privacy.clipping=flat",
        "training.mode=update",
    ):
        command += ["--set", text]
    assert main(command) == 1
    assert "must be weights for engine opacus" in capsys.readouterr().err
    assert not out.exists()
