"""FairLoRA: shared vectors and one row of singular values per group, on a layer, in a model, over sites."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.data.crossing import group_names, memberships
from fedfair.data.schema import Schema, SiteRecords
from fedfair.models import MultimodalModel, adapters, build_model
from fedfair.models.encoders._adapters import add_adapters, by_group
from fedfair.modulation import DualMimo, FedAvg, Method
from fedfair.seeding import torch_generator
from tests.oracles.cohort import BINS, GROUPS, difference, federate, partition
from tests.oracles.reference import centralise
from tests.unit.models.cases import (
    PHOTO,
    PRETRAINED,
    TABLE,
    Case,
    batch_of,
    marked,
    model_of,
    needs_peft,
    pretrained,
    shake,
)

pytestmark = needs_peft

ATTRIBUTES = {"race": ("asian", "black", "white"), "sex": ("female", "male"), "age": ("young", "old")}
CELLS = list(itertools.product(range(3), range(2), range(2)))
INPUTS, OUTPUTS, RANK, ALPHA = 5, 4, 2, 6
FAIR = [name for name in PRETRAINED if name.endswith("-fair_lora")]


def layer(attribute: str | None) -> nn.Module:
    """Return one linear layer with an adapter, drawn at random but for singular values of one."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("own", nn.Linear(INPUTS, OUTPUTS))
    add_adapters(network, RANK, ALPHA, ["own"])
    found = network if attribute is None else by_group(network, ATTRIBUTES, attribute)
    nn.init.normal_(adapters(found).popitem()[1].B)
    return found.double()


def activations(records: int, rows: int = 3) -> Tensor:
    return torch.randn(records, rows, INPUTS, generator=torch_generator(0, "x"), dtype=torch.float64)


def group_of(cell: tuple[int, ...], attribute: str) -> int:
    """Return a cell's place among the groups of a crossing, by their names."""
    group_by_name = dict(zip(ATTRIBUTES, cell, strict=True))
    parts = [ATTRIBUTES[name][group_by_name[name]] for name in attribute.split("*")]
    return group_names(ATTRIBUTES, attribute).index(" & ".join(parts))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize("attribute", ["race", "sex", "age", "race*age", "sex*race", "age*sex*race"])
def test_a_layer_changes_by_the_values_of_the_record_s_group(attribute: str, slices: int) -> None:
    model = layer(attribute)
    ((_, (down, up, scale, values)),) = adapters(model).items()
    assert values is not None
    nn.init.normal_(values)
    order = torch.randperm(len(CELLS), generator=torch_generator(0, "cells"))
    inputs = activations(len(CELLS) * slices)
    found = model(inputs, order).detach().numpy().reshape(len(CELLS), -1, OUTPUTS)
    weight, bias, b, a, s = (
        x.detach().numpy()
        for x in (*model.get_submodule("encoder.own.base_layer").parameters(), up, down, values)
    )
    assert scale == ALPHA / RANK
    assert s.shape == (len(group_names(ATTRIBUTES, attribute)), RANK)
    for record, cell in enumerate(order.tolist()):
        g = group_of(CELLS[cell], attribute)
        whole = weight + scale * b @ np.diag(s[g]) @ a
        own = inputs.numpy().reshape(len(CELLS), -1, INPUTS)[record]
        # The same few sums in another order.
        np.testing.assert_allclose(found[record], own @ whole.T + bias, rtol=1e-12, atol=1e-12)


def test_groups_are_those_by_which_records_are_told_apart() -> None:
    every = {name: np.array([cell[i] for cell in CELLS]) for i, name in enumerate(ATTRIBUTES)}
    records = SiteRecords({}, np.zeros(len(CELLS), np.int64), every)
    for attribute in ("race", "age*race"):
        codes = layer(attribute).codes
        assert torch.equal(codes.argmax(1), torch.from_numpy(memberships(records, ATTRIBUTES, attribute)))
        assert torch.equal(codes.sum(1), torch.ones(len(CELLS), dtype=torch.float64))


def moved_alike(fair: MultimodalModel, plain: MultimodalModel) -> None:
    """Give both the same random parameters, the values of groups left at one."""
    own = {
        key.replace("own.encoder.", "own.").replace(".first.", "."): p for key, p in fair.named_parameters()
    }
    shared = {key: p for key, p in own.items() if ".values." not in key}
    others = dict(plain.named_parameters())
    assert list(shared) == list(others)
    for key, p in others.items():
        assert torch.equal(shared[key], p), "they start alike"
        with torch.no_grad():
            p.add_(torch.randn(p.shape, generator=torch_generator(2, key), dtype=p.dtype) * 0.2)
            shared[key].copy_(p)


@pytest.mark.parametrize("name", marked({n: PRETRAINED[n] for n in FAIR}))
def test_with_values_of_one_it_is_plain_lora_bit_for_bit(name: str) -> None:
    case, batch = PRETRAINED[name], batch_of(PRETRAINED[name].spec)
    plain, _ = model_of(PRETRAINED[name.replace("fair_", "")])
    fair, blocks = model_of(case)
    assert torch.equal(fair(batch), plain(batch))
    moved_alike(fair, plain)
    assert torch.equal(fair(batch), plain(batch))
    values = [adapter.values for adapter in adapters(fair).values()]
    assert all(own is not None and torch.equal(own, torch.ones(2, 2)) for own in values)
    shake(blocks)
    swapped = replace(batch, cells=1 - batch.cells)
    changed = (fair(batch) - fair(swapped)).abs().amax(1) > 1e-4
    assert torch.equal(changed, batch.present[:, 0]), "then the group of each record counts"


