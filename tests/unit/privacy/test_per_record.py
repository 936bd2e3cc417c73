"""Gradients by record against `weighted_gradients` on one record at a time, and on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.errors import ConfigError
from fedfair.gradients import weighted_gradients
from fedfair.models import AttentionFusion, ConcatFusion, Fusion, Head, MultimodalModel
from fedfair.paths import Scales
from fedfair.privacy.per_record import record_gradients
from fedfair.terms import PreparedTerms
from tests.oracles.cohort import GROUPS, WIDTHS, cohort, extra_terms, prepared, small_model

# Gradients of order one in float64; a single record and a batch round in another order.
TOLERANCE = 1e-10
EMBEDDING = 4


def scales(modalities: int, live: bool = True, seed: int = 4) -> Scales:
    rng = np.random.default_rng(seed)
    fused, unimodal = rng.uniform(0.5, 2, (modalities + 1, GROUPS)), rng.uniform(0.2, 2, (modalities, GROUPS))
    return Scales.build(Coefficients(fused, unimodal, live), torch.zeros((), dtype=torch.float64))


def weights(model: MultimodalModel, given: Scales, groups: Tensor) -> dict[str, Tensor]:
    """Return the coefficient [n] that multiplies each record's gradient of a block."""
    result = {FUSION: given.fused[0, groups]}
    for m, name in enumerate(model.modalities):
        result[f"encoder/{name}"] = given.fused[m + 1, groups]
        result[f"head/{name}"] = given.unimodal[m, groups]
    return result


