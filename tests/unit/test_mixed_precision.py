"""Products of the encoders in bfloat16, and everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fedfair import gradients
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.config import Config, TrainingConfig, parse
from fedfair.data.encode import to_batch
from fedfair.data.phantom import PhantomAdapter
from fedfair.device import check_mixed_precision
from fedfair.errors import ConfigError
from fedfair.gradients import weighted_gradients
from fedfair.local import train
from fedfair.measure import measure
from fedfair.models import MultimodalModel, build_model
from fedfair.paths import RowPlan, Scales
from fedfair.privacy.per_record import record_gradients
from fedfair.site import Workbench

DATA = PhantomAdapter({"patients": 96, "size": 16, "slices": 2, "modalities": ["slo", "oct", "note"]}, 0)
KIND = torch.zeros(())
SCALES = Scales.build(Coefficients.neutral(3, 3, True), KIND)
LAYERS = 3  # of products in an encoder, at most: two convolutions and a linear layer
# Inputs and weights are rounded to 2^-9 of themselves, and the sums again.
ROUNDING = LAYERS * 3 * 2.0**-9


@pytest.fixture(scope="module")
def records() -> MultimodalBatch:
    own = DATA.load("site-1")
    whole = to_batch(own, DATA.schema, {}, own.attributes["race"])
    return whole.select(torch.arange(len(whole)))


def model(mixed: bool) -> MultimodalModel:
    made = build_model("late_fusion", DATA.schema, {"hidden": [4, 8], "embedding_dim": 8}, 0)
    made.mixed_precision = mixed
    return made


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).norm() / other.norm()).detach())


def test_off_is_exact(records: MultimodalBatch) -> None:
    plain = model(False)
    for m, (name, z) in enumerate(zip(plain.modalities, plain.encode(records), strict=True)):
        assert torch.equal(z, plain.encoders[name](records.modalities[name]) * records.present[:, m, None])


def test_on_rounds_and_no_more(records: MultimodalBatch) -> None:
    for rounded, exact in zip(model(True).encode(records), model(False).encode(records), strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < distance(rounded, exact) < ROUNDING


def test_encoders_alone_are_rounded(records: MultimodalBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = model(True), {}

    def watch(name: str) -> Any:
        def note(*_: object) -> None:
            seen[name] = torch.is_autocast_enabled("cpu")

        return note

    for name in made.modalities:
        made.encoders[name].register_forward_hook(watch(f"encoder {name}"))
        made.heads[name].register_forward_hook(watch(f"head {name}"))
    made.fusion.register_forward_hook(watch("fusion"))
    real = gradients.summed_loss
    monkeypatch.setattr(gradients, "summed_loss", lambda *own: (watch("loss")(), real(*own))[1])
    weighted_gradients(made, ParameterBlocks(made), records, SCALES, None)
    assert len(seen) == 8
    assert seen == {name: name.startswith("encoder") for name in seen}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("by_record", [False, True])
def test_gradients_are_float32_and_near(records: MultimodalBatch, by_record: bool) -> None:
    def each(mixed: bool) -> dict[str, torch.Tensor]:
        made = model(mixed)
        return record_gradients(made, ParameterBlocks(made), records, SCALES, None)

    def summed(mixed: bool) -> dict[str, torch.Tensor]:
        if by_record:
            return {name: own.sum(0) for name, own in each(mixed).items()}
        made = model(mixed)
        return weighted_gradients(made, ParameterBlocks(made), records, SCALES, None)

    norms = {name: float(own.norm(dim=1).sum()) for name, own in each(False).items()}
    exact = summed(False)
    for name, own in summed(True).items():
        assert own.dtype == torch.float32
        # Each record's is rounded there and back, by as many products each way; sums may cancel.
        assert float((own - exact[name]).norm()) < 2 * ROUNDING * norms[name]
        assert not torch.equal(own, exact[name])


def test_training_ends_where_it_would(records: MultimodalBatch) -> None:
    def trained(mixed: bool) -> tuple[dict[str, torch.Tensor], float, float]:
        made = model(mixed)
        blocks = ParameterBlocks(made)
        settings = TrainingConfig(local_epochs=8, learning_rate=0.1)
        plan = RowPlan(frozenset(blocks.names), False)
        generator = torch.Generator().manual_seed(0)
        rows = train(made, blocks, records, plan, SCALES, None, settings, generator)
        losses = measure(made, records, 3, 32, 512).losses
        with torch.no_grad():
            scores = made(records).softmax(1)[:, 1]
        return rows, float(losses[0].sum()) / len(records), roc_auc_score(records.labels, scores)

    (rows, loss, auc), (exact, exact_loss, exact_auc) = trained(True), trained(False)
    for key, own in rows.items():
        assert own.dtype == torch.float32
        assert not torch.equal(own, exact[key])
    # A score moves by the rounding of its embeddings, the weights by that of the gradients.
    assert abs(loss - exact_loss) < 2 * ROUNDING
    assert abs(auc - exact_auc) < 2 * ROUNDING
    assert exact_auc > 0.6


def test_the_workbench_turns_it_on() -> None:
    for mixed in (False, True):
        config = Config(training=TrainingConfig(mixed_precision=mixed, device="cpu"))
        assert Workbench(config, DATA.schema).model.mixed_precision is mixed


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    yield


@pytest.mark.usefixtures("old_gpu")
def test_an_old_gpu_is_refused() -> None:
    check_mixed_precision(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"`training\.mixed_precision` must be false on a GPU without"):
        check_mixed_precision(torch.device("cuda"))


def test_what_it_does_not_go_with_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`training\.dtype` must be float32 for mixed precision, got 'fl"):
        parse({"training": {"mixed_precision": True, "dtype": "float64"}})
    private = {"mode": "sample", "noise_multiplier": 1.0, "target_delta": 1e-3, "sample_rate": 0.1}
    private |= {"local_steps": 1, "expected_batch": 4, "max_grad_norm": 1.0}
    private |= {"statistics": {"noise_multiplier": 1.0}}
    assert parse({"privacy": private}).privacy.on
    with pytest.raises(ConfigError, match=r"`training\.mixed_precision` must be false: the others of a"):
        parse({"training": {"mixed_precision": True}, "privacy": private})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(records: MultimodalBatch) -> None:
    device = torch.device("cuda")
    exact = [z.cpu() for z in model(False).to(device).encode(records.to(device, torch.float32))]
    rounded = [z.cpu() for z in model(True).to(device).encode(records.to(device, torch.float32))]
    for own, other in zip(rounded, exact, strict=True):
        assert own.dtype == torch.float32
        assert 0 < distance(own, other) < ROUNDING
    assert np.isfinite([float(z.sum()) for z in rounded]).all()
