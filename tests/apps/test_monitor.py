"""The best model of a run is chosen by validation records, kept, and what the run ends with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from client.app import app as client_app
from server.app import app as server_app
from tests.apps.runs import HEART, rounds, run, same_bits, weights
from tests.apps.test_resume import Cut, CutGrid

# It overshoots: the best round is not the last one.
WILD = ("training.learning_rate=2", "data.attribute=age", "data.validation_fraction=0.3")
MONITORED = ("rounds=6", "server.monitor=auc", *WILD)


def figures(folder: Path) -> list[float]:
    return [np.nan if line["test"]["auc"] is None else line["test"]["auc"] for line in rounds(folder)]


def test_the_best_model_is_the_one_that_is_kept(tmp_path: Path) -> None:
    folder = run(tmp_path / "best", MONITORED)
    best = int(np.nanargmax(figures(folder)))
    assert 0 < best < 6
    assert json.loads((folder / "outcome.json").read_text())["best_round"] == best
    shorter = run(tmp_path / "shorter", [f"rounds={best}", *WILD])
    assert all(torch.equal(weights(folder)[k], weights(shorter)[k]) for k in weights(folder))
    with np.load(folder / "evaluation.npz") as ours, np.load(shorter / "evaluation.npz") as theirs:
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours.files)


def test_training_stops_when_the_figure_no_longer_improves(tmp_path: Path) -> None:
    overrides = ["rounds=30", *MONITORED[1:], "server.patience=3"]
    found = figures(run(tmp_path / "run", overrides))
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["stopped"] == "`auc` did not improve for 3 rounds"
    # The model of round r is measured in round r + 1, so one more has been trained, and is measured too.
    assert len(found) == int(np.nanargmax(found[:-1])) + 3 + 2


def cut(output: Path, overrides: Sequence[str], exchange: int) -> None:
    grid = CutGrid(client_app, 4)
    grid.left = exchange
    values = {"config": str(HEART), "overrides": ";".join(overrides), "output": str(output)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(Cut):
        server_app(grid, context)


@pytest.mark.parametrize("exchange", [0, 3, 5, 7, 8])
def test_a_monitored_run_resumes_with_the_same_bits(tmp_path: Path, exchange: int) -> None:
    """Exchange 0 is the survey, 1 to 6 are the rounds, 7 measures the last model, 8 the best one."""
    cut(tmp_path / "cut", MONITORED, exchange)
    assert same_bits(run(tmp_path / "whole", MONITORED), run(tmp_path / "cut", MONITORED))
    same = [json.loads((tmp_path / f / "outcome.json").read_text())["best_round"] for f in ("whole", "cut")]
    assert same[0] == same[1]
