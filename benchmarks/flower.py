"""The same run on Flower's own simulation engine (Ray): what a round costs there, and the start."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks._run import experiment
from benchmarks._table import Table, milliseconds
from fedfair.errors import MissingDependency

SITES = 10
ROUNDS = 6


def tables() -> Iterator[Table]:
    """Yield the start and the cost per round."""
    columns = ("sites", "run without its rounds", "first round", "per round after it")
    try:
        start, first, later = measure()
        row = (str(SITES), milliseconds(start), milliseconds(first), milliseconds(later))
    except MissingDependency:
        row = (str(SITES), "Ray is not installed", "", "")
    yield Table("flower", columns, [row])


def measure() -> tuple[float, float, float]:
    """Return the seconds of all but the rounds (SuperLink, Ray, bundle), of round 1, and of a later round."""
    from simulations.flower_engine import run_on_flower

    with tempfile.TemporaryDirectory() as folder:
        (config := Path(folder) / "config.yaml").write_text(json.dumps(experiment(SITES, ROUNDS)))
        begin = time.perf_counter()
        run_on_flower({"config": str(config), "overrides": "", "output": folder}, SITES)
        whole = time.perf_counter() - begin
        lines = (Path(folder) / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    # A line is written as the round ends; the last one is the final evaluation.
    return whole - sum(seconds), seconds[0], float(np.median(seconds[1:-1]))
