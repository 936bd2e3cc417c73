"""`kill -9` at a random moment of a simulation; it goes on to the same bits."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.apps.runs import HEART, ROOT, same_bits

ROUNDS = 12
SET = [
    part
    for text in (f"rounds={ROUNDS}", "report.resamples=20", "server.momentum=0.5")
    for part in ("--set", text)
]


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fedfair", "simulate", str(HEART), *SET, "--output", str(output), *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(output), cwd=ROOT, check=True, capture_output=True)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_simulation_resumes_with_the_same_bits(whole: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    arm, lines = draw.choice(["fedavg", "dual_mimo"]), draw.randrange(1, ROUNDS)
    output = tmp_path / "run"
    records = output / "seed-0" / arm / "rounds.jsonl"
    with subprocess.Popen(
        command(output), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and (not records.is_file() or records.read_bytes().count(b"\n") < lines):
            time.sleep(0.002)
        time.sleep(draw.random() * 0.03)  # a round takes some 30 ms: any moment of it
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command(output, "--resume"), cwd=ROOT, check=True, capture_output=True)
    for name in ("fedavg", "dual_mimo"):
        assert same_bits(whole / "seed-0" / name, output / "seed-0" / name)
