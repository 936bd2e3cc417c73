"""Local training: what a site sends is a sum that the server can divide once.

Update mode with constant coefficients is federated averaging of local SGD, written here with torch.optim.SGD.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedfair.aggregation import combine
from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks, encoder_block, head_block
from fedfair.coefficients import Coefficients, LossTerms
from fedfair.errors import InconsistentUpdates, ShapeError
from fedfair.local import LocalTraining, SiteUpdate, block_records, train
from fedfair.measure import measure
from fedfair.models import ConcatFusion, Head, MultimodalModel
from fedfair.paths import RowPlan, Scales
from fedfair.seeding import torch_generator
from tests.oracles.cohort import BINS, GROUPS, WIDTHS, cohort, extra_terms, partition, prepared, small_model

MODALITIES = tuple(WIDTHS)
BLOCKS = (FUSION, *map(encoder_block, MODALITIES), *map(head_block, MODALITIES))
LIKE = torch.zeros((), dtype=torch.float64)
EPOCHS = LocalTraining("update", local_epochs=3, batch_size=7, learning_rate=0.2)

NEUTRAL = Coefficients.neutral(3, GROUPS)
MODULATED = Coefficients(
    np.array([[1.0, 1.0, 1.0], [0.5, 1.5, 1.2], [2.0, 0.7, 1.0], [1.0, 1.1, 0.6]]),
    np.array([[0.0, 1.0, 2.0], [0.3, 0.3, 0.3], [1.0, 0.0, 0.5]]),
    live=True,
)
PLANS = {
    "weights": RowPlan(),
    "rows": RowPlan(frozenset(BLOCKS)),
    "split rows": RowPlan(frozenset(BLOCKS), split=True),
    "some rows": RowPlan(frozenset({"encoder/ecg", "head/lab", FUSION}), split=True),
}


def site_update(
    name: str,
    site: MultimodalBatch,
    coefficients: Coefficients,
    plan: RowPlan,
    settings: LocalTraining,
    terms: LossTerms | None = None,
) -> SiteUpdate:
    """Return what a site sends that starts from the common model."""
    model = small_model()
    blocks = ParameterBlocks(model)
    signals = measure(model, site, GROUPS, BINS, 512)
    rows = train(
        model,
        blocks,
        site,
        plan,
        Scales.build(coefficients, LIKE),
        None if terms is None else prepared(terms),
        settings,
        torch_generator(0, name),
    )
    return SiteUpdate(name, {key: value.numpy() for key, value in rows.items()}, signals, signals)


def federated(
    sites: Sequence[MultimodalBatch], coefficients: Coefficients, plan: RowPlan, settings: LocalTraining
) -> dict[str, np.ndarray]:
    vectors = {name: v.numpy() for name, v in ParameterBlocks(small_model()).snapshot().items()}
    updates = [site_update(str(k), site, coefficients, plan, settings) for k, site in enumerate(sites)]
    paths = plan.paths(MODALITIES, coefficients.live, False)
    combine(vectors, updates, coefficients, paths, MODALITIES)
    return vectors


def weighted_loss(
    model: MultimodalModel, batch: MultimodalBatch, block: str, k: Coefficients, share: float
) -> Tensor:
    """Return the loss whose gradient moves `block`: a weighted mean, divided by the modality's share."""
    embeddings = model.encode(batch)
    kind, _, name = block.partition("/")
    m = MODALITIES.index(name) if name else -1
    total = torch.zeros(len(batch), dtype=torch.float64)
    if kind != "head":
        fused = cross_entropy(model.fusion(embeddings, batch.present).logits, batch.labels, reduction="none")
        total = total + torch.as_tensor(k.fused)[m + 1, batch.groups] * fused
    if kind == "head" or (kind == "encoder" and k.live):
        own = cross_entropy(model.heads[name](embeddings[m]).logits, batch.labels, reduction="none")
        total = total + torch.as_tensor(k.unimodal)[m, batch.groups] * own * batch.present[:, m]
    return total.mean() / share


def sgd(site: MultimodalBatch, name: str, k: Coefficients, settings: LocalTraining) -> dict[str, np.ndarray]:
    """Return the blocks after local epochs of torch.optim.SGD, each on its own weighted loss."""
    model = small_model()
    owned = {FUSION: list(model.fusion.parameters())}
    for modality in MODALITIES:
        owned[encoder_block(modality)] = list(model.encoders[modality].parameters())
        owned[head_block(modality)] = list(model.heads[modality].parameters())
    has = dict(zip(MODALITIES, site.present.double().mean(0).tolist(), strict=True))
    share = {block: has.get(block.partition("/")[2], 1.0) for block in BLOCKS}
    optimiser = torch.optim.SGD(model.parameters(), settings.learning_rate, settings.momentum)
    generator = torch_generator(0, name)
    for _ in range(settings.local_epochs):
        for index in torch.randperm(len(site), generator=generator).split(settings.batch_size):
            batch = site.select(index)
            for block, parameters in owned.items():
                if share[block] > 0:
                    loss = weighted_loss(model, batch, block, k, share[block])
                    gradients = torch.autograd.grad(loss, parameters)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.grad = gradient
            optimiser.step()
    return {b: torch.cat([p.detach().reshape(-1) for p in own]).numpy() for b, own in owned.items()}


