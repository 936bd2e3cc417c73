"""A saved model scores records as the run measured them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedfair.cli import main
from fedfair.config import load
from fedfair.data import open_dataset
from fedfair.data.split import train_test_split
from fedfair.errors import RunError
from fedfair.metrics import auc_bound
from fedfair.trained import load_trained
from tests.apps.runs import HEART, rounds, run


def test_a_saved_model_has_the_auc_that_was_reported(tmp_path: Path) -> None:
    """The report's AUC is of binned scores: it differs from scikit-learn's by the tie mass at most."""
    assert main(["simulate", str(HEART), "--output", str(tmp_path / "out"), "--set", "rounds=8"]) == 0
    folder = tmp_path / "out" / "seed-0" / "dual_mimo"
    config = load(HEART)
    adapter = open_dataset("heart", None, {}, 0)
    trained = load_trained(folder, adapter.schema)
    labels, scores = [], []
    for site in adapter.schema.sites:
        records = adapter.load(site)
        test = records.select(train_test_split(records, config.data.test_fraction, 0, site)[1])
        labels.append(test.labels)
        scores.append(trained.predict(test)[:, 1])
    exact = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    bound = auc_bound(np.load(folder / "evaluation.npz")["histograms"][:, 0].sum((0, 1))[0])
    assert abs(exact - rounds(folder)[-1]["test"]["auc"]) <= bound


def test_an_unfinished_run_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold a finished run with model\.pt"):
        load_trained(tmp_path, open_dataset("heart", None, {}, 0).schema)


def test_a_model_of_another_schema_or_dtype(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", ["rounds=1", "training.dtype=float64"])
    schema = open_dataset("heart", None, {}, 0).schema
    assert next(load_trained(folder, schema).model.parameters()).dtype == torch.float64
    with pytest.raises(RunError, match="`schema` must be that of the data"):
        load_trained(folder, open_dataset("synthetic", None, {}, 0).schema)