def assert_equal_to_oracles(
    model: MultimodalModel,
    batch: MultimodalBatch,
    given: Scales,
    terms: PreparedTerms | None = None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Compare with every record on its own and with the sum; return the gradients by record."""
    blocks = ParameterBlocks(model)
    got = record_gradients(model, blocks, batch, given, terms, chunk_size)
    factor = weights(model, given, batch.groups)
    whole = weighted_gradients(model, blocks, batch, given, terms)
    assert list(got) == list(blocks.names)
    singles = [
        weighted_gradients(model, blocks, batch.select(torch.tensor([i])), given, terms)
        for i in range(len(batch))
    ]
    for block, gradient in got.items():
        assert gradient.shape == (len(batch), len(blocks.vectors[block]))
        assert not gradient.requires_grad
        one_by_one = torch.stack([single[block] for single in singles])
        if blocks.parameters[block]:
            close(factor[block][:, None] * gradient, one_by_one)
            close(factor[block] @ gradient, whole[block])
            assert gradient.abs().max() > 1e-4
    return got


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("which", [None, "direction", "fairness", "both"])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("fusion", ["concat", "attention"])
@pytest.mark.parametrize("classes", [2, 3])
def test_rows_are_the_gradients_of_single_records(
    classes: int, fusion: str, live: bool, which: str | None
) -> None:
    model, batch = small_model(classes, fusion), cohort(records=40, classes=classes)
    terms = None if which is None else prepared(extra_terms(classes, which))
    assert_equal_to_oracles(model, batch, scales(3, live), terms)


@pytest.mark.parametrize("chunk_size", [1, 7, 40, 100])
def test_chunks_change_nothing(chunk_size: int) -> None:
    model, batch = small_model(), cohort(records=40)
    whole = assert_equal_to_oracles(model, batch, scales(3), prepared(extra_terms()))
    chunked = assert_equal_to_oracles(model, batch, scales(3), prepared(extra_terms()), chunk_size)
    for block, gradient in whole.items():
        close(chunked[block], gradient)


@given(st.integers(0, 2**31), st.integers(1, 30))
def test_rows_do_not_depend_on_the_other_records_or_their_order(seed: int, records: int) -> None:
    model, batch, terms = small_model(), cohort(records=30), prepared(extra_terms())
    blocks = ParameterBlocks(model)
    whole = record_gradients(model, blocks, batch, scales(3), terms)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(30)[:records])
    some = record_gradients(model, blocks, batch.select(order), scales(3), terms)
    for block, gradient in whole.items():
        close(some[block], gradient[order])


def test_a_record_without_the_modality_gives_nothing_to_its_blocks() -> None:
    model, batch = small_model(), cohort()
    got = record_gradients(model, ParameterBlocks(model), batch, scales(3), prepared(extra_terms()))
    for m, name in enumerate(WIDTHS):
        for block in (f"encoder/{name}", f"head/{name}"):
            assert not got[block][~batch.present[:, m]].any()
            assert got[block][batch.present[:, m]].any()


@pytest.mark.parametrize("with_terms", [False, True])
def test_no_records_give_no_rows(with_terms: bool) -> None:
    model, batch = small_model(), cohort()
    blocks = ParameterBlocks(model)
    none = batch.select(torch.zeros(0, dtype=torch.int64))
    got = record_gradients(model, blocks, none, scales(3), prepared(extra_terms()) if with_terms else None)
    assert {b: tuple(g.shape) for b, g in got.items()} == {b: (0, len(v)) for b, v in blocks.vectors.items()}


def test_the_model_is_left_as_it_was() -> None:
    model, batch = small_model(), cohort()
    blocks = ParameterBlocks(model)
    before, parameters = blocks.snapshot(), list(model.parameters())
    record_gradients(model, blocks, batch, scales(3), prepared(extra_terms()))
    assert all(torch.equal(before[block], vector) for block, vector in blocks.vectors.items())
    assert all(a is b and a.grad is None for a, b in zip(parameters, model.parameters(), strict=True))


# Encoders that per-layer hooks get wrong or refuse: their parameters are not a layer's, or their layers
# do not see one row per record.


class Slices(nn.Module):
    """Each of S slices through one encoder, as B * S rows; weighted by parameters of no layer."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.out = nn.Linear(3, EMBEDDING)
        self.weight = nn.Parameter(torch.randn(slices))
        self.scale = nn.Parameter(torch.tensor(1.3))  # no dimension at all

    def forward(self, volume: Tensor) -> Tensor:
        records, slices = volume.shape[:2]
        rows = torch.tanh(self.conv(volume.reshape(records * slices, 1, *volume.shape[2:]))).mean((2, 3))
        each = self.out(rows).reshape(records, slices, -1)
        return self.scale * (torch.softmax(self.weight, 0)[:, None] * each).sum(1)


class Sequence_(nn.Module):
    """A transformer layer over the steps of a record, with a learned position."""

    def __init__(self, steps: int, width: int, batch_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(steps, width) * 0.1)
        self.layer = nn.TransformerEncoderLayer(width, 2, 8, dropout, batch_first=batch_first)
        self.out = nn.Linear(width, EMBEDDING)
        self.batch_first = batch_first

    def forward(self, steps: Tensor) -> Tensor:
        steps = steps + self.position
        turned = steps if self.batch_first else steps.transpose(0, 1)
        attended = self.layer(turned)
        return self.out((attended if self.batch_first else attended.transpose(0, 1)).mean(1))


class Tied(nn.Module):
    """A layer with two names, a layer that shares its weight, and a parameter with two names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.again = self.first
        self.sharing = nn.Linear(width, width)
        self.sharing.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(width))
        self.factor = self.scale
        self.norm = nn.GroupNorm(2, width)
        self.out = nn.Linear(width, EMBEDDING)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.sharing(self.scale * self.again(torch.tanh(self.factor * self.first(values))))
        return self.out(self.norm(hidden))


class Pad(nn.Module):
    """An encoder without parameters."""

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.pad(values, (0, EMBEDDING - values.shape[1]))


class Repacked(nn.Module):
    """Encodes only the records that have any value: the shape depends on the records."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, EMBEDDING)

    def forward(self, values: Tensor) -> Tensor:
        has = values.abs().sum(1) > 0
        result = values.new_zeros(len(values), EMBEDDING)
        result[has] = self.layer(values[has])
        return result


class Branching(Repacked):
    """Asks for a value."""

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values if values.sum() > 0 else -values)


SHAPES: Mapping[str, Sequence[int]] = {
    "volume": (3, 6, 6),
    "image": (1, 8, 8),
    "sequence": (5, 6),
    "turned": (4, 6),
    "tied": (4,),
    "raw": (3,),
}


