"""Large models through a whole federation on the loopback: seconds of an exchange, and memory.

Two groups, dual-level MIMO in update mode, so that each answer is two models. TLS, nginx and the
SuperLink are those of a deployment; the network is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._federation import PROGRAMS, ROOT, Watch, federation
from benchmarks._table import Table, milliseconds
from simulations.programs import environment, reason

ROUNDS = 4
CASES = ((0, 2), (25, 2), (100, 2), (100, 4), (400, 2))  # megabytes, sites


def tables() -> Iterator[Table]:
    """Yield one table: a row per size of the model and number of sites."""
    columns = ("model", "sites", "exchange", *PROGRAMS.values())
    yield Table("large-models", columns, [measure(*case) for case in CASES])


def measure(megabytes: int, sites: int) -> tuple[str, ...]:
    """Return one row."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        (config := path / "config.yaml").write_text(
            json.dumps(experiment(megabytes, sites)), encoding="utf-8"
        )
        names = [f"site-{number:04d}" for number in range(1, sites + 1)]
        with federation(path, names) as folder, Watch() as watch:
            words = ["submit", str(config), "--federation", str(folder), "--output", str(path / "out")]
            done = subprocess.run(
                [sys.executable, "-m", "fedfair", *words],
                cwd=path,
                env={**environment(path), "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
        time = _seconds(path / "out") if done.returncode == 0 else f"fails: {reason(done.stderr)}"
    return (f"{megabytes} MB", str(sites), time, *(f"{size / 1e6:.0f} MB" for size in watch.peaks.values()))


def experiment(megabytes: int, sites: int) -> dict[str, object]:
    """Return a configuration whose model has so many megabytes of float32."""
    # One modality, and nearly all in the matrix between its two hidden layers.
    width = max(16, round((megabytes * 1e6 / 4) ** 0.5))
    modalities = {"table": {"width": 8, "signal": [1.2, 1.2]}}
    return {
        "name": "large",
        "rounds": ROUNDS,
        "data": {"name": "synthetic", "options": {"sites": sites, "records": 64, "modalities": modalities}},
        "model": {"options": {"hidden": [width, width]}},
        "method": {"name": "dual_mimo"},
        "training": {"batch_size": 32, "learning_rate": 0.01},
        "server": {"min_sites": sites, "attempts": 1},
        "report": {"resamples": 20},
    }


def _seconds(output: Path) -> str:
    """Return the median time of a round after the first, which is one exchange."""
    (log,) = output.glob("*/*/rounds.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines()
    return milliseconds(float(np.median([json.loads(line)["seconds"] for line in lines[1:]])))
