"""Every parameter belongs to exactly one block, by the module that owns it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks, block_names, encoder_block, head_block
from fedfair.coefficients import Coefficients
from fedfair.errors import ShapeError
from fedfair.local import LocalTraining, train
from fedfair.models import ConcatFusion, Head, MultimodalModel
from fedfair.paths import RowPlan, Scales
from tests.oracles.cohort import WIDTHS, cohort, small_model

NAMES = (
    "fusion",
    *(f"encoder/{name}" for name in WIDTHS),
    *(f"head/{name}" for name in WIDTHS),
)


def model_of(
    encoders: dict[str, nn.Module] | None = None, heads: dict[str, Head] | None = None
) -> MultimodalModel:
    """Return a two-modality model with three inputs each, from given parts where there are some."""
    return MultimodalModel(
        encoders or {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)},
        heads or {name: Head(nn.Identity(), nn.Linear(3, 2)) for name in "ab"},
        ConcatFusion(2, 3, 4, 2),
    )


def test_names_follow_the_modalities() -> None:
    assert block_names(tuple(WIDTHS)) == ParameterBlocks(small_model()).names == NAMES
    assert (encoder_block("ecg"), head_block("ecg")) == ("encoder/ecg", "head/ecg")


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_blocks_partition_the_parameters(fusion: str) -> None:
    model = small_model(fusion=fusion)
    blocks = ParameterBlocks(model)
    owned = [id(p) for name in blocks.names for p in blocks.parameters[name]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    assert len(set(owned)) == len(owned)
    for name, own in blocks.parameters.items():
        flat = torch.cat([p.detach().reshape(-1) for p in own])
        assert torch.equal(flat, blocks.vectors[name])


def test_flattening_keeps_the_model() -> None:
    model = small_model()
    before = model(cohort()).detach()
    ParameterBlocks(model)
    assert torch.equal(model(cohort()), before)


def test_a_block_vector_moves_its_own_parameters_only() -> None:
    model = small_model()
    blocks = ParameterBlocks(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks.vectors["encoder/lab"] += 1.0
    for name, parameter in model.named_parameters():
        moved = torch.equal(parameter.detach(), before[name] + 1.0)
        assert moved == name.startswith("encoders.lab.")


def test_load_restores_a_snapshot() -> None:
    model = small_model()
    blocks = ParameterBlocks(model)
    before, scores = blocks.snapshot(), model(cohort()).detach()
    for vector in blocks.vectors.values():
        vector.mul_(2.0)
    assert not torch.equal(model(cohort()), scores)
    blocks.load(before)
    assert torch.equal(model(cohort()), scores)


@pytest.mark.parametrize("block", NAMES)
@pytest.mark.parametrize(
    "spoil",
    [lambda d, b: d.pop(b), lambda d, b: d.update({b: d[b][:-1]}), lambda d, b: d.update({b: d[b][None]})],
    ids=["missing", "shorter", "another rank"],
)
def test_load_refuses_what_does_not_fit(
    block: str, spoil: Callable[[dict[str, torch.Tensor], str], object]
) -> None:
    blocks = ParameterBlocks(small_model())
    vectors = blocks.snapshot()
    spoil(vectors, block)
    with pytest.raises(ShapeError, match=f"block `{block}`"):
        blocks.load(vectors)


def test_a_parameter_of_two_blocks_is_refused() -> None:
    shared = nn.Linear(3, 3)
    with pytest.raises(ShapeError, match="`encoder/a` and `encoder/b`"):
        ParameterBlocks(model_of(encoders={"a": shared, "b": shared}))
    encoders = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
    heads = {"a": Head(encoders["a"], nn.Linear(3, 2)), "b": Head(nn.Identity(), nn.Linear(3, 2))}
    with pytest.raises(ShapeError, match="`encoder/a` and `head/a`"):
        ParameterBlocks(model_of(encoders, heads))


def test_a_parameter_tied_within_one_block_counts_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    blocks = ParameterBlocks(model_of(encoders={"a": nn.Sequential(first, second), "b": nn.Linear(3, 3)}))
    assert len(blocks.vectors["encoder/a"]) == 9 + 3 + 3


def test_a_parameter_of_the_root_is_refused() -> None:
    model = model_of()
    model.temperature = nn.Parameter(torch.ones(1))
    with pytest.raises(ShapeError, match="`temperature`"):
        ParameterBlocks(model)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm1d(3, track_running_stats=True),
    ],
)
def test_batch_statistics_are_refused(layer: nn.Module) -> None:
    encoders = {"a": nn.Sequential(nn.Linear(3, 3), layer), "b": nn.Linear(3, 3)}
    with pytest.raises(ShapeError, match=type(layer).__name__):
        ParameterBlocks(model_of(encoders))


def test_layer_norm_is_accepted() -> None:
    ParameterBlocks(model_of({"a": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "b": nn.Linear(3, 3)}))


def test_an_encoder_without_parameters_is_an_empty_block() -> None:
    model = model_of(encoders={"a": nn.Identity(), "b": nn.Linear(3, 3)}).double()
    blocks = ParameterBlocks(model)
    assert len(blocks.vectors["encoder/a"]) == 0
    blocks.load(blocks.snapshot())
    batch = MultimodalBatch(
        {name: torch.ones(4, 3, dtype=torch.float64) for name in "ab"},
        torch.ones(4, 2, dtype=torch.bool),
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([0, 0, 1, 1]),
    )
    scales = Scales.build(Coefficients.neutral(2, 2, live=True), torch.zeros((), dtype=torch.float64))
    for plan in (RowPlan(), RowPlan(frozenset(blocks.names), split=True)):
        rows = train(model, blocks, batch, plan, scales, None, LocalTraining("gradient"), torch.Generator())
        assert all(value.shape[1] == 0 for key, value in rows.items() if key.startswith("encoder/a"))
        assert rows[f"fusion:{'fused' if plan.grouped else 'all'}"].abs().sum() > 0


def test_a_frozen_parameter_is_refused() -> None:
    model = small_model()
    model.fusion.classifier.bias.requires_grad_(False)
    with pytest.raises(ShapeError, match="parameter `fusion.classifier.bias` must require a gradient"):
        ParameterBlocks(model)