def image_encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(16, EMBEDDING),
    )


ENCODERS: Mapping[str, Callable[[], nn.Module]] = {
    "volume": lambda: Slices(3),
    "image": image_encoder,
    "sequence": lambda: Sequence_(5, 6, batch_first=True),
    "turned": lambda: Sequence_(4, 6, batch_first=False),
    "tied": lambda: Tied(4),
    "raw": Pad,
}


def wide_model(encoders: Mapping[str, nn.Module], fusion: type[Fusion]) -> MultimodalModel:
    heads = {
        name: Head(nn.Sequential(nn.Linear(EMBEDDING, 3), nn.Tanh()), nn.Linear(3, 2)) for name in encoders
    }
    return MultimodalModel(encoders, heads, fusion(len(encoders), EMBEDDING, 3, 2)).double()


def wide_batch(shapes: Mapping[str, Sequence[int]], records: int) -> MultimodalBatch:
    rng = np.random.default_rng(2)
    present = rng.random((records, len(shapes))) > 0.2
    values = {
        name: torch.as_tensor(rng.normal(size=(records, *shape)))
        * torch.as_tensor(present[:, m]).reshape(-1, *[1] * len(shape))
        for m, (name, shape) in enumerate(shapes.items())
    }
    labels, groups = rng.integers(0, 2, records), rng.integers(0, GROUPS, records)
    return MultimodalBatch(values, torch.as_tensor(present), torch.as_tensor(labels), torch.as_tensor(groups))


@pytest.mark.parametrize("fusion", [ConcatFusion, AttentionFusion])
@pytest.mark.parametrize("training", [True, False])
def test_any_layer_is_differentiated(fusion: type[Fusion], training: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wide_model({name: build() for name, build in ENCODERS.items()}, fusion)
    model.train(training)
    got = assert_equal_to_oracles(model, wide_batch(SHAPES, 9), scales(len(SHAPES)), chunk_size=4)
    assert got["encoder/raw"].shape == (9, 0)


class FirstOnly(ConcatFusion):
    """Looks at the first modality alone."""

    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        return super().join([embeddings[0], torch.zeros_like(embeddings[1])], present)


def test_a_block_that_no_loss_reaches_has_rows_of_its_own() -> None:
    encoders = {name: nn.Linear(width, EMBEDDING) for name, width in (("lab", 3), ("ecg", 2))}
    model, batch = wide_model(encoders, FirstOnly), wide_batch({"lab": (3,), "ecg": (2,)}, 5)
    got = record_gradients(model, ParameterBlocks(model), batch, scales(2, live=False), None)
    assert not got["encoder/ecg"].any()
    got["encoder/ecg"][0] += 1.0  # as clipping writes in place
    assert not got["encoder/ecg"][1:].any()


def test_every_record_has_a_dropout_mask_of_its_own() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wide_model({"sequence": Sequence_(5, 6, batch_first=True, dropout=0.5)}, ConcatFusion)
        blocks, batch = ParameterBlocks(model), wide_batch({"sequence": (5, 6)}, 2)
        same = batch.select(torch.tensor([1, 1, 1]))
        model.train()
        first, second, third = record_gradients(model, blocks, same, scales(1), None)["encoder/sequence"]
        assert not torch.allclose(first, second)
        assert not torch.allclose(second, third)
        model.eval()
        assert_equal_to_oracles(model, batch, scales(1))


@pytest.mark.parametrize("encoder", [Repacked, Branching])
def test_code_that_depends_on_values_is_refused_in_one_sentence(encoder: Callable[[], nn.Module]) -> None:
    model = wide_model({"table": encoder()}, ConcatFusion)
    with pytest.raises(ConfigError, match="write what is missing as a mask times zeros") as caught:
        record_gradients(model, ParameterBlocks(model), wide_batch({"table": (3,)}, 5), scales(1), None)
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_model_stay_what_they_are() -> None:
    model = wide_model({"table": nn.Linear(7, EMBEDDING)}, ConcatFusion)
    with pytest.raises(RuntimeError, match="shape"):
        record_gradients(model, ParameterBlocks(model), wide_batch({"table": (3,)}, 5), scales(1), None)
