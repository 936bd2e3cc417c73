"""A run with a frozen network: each record is seen once, private or not, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedfair.models.encoders.pretrained import VitFeatures
from tests.apps.runs import rounds, run, weights
from tests.apps.test_fair_lora_runs import DATA, TINY

pytest.importorskip("transformers")

FROZEN = {"name": "vit", "config": TINY, "tune": "frozen"}
EXPERIMENT: dict[str, Any] = {
    "name": "frozen",
    "seed": 0,
    "rounds": 3,
    "data": DATA,
    "model": {"name": "late_fusion", "options": {"hidden": [4], "encoders": {"slo": FROZEN, "oct": FROZEN}}},
    "method": {"name": "dual_mimo"},
    "training": {"mode": "weights", "learning_rate": 0.1, "local_epochs": 2, "dtype": "float64"},
    "report": {"resamples": 20},
}
PRIVATE = {
    "mode": "sample",
    "noise_multiplier": 1.0,
    "target_epsilon": None,
    "target_delta": 1e-3,
    "noise_seed": 1,
    "sample_rate": 0.25,
    "local_steps": 4,
    "expected_batch": 10,
    "max_grad_norm": 1.0,
    "evaluation": "exact",
    "statistics": {"noise_multiplier": 10.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("private", [False, True])
def test_each_record_is_seen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    plain = dict(EXPERIMENT)
    if private:
        plain["training"] = {**EXPERIMENT["training"], "local_epochs": 1, "mode": "update"}
        plain["privacy"] = {**PRIVATE, "ledger": str(tmp_path / "ledger")}
    file = tmp_path / "frozen.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    images: list[int] = []
    forward = VitFeatures.forward

    def counted(own: VitFeatures, x: torch.Tensor) -> torch.Tensor:
        images.append(len(x))
        return forward(own, x)

    monkeypatch.setattr(VitFeatures, "forward", counted)
    once = run(tmp_path / "once", (), sites=3, config=file)
    # 180 patients of three sites, an image and two slices each; made-up records of the checks beside.
    seen, images[:] = sum(images), []
    assert 540 <= seen <= 540 + 120 * private
    monkeypatch.setattr("fedfair.site.precomputed", lambda _, records, __: records)
    if private:
        plain["privacy"]["ledger"] = str(tmp_path / "another")
        file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    always = run(tmp_path / "always", (), sites=3, config=file)
    assert sum(images) > seen + 500
    assert len(rounds(once)) == 4
    # Float64, in batches of another size, through twenty-odd steps.
    for name, value in weights(always).items():
        torch.testing.assert_close(weights(once)[name], value, rtol=1e-8, atol=1e-9)
