"""Whole runs of a model that reads groups: any number of workers, under privacy, used afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from fedfair.config import load
from fedfair.data import open_dataset
from fedfair.data.schema import SiteRecords
from fedfair.data.split import train_test_split
from fedfair.errors import ShapeError
from fedfair.metrics import auc_bound
from fedfair.trained import load_trained
from tests.apps.runs import rounds, run, same_bits, weights

pytest.importorskip("transformers")
pytest.importorskip("peft")

TINY = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    **{"image_size": 32, "patch_size": 8},
}
FAIR = {"name": "vit", "config": TINY, "tune": "fair_lora", "rank": 2, "attribute": "race*sex"}
DATA = {
    "name": "phantom",
    "attribute": "race",
    "options": {
        **{"preset": "fairfedmed3", "patients": 60, "size": 32, "slices": 2, "attributes": ["race", "sex"]},
        "modalities": ["slo", "oct"],
    },
}
EXPERIMENT = {
    "name": "fair",
    "seed": 0,
    "rounds": 2,
    "data": DATA,
    "model": {"name": "late_fusion", "options": {"hidden": [4], "encoders": {"slo": FAIR, "oct": FAIR}}},
    "method": {"name": "dual_mimo"},
    "training": {"mode": "update", "learning_rate": 0.3},
    "report": {"resamples": 20},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fair") / "fair.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("fair") / "run", (), sites=3, config=config)


def test_values_of_all_groups_are_learned_and_other_processes_learn_the_same(
    config: Path, finished: Path, tmp_path: Path
) -> None:
    values = {name: v for name, v in weights(finished).items() if name.endswith("values.weight")}
    assert len(values) == 4  # of queries and values of one layer, in two encoders
    assert all(tuple(v.shape) == (2, 6) for v in values.values())
    # Those of queries move by less than float32 holds, in two rounds from B = 0.
    assert all((v != 1).all() for name, v in values.items() if "v_proj" in name)
    assert same_bits(run(tmp_path / "two", (), sites=3, workers=2, config=config), finished)


def test_the_saved_model_scores_as_was_measured_and_asks_for_the_groups_alone(
    config: Path, finished: Path
) -> None:
    chosen = load(config)
    adapter = open_dataset("phantom", None, chosen.data.options, 0)
    trained = load_trained(finished, adapter.schema)
    labels, scores = [], []
    for site in adapter.schema.sites:
        records = adapter.load(site)
        test = records.select(train_test_split(records, chosen.data.test_fraction, 0, site)[1])
        labels.append(test.labels)
        scores.append(trained.predict(test)[:, 1])
    exact = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    bound = auc_bound(np.load(finished / "evaluation.npz")["histograms"][:, 0].sum((0, 1))[0])
    assert abs(exact - rounds(finished)[-1]["test"]["auc"]) <= bound
    without = SiteRecords(test.modalities, test.labels, {"race": test.attributes["race"]})
    with pytest.raises(ShapeError, match="`sex` must be"):
        trained.predict(without)


PRIVATE = (
    *("privacy.mode=sample", "privacy.noise_multiplier=1.0", "privacy.target_delta=1e-3"),
    *("privacy.sample_rate=0.3", "privacy.local_steps=2", "privacy.expected_batch=12"),
    *("privacy.max_grad_norm=1.0", "privacy.clipping=flat", "privacy.evaluation=none"),
    *("training.mode=weights", "method.name=fedavg"),
)


@pytest.mark.parametrize("engine", ["functional", "opacus"])
def test_a_private_run(config: Path, tmp_path: Path, engine: str) -> None:
    chosen = [f"privacy.engine={engine}"]
    if engine == "opacus":  # which does not fit networks on slices
        pytest.importorskip("opacus")
        chosen += ["model.options.encoders.oct={name: slices, hidden: [4]}"]
    folder = run(tmp_path / "run", (*PRIVATE, *chosen), sites=3, config=config)
    assert all(torch.isfinite(value).all() for value in weights(folder).values())
