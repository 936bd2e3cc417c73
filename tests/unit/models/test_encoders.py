"""What every encoder must hold: gradients by record, isolation, masks, learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.data.schema import Modality, TextModality, VolumeModality
from fedfair.errors import PrivacyError
from fedfair.gradients import weighted_gradients
from fedfair.paths import Scales
from fedfair.privacy.isolation import check_isolation
from fedfair.privacy.opacus_engine import check_opacus
from fedfair.privacy.per_record import record_gradients
from fedfair.seeding import torch_generator
from tests.unit.models.cases import CASES, GROUPS, batch_of, marked, model_of, schema_of, shake

LIKE = torch.zeros((), dtype=torch.float64)

# Opacus finds another number of rows where slices are folded into the axis of records, and gives a
# gradient to the vector of padding, which PyTorch leaves alone.
NOT_FOR_OPACUS = {"vit-slices-all", "vit-slices-lora", "vit-slices-fair_lora", "bert-all"}

every_encoder = pytest.mark.parametrize("name", marked(CASES))


def scales(live: bool) -> Scales:
    """Return coefficients that differ by block and group."""
    fused = torch.tensor([[1.0, 0.6], [0.4, 1.5], [2.0, 1.0]], dtype=torch.float64)
    return Scales(fused, torch.tensor([[0.7, 1.2], [1.1, 0.5]], dtype=torch.float64), live)


@every_encoder
@pytest.mark.parametrize("live", [True, False])
def test_gradients_by_record_are_those_of_single_records(name: str, live: bool) -> None:
    model, blocks = model_of(CASES[name], fusion="attention")
    shake(blocks)
    batch, given = batch_of(CASES[name].spec), scales(live)
    found = record_gradients(model, blocks, batch, given, None)
    for i in range(len(batch)):
        alone = batch.select(torch.tensor([i]))
        group = int(batch.groups[i])
        wanted = weighted_gradients(model, blocks, alone, given, None)
        for m, modality in enumerate(model.modalities):
            # What `record_gradients` leaves for after clipping.
            wanted[f"encoder/{modality}"] = wanted[f"encoder/{modality}"] / given.fused[m + 1, group]
            wanted[f"head/{modality}"] = wanted[f"head/{modality}"] / given.unimodal[m, group]
        wanted["fusion"] = wanted["fusion"] / given.fused[0, group]
        for block, own in wanted.items():
            # Transformers compute softmax in float32; the others agree to 1e-15.
            torch.testing.assert_close(found[block][i], own, rtol=1e-6, atol=1e-7)


@every_encoder
@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_records_are_isolated(name: str, fusion: str) -> None:
    model, blocks = model_of(CASES[name], fusion)
    check_isolation(model, blocks, schema_of(CASES[name].spec), LIKE, GROUPS)


@every_encoder
def test_opacus_s_hooks_fit_or_are_refused(name: str) -> None:
    pytest.importorskip("opacus")
    model, blocks = model_of(CASES[name])
    shake(blocks)
    schema = schema_of(CASES[name].spec)
    if name in NOT_FOR_OPACUS:
        with pytest.raises(PrivacyError, match="engine: functional"):
            check_opacus(model, blocks, schema, LIKE, GROUPS)
    else:
        check_opacus(model, blocks, schema, LIKE, GROUPS)


@every_encoder
def test_every_parameter_learns(name: str) -> None:
    model, blocks = model_of(CASES[name])
    shake(blocks)
    batch = batch_of(CASES[name].spec)
    model(batch).square().sum().backward()
    silent = [
        key
        for key, p in model.encoders["own"].named_parameters()
        if p.grad is None or not p.grad.abs().max() > 1e-6
    ]
    # The bias of a key adds one number to all scores of a query, which softmax ignores.
    assert [key for key in silent if not key.endswith(("key.bias", "k_proj.bias"))] == []


@every_encoder
def test_a_missing_modality_has_embedding_zero_and_no_gradient(name: str) -> None:
    model, blocks = model_of(CASES[name])
    shake(blocks)
    batch = batch_of(CASES[name].spec)
    absent = batch.select(~batch.present[:, 0])
    assert len(absent) == 1
    embedding = model.encode(absent)[0]
    assert torch.equal(embedding, torch.zeros_like(embedding))
    model(absent).square().sum().backward()
    # Equal to zero, which NaN is not.
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.encoders["own"].parameters())


@every_encoder
def test_no_records_have_no_embeddings(name: str) -> None:
    model, _ = model_of(CASES[name])
    nobody = batch_of(CASES[name].spec).select(torch.tensor([], dtype=torch.int64))
    assert [(tuple(z.shape), z.dtype) for z in model.encode(nobody)] == [((0, 4), torch.float64)] * 2


@every_encoder
def test_the_seed_alone_draws_what_learns_and_what_is_frozen(name: str) -> None:
    (one, _), (same, _), (other, _) = (model_of(CASES[name], seed=seed) for seed in (3, 3, 4))
    batch = batch_of(CASES[name].spec)
    assert torch.equal(one(batch), same(batch))
    assert not torch.equal(one(batch), other(batch))


def made_up_cohort(spec: Modality, records: int = 32) -> MultimodalBatch:
    """Return records that a class shifts: in brightness, or in the first word."""
    generator = torch_generator(0, "cohort")
    labels = torch.arange(records) % 2
    if isinstance(spec, TextModality):
        value = torch.randint(1, spec.vocabulary // 2, (records, *spec.shape), generator=generator)
        value[:, 0] = spec.vocabulary - 1 - labels
    else:
        value = torch.rand(records, *spec.shape, generator=generator)
        value = value + labels.view(-1, *[1] * len(spec.shape))
    if isinstance(spec, TextModality | VolumeModality):
        value[::3, -1] = 0  # some records have one word or slice less
    return MultimodalBatch(
        {"own": value, "lab": torch.zeros(records, 5)},
        torch.tensor([True, False]).expand(records, 2),
        labels,
        torch.zeros(records, dtype=torch.int64),
        torch.arange(records) // 2 % GROUPS,
    )


@every_encoder
def test_a_few_records_are_learned_by_heart(name: str) -> None:
    case = CASES[name]
    model, _ = model_of(case)
    model.float()
    batch = made_up_cohort(case.spec)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        loss = cross_entropy(model(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert torch.equal(model(batch).argmax(1), batch.labels)


@pytest.mark.parametrize(
    "name", marked({n: c for n, c in CASES.items() if isinstance(c.spec, VolumeModality | TextModality)})
)
def test_padding_changes_nothing(name: str) -> None:
    case = CASES[name]
    model, blocks = model_of(case)
    shake(blocks)
    batch = batch_of(case.spec)
    value = batch.modalities["own"]
    shorter = replace(
        batch, modalities={**batch.modalities, "own": value[:, : (case.spec.shape[0] + 1) // 2]}
    )
    # The third record ends there; other records do lose something.
    before, after = model.encode(batch)[0], model.encode(shorter)[0]
    # Transformers compute softmax in float32, over another number of zeros.
    torch.testing.assert_close(after[2], before[2], rtol=1e-6, atol=1e-6)
    assert (after[0] - before[0]).abs().max() > 1e-4
