"""A whole run that chooses its model: by validation records alone, and the same after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from fedfair.config import load
from fedfair.coordinator import Coordinator
from fedfair.data.heart import heart
from fedfair.data.schema import SiteRecords
from fedfair.record import RunFolder
from fedfair.site import Site, Workbench
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, rounds, run, same_bits, weights

# Steps so large that the best model is neither the first nor the last.
CHOOSING = (
    *("rounds=12", "data.validation_fraction=0.3", "report.group_min=2", "training.learning_rate=0.5"),
    *("server.monitor=es_auc", "server.patience=2", "report.resamples=20"),
)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("chosen") / "run", CHOOSING)


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return found


def test_the_best_model_by_the_records_is_the_one_that_is_kept(chosen: Path) -> None:
    figures = [line["test"]["es_auc"] for line in rounds(chosen)]
    best = int(np.argmax(figures))
    assert outcome(chosen)["best_round"] == best
    # Two models without improvement end the training; the one that was trained meanwhile is measured, too.
    assert 2 < best == len(figures) - 4
    assert len(figures) < 12
    assert "did not improve for 2 rounds" in outcome(chosen)["stopped"]
    config = load(HEART, CHOOSING)
    bench = Workbench(config, heart().schema)
    coordinator = Coordinator(config, heart().schema, bench.vectors())
    RunFolder(chosen).checkpoints.load_best(coordinator, best)
    assert coordinator.round == best
    bench.load(coordinator.model)
    own, kept = bench.model.state_dict(), weights(chosen)
    assert all(np.array_equal(own[name], kept[name]) for name in kept)


def test_it_is_the_model_of_a_run_that_ends_there(chosen: Path, tmp_path: Path) -> None:
    plain = [part for part in CHOOSING if not part.startswith(("rounds", "server."))]
    shorter = run(tmp_path / "shorter", [f"rounds={outcome(chosen)['best_round']}", *plain])
    assert all(np.array_equal(weights(shorter)[name], value) for name, value in weights(chosen).items())
    with np.load(shorter / "evaluation.npz") as ours, np.load(chosen / "evaluation.npz") as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours.files)


def test_wrong_test_records_change_the_evaluation_alone(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Site.__init__

    def poisoned(self: Site, *given: Any) -> None:
        own(self, *given)
        right = self._test_records
        self._test_records = SiteRecords(right.modalities, 1 - right.labels, right.attributes)

    monkeypatch.setattr(Site, "__init__", poisoned)
    wrong = run(tmp_path / "wrong", CHOOSING)
    assert same_bits(chosen, wrong)
    assert outcome(chosen) == outcome(wrong)
    with np.load(chosen / "evaluation.npz") as right, np.load(wrong / "evaluation.npz") as other:
        assert np.array_equal(right["train_counts"], other["train_counts"])
        assert np.array_equal(right["counts"][..., ::-1], other["counts"])
        assert not np.array_equal(right["histograms"], other["histograms"])


class Cut(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("exchange", [1, 5, 8, 9, 10])
def test_a_run_that_was_cut_chooses_the_same_model(chosen: Path, tmp_path: Path, exchange: int) -> None:
    """Exchange 0 is the survey, 1 to 8 are the rounds; 9 validates the last model, 10 assesses the best."""

    class CutGrid(InProcessGrid):
        left = exchange

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            self.left -= 1
            if self.left < 0:
                raise Cut
            return super().push_messages(messages)

    values = {"config": str(HEART), "overrides": ";".join(CHOOSING), "output": str(tmp_path / "cut")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with pytest.raises(Cut):
        server_app(CutGrid(client_app, 4), context)
    again = run(tmp_path / "cut", CHOOSING)
    assert same_bits(chosen, again)
    assert outcome(chosen)["best_round"] == outcome(again)["best_round"]