def averaged(
    sites: Sequence[MultimodalBatch], k: Coefficients, settings: LocalTraining
) -> dict[str, np.ndarray]:
    """Return FedAvg: each block averaged over the records that have its modality."""
    trained = [sgd(site, str(i), k, settings) for i, site in enumerate(sites)]
    result = {}
    for block in BLOCKS:
        name = block.partition("/")[2]
        weight = [int(site.present[:, MODALITIES.index(name)].sum()) if name else len(site) for site in sites]
        result[block] = sum(n * own[block] for n, own in zip(weight, trained, strict=True)) / sum(weight)
    return result


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("coefficients", [NEUTRAL, MODULATED], ids=["neutral", "modulated"])
def test_update_mode_is_federated_averaging_of_local_sgd(
    coefficients: Coefficients, plan: str, momentum: float
) -> None:
    settings = LocalTraining("update", 3, 7, learning_rate=0.2, momentum=momentum)
    sites = partition(cohort(), 5)
    assert any(not site.present[:, 2].any() for site in sites)
    expected = averaged(sites, coefficients, settings)
    for block, value in federated(sites, coefficients, PLANS[plan], settings).items():
        # A few dozen SGD steps whose gradients are the same sums in another order.
        np.testing.assert_allclose(value, expected[block], rtol=0, atol=1e-10)
        assert np.abs(value - ParameterBlocks(small_model()).vectors[block].numpy()).max() > 1e-3


def test_a_constant_row_of_coefficients_acts_like_another_learning_rate() -> None:
    sites = partition(cohort(), 3)
    double = Coefficients(2 * NEUTRAL.fused, 2 * NEUTRAL.unimodal)
    faster = LocalTraining("update", 3, 7, learning_rate=0.4)
    one = federated(sites, double, PLANS["rows"], EPOCHS)
    other = federated(sites, NEUTRAL, PLANS["weights"], faster)
    for block in BLOCKS:
        np.testing.assert_allclose(one[block], other[block], rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 10, 512])
def test_gradient_mode_is_one_step_whatever_the_chunks(chunk_size: int) -> None:
    sites = partition(cohort(), 3)
    exact = LocalTraining("gradient", chunk_size=chunk_size, learning_rate=0.2)
    one_batch = LocalTraining("update", 1, batch_size=10_000, learning_rate=0.2)
    got = federated(sites, MODULATED, PLANS["split rows"], exact)
    # Update mode with a single batch is the same step.
    for block, value in federated(sites, MODULATED, PLANS["weights"], one_batch).items():
        np.testing.assert_allclose(got[block], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_site_without_a_modality_leaves_out_its_blocks(mode: str) -> None:
    site = partition(cohort(), 5)[0]
    update = site_update("a", site, MODULATED, PLANS["split rows"], LocalTraining(mode))
    assert {key.partition(":")[0] for key in update.rows} == set(BLOCKS) - {"encoder/notes", "head/notes"}
    assert block_records(update.train, MODALITIES, "encoder/notes") == 0
    assert block_records(update.train, MODALITIES, FUSION) == len(site)
    having = int(site.present[:, 1].sum())
    assert block_records(update.train, MODALITIES, "head/lab") == having < len(site)


@pytest.mark.parametrize("mode", ["gradient", "update"])
@pytest.mark.parametrize("name", ["direction", "fairness", "both"])
def test_terms_change_what_a_site_sends(mode: str, name: str) -> None:
    site, settings = cohort(), LocalTraining(mode, learning_rate=0.2)
    without = site_update("a", site, NEUTRAL, PLANS["weights"], settings)
    with_terms = site_update("a", site, NEUTRAL, PLANS["weights"], settings, extra_terms(which=name))
    for modality in MODALITIES:
        key = f"encoder/{modality}:all"
        assert np.abs(without.rows[key] - with_terms.rows[key]).max() > 1e-3


def test_the_generator_fixes_the_order_of_the_records() -> None:
    site = cohort()
    first, again, other = (
        site_update(name, site, NEUTRAL, PLANS["weights"], EPOCHS).rows for name in ("a", "a", "b")
    )
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_measuring_changes_nothing() -> None:
    model = small_model()
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    measure(model, cohort(), GROUPS, BINS, 512, head_gradients=True)
    assert not model.training, "statistics come from evaluation mode"
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_model_that_diverged_is_refused() -> None:
    model = small_model()
    with torch.no_grad():
        model.fusion.classifier.weight.fill_(torch.inf)
    with pytest.raises(InconsistentUpdates, match="finite scores"):
        measure(model, cohort(), GROUPS, BINS, 512)


def test_last_layers_of_different_widths_are_refused_for_a_direction_term() -> None:
    encoders = {name: torch.nn.Linear(width, 4) for name, width in WIDTHS.items()}
    heads = {name: Head(torch.nn.Identity(), torch.nn.Linear(4, 2)) for name in WIDTHS}
    model = MultimodalModel(encoders, heads, ConcatFusion(3, 4, 6, 2)).double()
    measure(model, cohort(), GROUPS, BINS, 512)
    with pytest.raises(ShapeError, match="method.direction"):
        measure(model, cohort(), GROUPS, BINS, 512, head_gradients=True)
