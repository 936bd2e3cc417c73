"""A model that mixes the records of a batch is refused before anything is charged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import ArrayModality, Column, Schema, TableModality
from fedfair.errors import ConfigError, PrivacyError, ShapeError
from fedfair.models import ConcatFusion, Head, MultimodalModel, build_model
from fedfair.privacy.isolation import check_isolation, made_up_batch
from fedfair.site import Workbench
from tests.privacy.hospital import Lab, configured
from tests.privacy.people import patients, schema


class BatchMean(nn.Module):
    """Values minus their mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class SequenceFirst(nn.Module):
    """Attention over the batch: its first axis is taken for the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x[:, None])[:, 0]
        return out


class Permuted(nn.Module):
    """The records' embeddings in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 0)


class Largest(nn.Module):
    """Values divided by the batch's largest."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax()


class Remembering(nn.Module):
    """Values minus a running mean, kept in place while training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


MIXERS: Mapping[str, type[nn.Module]] = {
    "batch mean": BatchMean,
    "sequence first": SequenceFirst,
    "permuted": Permuted,
    "largest of the batch": Largest,
}
LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "frozen batch norm": lambda: nn.BatchNorm1d(6).eval().requires_grad_(False),
    "batch norm without running values": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "instance norm with running values": lambda: nn.InstanceNorm1d(6, track_running_stats=True),
}


def model_with(shared: Schema, layer: Callable[[], nn.Module]) -> MultimodalModel:
    """Return a model with the layer behind each encoder."""
    widths = {name: spec.shape[0] for name, spec in shared.modalities.items()}
    encoders = {name: nn.Sequential(nn.Linear(width, 6), layer()) for name, width in widths.items()}
    heads = {name: Head(nn.Identity(), nn.Linear(6, 2)) for name in encoders}
    return MultimodalModel(encoders, heads, ConcatFusion(len(encoders), 6, 6, 2))


def built(shared: Schema, mixer: str = "", layer: str = "") -> MultimodalModel:
    """Return a model by the mixer's name, as a configuration does."""
    if layer:
        return model_with(shared, LAYERS[layer])
    return model_with(shared, {**MIXERS, "remembering": Remembering, "": nn.Identity}[mixer])


def named(**options: str) -> str:
    listed = ", ".join(f"{key}: {value!r}" for key, value in options.items())
    return f"model={{name: '{__name__}:built', options: {{{listed}}}}}"


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_that_mixes_records_is_refused_before_the_charge(
    mixer: str, dtype: str, tmp_path: Path
) -> None:
    lab = Lab(configured(named(mixer=mixer), f"training.dtype={dtype}"), tmp_path)
    for message in (lab.work, lab.assess):
        with pytest.raises(PrivacyError, match="must not depend on the others of its batch"):
            message(lab.site(patients(9)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_the_built_in_models_pass(fusion: str, dtype: str) -> None:
    table = TableModality((Column("a"), Column("b", ("x", "y", "z"))))
    shared = Schema(
        {"table": table, "vector": ArrayModality((40,)), "image": ArrayModality((2, 16, 16))},
        ("no", "yes", "maybe"),
        {"sex": ("f", "m")},
        ("one",),
    )
    kind = torch.zeros((), dtype=getattr(torch, dtype))
    for seed in range(3):
        options = {"hidden": [16, 32], "embedding_dim": 24, "fusion": fusion}
        model = build_model("late_fusion", shared, options, seed).to(kind.dtype)
        check_isolation(model, ParameterBlocks(model), shared, kind, 2)


def test_a_model_of_ones_own_passes() -> None:
    model = built(schema())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_isolation(model, ParameterBlocks(model), schema(), torch.zeros(()), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_made_up_records_hold_a_missing_modality_and_are_the_same_each_time() -> None:
    one, other = (made_up_batch(schema(), torch.zeros(()), 3) for _ in range(2))
    assert not one.present.all()
    assert one.present.any()
    assert all(torch.equal(one.modalities[name], other.modalities[name]) for name in one.modalities)


@pytest.mark.parametrize("layer", LAYERS)
def test_batch_statistics_are_refused_frozen_or_not(layer: str) -> None:
    with pytest.raises(ShapeError, match="must not use batch statistics|got a frozen one"):
        Workbench(configured(named(layer=layer)), schema())


def test_statistics_of_ones_own_are_refused_and_stay_inside(tmp_path: Path) -> None:
    """A buffer that training moves is a sum over records that nobody clips."""
    lab = Lab(configured(named(mixer="remembering")), tmp_path)
    site = lab.site(patients(9))
    with pytest.raises((ConfigError, RuntimeError), match="in-place|vmap"):
        lab.work(site)


def test_buffers_do_not_travel(tmp_path: Path) -> None:
    lab = Lab(configured(named(mixer="remembering")), tmp_path)
    assert sum(v.size for v in lab.bench.vectors().values()) == sum(
        p.numel() for p in lab.bench.model.parameters()
    )