@pytest.mark.parametrize("name", marked({n: PRETRAINED[n] for n in FAIR}))
def test_values_learn_from_their_own_group_and_vectors_from_all(name: str) -> None:
    model, blocks = model_of(PRETRAINED[name])
    shake(blocks)
    batch = batch_of(PRETRAINED[name].spec)
    first = model.encoders["own"]
    rows = {}
    for g in range(2):
        members = batch.select((batch.cells == g) & batch.present[:, 0])
        assert len(members)
        model.zero_grad()
        cross_entropy(model(members), members.labels, reduction="sum").backward()
        rows[g] = {key: p.grad.clone() for key, p in first.named_parameters() if p.grad is not None}
    for key in (key for key in rows[0] if "lora" in key):
        for g, row in rows.items():
            if key.endswith("values.weight"):
                assert row[key][:, g].abs().min() > 0
                assert torch.equal(row[key][:, 1 - g], torch.zeros(2, dtype=torch.float64))
            else:
                assert row[key].abs().max() > 0


def fair_cohort(records: int = 40) -> MultimodalBatch:
    """Return images and tables of three unequal groups in an order that makes contiguous sites differ."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.choice(GROUPS, records, p=[0.6, 0.3, 0.1]))
    labels = rng.integers(0, 2, records)
    images = rng.random((records, 1, 32, 32)) + 0.5 * labels[:, None, None, None]
    present = np.ones((records, 2), bool)
    present[::7, 0] = False
    images[::7] = 0
    whole, mask, own, known = map(torch.from_numpy, (images, present, labels, groups))
    table = torch.from_numpy(rng.normal(size=(records, 5)))
    return MultimodalBatch({"own": whole, "lab": table}, mask, own, known, known)


def fair_model() -> MultimodalModel:
    schema = Schema({"own": PHOTO, "lab": TABLE}, ("healthy", "ill"), {"race": ATTRIBUTES["race"]}, ("one",))
    choice = {**pretrained("vit", "fair_lora"), "attribute": "race", "alpha": 40}
    options = {"hidden": [6], "embedding_dim": 4, "encoders": {"own": choice}}
    model = build_model("late_fusion", schema, options, 1).double()
    for adapter in adapters(model).values():
        nn.init.normal_(adapter.B, generator=torch_generator(0, "B"))
    return model


@pytest.mark.parametrize("method", [FedAvg(), DualMimo(penalty=0.7, mu=0.1, shrinkage=5.0)])
@pytest.mark.parametrize("sites", [1, 2, 5])
def test_sites_together_are_one_training_on_all_records(method: Method, sites: int) -> None:
    reference = centralise(fair_model(), fair_cohort(), method, 3, 0.5, GROUPS, BINS)
    found = federate(fair_model(), partition(fair_cohort(), sites), method, 3, 0.5)
    # The library computes softmax in float32; 5e-10 of it reaches the parameters.
    assert difference(found, reference) < 1e-8
    (values,) = {
        key for key in reference[0] if key.endswith("1.attention.v_proj.lora_A.default.values.weight")
    }
    moved = (reference[-1][values] - 1).abs().amax(0)
    assert moved.min() > 1e-4, "values of every group learn, thousands of times what is tolerated"


def test_two_groups_that_need_other_weights_both_get_them() -> None:
    """A layer alone: one change for both groups leaves half the squared distance of what they need.

    With inputs whose second moments are the identity, the errors |D - D_0|^2 and |D - D_1|^2 sum to
    |D_0 - D_1|^2 / 2 at least, at the mean of both.
    """
    inputs = torch.linalg.qr(activations(1, 20)[0]).Q[None].expand(4, -1, -1)
    down, up = (
        torch.randn(shape, generator=torch_generator(0, "truth"), dtype=torch.float64)
        for shape in ((RANK, INPUTS), (OUTPUTS, RANK))
    )
    values = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    cells = torch.tensor([0, 2, 1, 3])  # young women, young men, old women, old men
    groups = torch.tensor([0, 1, 0, 1])
    change = up @ torch.diag_embed(values) @ down
    left = {}
    for attribute in (None, "sex"):
        model = layer(attribute)
        base = model.get_submodule("own" if attribute is None else "encoder.own").base_layer
        wanted = base(inputs).detach() + inputs @ change[groups].mT
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(1500):
            found = model(inputs) if attribute is None else model(inputs, cells)
            loss = (found - wanted).square().sum() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[attribute] = float(loss.detach())
    least = float((change[0] - change[1]).square().sum()) / 2
    assert least > 1
    assert left[None] >= least * (1 - 1e-12)
    assert left["sex"] < 1e-3 * least


@pytest.mark.parametrize(("tune", "right"), [("lora", 0.5), ("fair_lora", 1.0)])
def test_a_sign_that_means_the_opposite_in_another_group_is_learned(tune: str, right: float) -> None:
    """Each image stands in both groups, with opposite labels: without the group exactly half can be right."""
    half = torch.arange(16) % 2
    images = torch.rand(16, 1, 32, 32, generator=torch_generator(1, "images")) + half[:, None, None, None]
    labels, groups = torch.cat([half, 1 - half]), torch.arange(32) // 16
    present = torch.tensor([True, False]).expand(32, 2)
    inputs = {"own": torch.cat([images, images]) / 2, "lab": torch.zeros(32, 5)}
    batch = MultimodalBatch(inputs, present, labels, groups, groups)
    model = model_of(Case(PHOTO, pretrained("vit", tune)), seed=1)[0].float()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(150):
        loss = cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((model(batch).argmax(1) == labels).float().mean()) == right
