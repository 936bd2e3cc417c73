"""What a frozen network makes of a record is computed once, and everything else stays as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedfair.blocks import ParameterBlocks
from fedfair.data.encode import to_batch
from fedfair.data.pixels import Pixels
from fedfair.data.schema import SiteRecords
from fedfair.errors import ConfigError
from fedfair.frozen import precomputed
from fedfair.gradients import weighted_gradients
from fedfair.measure import measure
from fedfair.models import FrozenEncoder, MultimodalModel
from fedfair.models.encoders.pretrained import VitFeatures
from fedfair.paths import Scales
from fedfair.privacy.per_record import record_gradients
from fedfair.stored import StoredBatch
from tests.unit.models.cases import (
    GROUPS,
    PHOTO,
    PLAIN,
    PRETRAINED,
    SCAN,
    batch_of,
    marked,
    model_of,
    needs_transformers,
    schema_of,
    shake,
)

FROZEN = {name: case for name, case in PRETRAINED.items() if name.endswith("-frozen")}
# Float64: the network sees the same numbers in batches of another size.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
LIKE = torch.zeros((), dtype=torch.float64)


def shaken(name: str, fusion: str = "concat") -> tuple[MultimodalModel, ParameterBlocks]:
    model, blocks = model_of(PRETRAINED[name], fusion)
    shake(blocks)
    return model.eval(), blocks


@pytest.mark.parametrize("fusion", ["concat", "attention"])
@pytest.mark.parametrize("name", marked(FROZEN))
def test_scores_and_gradients_stay_as_they_are(name: str, fusion: str) -> None:
    model, blocks = shaken(name, fusion)
    batch = batch_of(FROZEN[name].spec)
    known = precomputed(model, batch, 2)
    assert known.precomputed == {"own"}
    assert known.modalities["own"].shape[-1] == 16
    assert known.modalities["lab"] is batch.modalities["lab"]
    assert not known.modalities["own"][1].any()  # the second record lacks it
    assert precomputed(model, known, 2) is known
    torch.testing.assert_close(model(known), model(batch), **EXACT)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(model(known.select(index)), model(batch.select(index)), **EXACT)
    assert model(known.to(torch.device("cpu"), torch.float64)).dtype == torch.float64
    scales = Scales(torch.rand(3, GROUPS).double() + 0.5, torch.rand(2, GROUPS).double() + 0.5, True)
    for gradients in (
        lambda own: weighted_gradients(model, blocks, own, scales, None),
        lambda own: record_gradients(model, blocks, own, scales, None),
    ):
        wanted, found = gradients(batch), gradients(known)
        assert list(wanted) == list(found)
        for block, value in wanted.items():
            torch.testing.assert_close(found[block], value, **EXACT)
        assert any(value.abs().max() > 1e-3 for value in wanted.values())


@pytest.mark.parametrize("name", marked(FROZEN))
def test_features_of_mixed_precision_are_kept_in_the_model_s_type(name: str) -> None:
    model, _ = model_of(PRETRAINED[name])
    model.float().eval().mixed_precision = True
    batch = batch_of(PRETRAINED[name].spec, torch.float32)
    known = precomputed(model, batch, 3)
    assert known.modalities["own"].dtype == torch.float32
    # Products in bfloat16 of the same bfloat16 numbers; the whole is of size one.
    torch.testing.assert_close(model(known), model(batch), rtol=0.02, atol=0.02)


@needs_transformers
def test_a_slice_that_a_record_lacks_stays_one() -> None:
    model, _ = shaken("vit-slices-frozen")
    known = precomputed(model, batch_of(SCAN), 3).modalities["own"]
    assert (known[2, :2] != 0).all()
    assert not known[2, 2].any()


@pytest.mark.parametrize("name", marked({n: c for n, c in PRETRAINED.items() if n not in FROZEN}))
def test_what_learns_is_not_precomputed(name: str) -> None:
    model, _ = model_of(PRETRAINED[name])
    batch = batch_of(PRETRAINED[name].spec)
    assert not any(isinstance(encoder, FrozenEncoder) for encoder in model.encoders.values())
    assert precomputed(model, batch, 2) is batch


def photos(count: int) -> SiteRecords:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (count, *PHOTO.shape)).astype(np.uint8)
    lab = np.stack([rng.standard_normal(count), rng.integers(3, size=count)], 1).astype(np.float32)
    return SiteRecords(
        {"own": Pixels.of(codes, np.arange(count) % 5 > 0), "lab": lab},
        rng.integers(2, size=count),
        {"sex": rng.integers(2, size=count)},
    )


@needs_transformers
def test_stored_images_are_read_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = shaken("vit-frozen")
    records = photos(23)
    moments = {"lab": np.array([[0.0], [1.0]])}
    stored = to_batch(records, schema_of(PHOTO), moments, records.attributes["sex"])
    assert isinstance(stored, StoredBatch)
    stored = stored.to(torch.device("cpu"), torch.float64)
    seen: list[int] = []
    forward = VitFeatures.forward
    monkeypatch.setattr(VitFeatures, "forward", lambda own, x: (seen.append(len(x)), forward(own, x))[1])
    known = precomputed(model, stored, 8)
    assert seen == [8, 8, 7]
    assert not isinstance(known, StoredBatch)
    assert list(known.modalities) == list(stored.order)
    assert known.modalities["own"].shape == (23, 16)
    found = measure(model, known, GROUPS, 16, 8)
    assert seen == [8, 8, 7]
    wanted = measure(model, stored, GROUPS, 16, 8)
    for field in dataclasses.fields(found):
        own, other = getattr(found, field.name), getattr(wanted, field.name)
        np.testing.assert_allclose(own, other, rtol=1e-10) if own is not None else None


class Learning(FrozenEncoder):
    """An encoder whose first part learns, which nobody would notice."""

    def __init__(self, front: torch.nn.Module) -> None:
        super().__init__()
        self.front = front

    def precompute(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what a layer that learns makes of them."""
        found: torch.Tensor = self.front(inputs)
        return found

    def embed(self, precomputed: torch.Tensor) -> torch.Tensor:
        """Return it as it is."""
        return precomputed


def test_what_is_precomputed_must_not_learn() -> None:
    model, _ = model_of(PLAIN["vector"])
    model.encoders["own"] = Learning(model.encoders["own"])
    with pytest.raises(ConfigError, match="`precompute` of encoder own must use frozen values alone"):
        precomputed(model, batch_of(PLAIN["vector"].spec), 2)


@needs_transformers
def test_other_images_stay_stored() -> None:
    model, _ = shaken("vit-frozen")
    records = photos(9)
    schema = schema_of(PHOTO)
    twice = dataclasses.replace(schema, modalities={**schema.modalities, "other": PHOTO})
    images = records.modalities["own"]
    both = dataclasses.replace(records, modalities={**records.modalities, "other": images})
    stored = to_batch(both, twice, {"lab": np.array([[0.0], [1.0]])}, records.attributes["sex"])
    known = precomputed(model, stored.to(torch.device("cpu"), torch.float64), 4)
    assert isinstance(known, StoredBatch)
    assert list(known.stored) == ["other"]
    some = known.select(torch.tensor([3, 1]))
    assert list(some.modalities) == ["own", "lab", "other"]
    assert some.precomputed == {"own"}
    assert isinstance(images, Pixels)
    assert torch.equal(some.modalities["other"].float(), torch.from_numpy(images[np.array([3, 1])].values()))
