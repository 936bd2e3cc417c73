"""Gradients by block and group against plain autograd of explicitly written losses.

Everywhere 1e-12: sums of a hundred float64 gradients of order one, taken in another order.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks, encoder_block, head_block
from fedfair.coefficients import Coefficients, LossTerms
from fedfair.gradients import path_gradients, weighted_gradients
from fedfair.models import MultimodalModel
from fedfair.paths import Path, RowPlan, Scales, path_scale
from tests.oracles.cohort import GROUPS, WIDTHS, cohort, extra_terms, prepared, small_model

TOLERANCE = 1e-12
MODALITIES = tuple(WIDTHS)
ENCODERS = tuple(map(encoder_block, MODALITIES))
HEADS = tuple(map(head_block, MODALITIES))
BLOCKS = (FUSION, *ENCODERS, *HEADS)
ALL = frozenset(BLOCKS)


def coefficients(live: bool, seed: int = 4) -> Coefficients:
    rng = np.random.default_rng(seed)
    return Coefficients(rng.uniform(0.5, 2, (4, GROUPS)), rng.uniform(0, 2, (3, GROUPS)), live)


def scales(live: bool, seed: int = 4) -> Scales:
    return Scales.build(coefficients(live, seed), torch.zeros((), dtype=torch.float64))


@cache
def case(classes: int = 2) -> tuple[MultimodalModel, ParameterBlocks, MultimodalBatch]:
    model = small_model(classes)
    return model, ParameterBlocks(model), cohort(classes=classes)


def losses(model: MultimodalModel, batch: MultimodalBatch, terms: LossTerms | None) -> dict[str, Tensor]:
    """Return per-record losses [n] of every head, zero without the modality, and the sum of the terms."""
    embeddings = model.encode(batch)
    fused, unimodal = model.fusion(embeddings, batch.present), model.unimodal(embeddings)
    result = {"fused": cross_entropy(fused.logits, batch.labels, reduction="none")}
    for m, name in enumerate(model.modalities):
        each = cross_entropy(unimodal[m].logits, batch.labels, reduction="none")
        result[name] = each * batch.present[:, m]
    if terms is not None:
        result["terms"] = prepared(terms).loss(fused, unimodal, batch)
    return result


def plain(blocks: ParameterBlocks, block: str, loss: Tensor) -> Tensor:
    """Return the gradient of a scalar by a block, as one vector."""
    gradients = torch.autograd.grad(loss, blocks.parameters[block], retain_graph=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def modality(block: str) -> str:
    return block.partition("/")[2]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def expected_rows(path: Path, classes: int, terms: LossTerms | None) -> Tensor:
    """Return the gradient of a path's loss on every group's records alone, one row per group."""
    model, blocks, batch = case(classes)
    rows = []
    for g in range(GROUPS):
        part = losses(model, batch.select(batch.groups == g), terms)
        loss = {"fused": "fused", "terms": "terms"}.get(path.source, modality(path.block))
        rows.append(plain(blocks, path.block, part[loss].sum()))
    return torch.stack(rows)


@pytest.mark.parametrize("which", [None, "direction", "fairness", "both"])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_group_rows_equal_a_loop_over_groups(classes: int, live: bool, which: str | None) -> None:
    model, blocks, batch = case(classes)
    terms = None if which is None else extra_terms(classes, which)
    plan = RowPlan(ALL, split=True)
    tensors = None if terms is None else prepared(terms)
    rows = path_gradients(model, blocks, batch, plan, scales(live), tensors)
    paths = plan.paths(MODALITIES, live, terms is not None)
    assert set(rows) == {path.key for path in paths}
    for path in paths:
        expected = expected_rows(path, classes, terms)
        assert_close(rows[path.key], expected if path.grouped else expected.sum(0, keepdim=True))


@pytest.mark.parametrize("live", [False, True])
def test_group_rows_sum_to_the_ungrouped_gradient(live: bool) -> None:
    model, blocks, batch = case()
    rows = path_gradients(model, blocks, batch, RowPlan(ALL, split=True), scales(live), None)
    ones = Scales(torch.ones_like(scales(live).fused), torch.ones_like(scales(live).unimodal), live)
    whole = path_gradients(model, blocks, batch, RowPlan(), ones, None)
    for block in BLOCKS:
        total = sum(value.sum(0) for key, value in rows.items() if key.startswith(f"{block}:"))
        assert_close(total, whole[f"{block}:all"][0])


def explicitly_weighted(block: str, live: bool, terms: LossTerms | None, batch: MultimodalBatch) -> Tensor:
    """Return a block's gradient of the loss in which every record has its coefficient."""
    model, blocks, _ = case()
    k, each = scales(live), losses(model, batch, terms)
    fused_row = 0 if block == FUSION else 1 + MODALITIES.index(modality(block))
    total = torch.zeros((), dtype=torch.float64)
    if block not in HEADS:
        total = total + (k.fused[fused_row, batch.groups] * each["fused"]).sum()
        total = total + (0.0 if terms is None else each["terms"])
    if block in HEADS or (live and block in ENCODERS):
        total = total + (k.unimodal[fused_row - 1, batch.groups] * each[modality(block)]).sum()
    return plain(blocks, block, total)


@pytest.mark.parametrize("with_terms", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_weighted_gradients_are_those_of_the_weighted_loss(live: bool, with_terms: bool) -> None:
    model, blocks, batch = case()
    terms = extra_terms() if with_terms else None
    got = weighted_gradients(model, blocks, batch, scales(live), None if terms is None else prepared(terms))
    assert set(got) == ALL
    for block, gradient in got.items():
        assert_close(gradient, explicitly_weighted(block, live, terms, batch))


@pytest.mark.parametrize(
    "grouped", [ALL, frozenset({FUSION}), frozenset(ENCODERS), frozenset({ENCODERS[1], HEADS[0]})]
)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("with_terms", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_rows_recombined_with_their_own_coefficients_are_the_weighted_gradient(
    live: bool, with_terms: bool, split: bool, grouped: frozenset[str]
) -> None:
    model, blocks, batch = case()
    terms, plan = extra_terms() if with_terms else None, RowPlan(grouped, split)
    tensors = None if terms is None else prepared(terms)
    rows = path_gradients(model, blocks, batch, plan, scales(live), tensors)
    total = {block: torch.zeros_like(blocks.vectors[block]) for block in BLOCKS}
    for path in plan.paths(MODALITIES, live, with_terms):
        assert len(rows[path.key]) == (GROUPS if path.grouped else 1)
        total[path.block] += path_scale(path, scales(live), MODALITIES) @ rows[path.key]
    for block, gradient in total.items():
        assert_close(gradient, explicitly_weighted(block, live, terms, batch))


def test_split_rows_can_be_recombined_with_fresh_coefficients() -> None:
    model, blocks, batch = case()
    plan = RowPlan(ALL, split=True)
    rows = path_gradients(model, blocks, batch, plan, scales(True, seed=8), None)
    for block in BLOCKS:
        total = sum(
            path_scale(path, scales(True), MODALITIES) @ rows[path.key]
            for path in plan.paths(MODALITIES, True, False)
            if path.block == block
        )
        assert_close(total, explicitly_weighted(block, True, None, batch))


def test_a_group_without_records_has_a_row_of_zeros() -> None:
    model, blocks, batch = case()
    rows = path_gradients(
        model, blocks, batch.select(batch.groups != 1), RowPlan(ALL, True), scales(True), None
    )
    for value in rows.values():
        assert not value[1].any()
        assert value[[0, 2]].any()


def test_records_without_the_modality_give_no_gradient_to_its_blocks() -> None:
    model, blocks, batch = case()
    without = batch.select(~batch.present[:, 2])
    rows = path_gradients(model, blocks, without, RowPlan(ALL, True), scales(True), prepared(extra_terms()))
    for key, value in rows.items():
        assert value.any() == ("/notes" not in key), key


@pytest.mark.parametrize("block", [FUSION, *ENCODERS])
def test_the_direction_term_reaches_every_part_of_the_fused_model(block: str) -> None:
    model, blocks, batch = case()
    terms = prepared(extra_terms(which="direction"))
    rows = path_gradients(model, blocks, batch, RowPlan(ALL, True), scales(False), terms)
    assert rows[f"{block}:terms"].norm() > 1e-3


@pytest.mark.parametrize("block", ENCODERS)
def test_the_fairness_term_reaches_every_encoder_and_nothing_else(block: str) -> None:
    model, blocks, batch = case()
    terms = prepared(extra_terms(which="fairness"))
    rows = path_gradients(model, blocks, batch, RowPlan(ALL, True), scales(False), terms)
    assert rows[f"{block}:terms"].norm() > 1e-3
    assert not rows["fusion:terms"].any()
    assert not any(key.startswith("head/") and key.endswith(":terms") for key in rows)


@pytest.mark.parametrize("block", ENCODERS)
def test_live_losses_reach_the_encoders_and_probes_do_not(block: str) -> None:
    model, blocks, batch = case()
    strong, weak = coefficients(True), coefficients(True)
    strong.unimodal[:] *= 5.0
    for live in (True, False):
        pair = [
            weighted_gradients(
                model,
                blocks,
                batch,
                Scales.build(Coefficients(c.fused, c.unimodal, live), torch.zeros(1).double()),
                None,
            )
            for c in (strong, weak)
        ]
        changed = not torch.equal(pair[0][block], pair[1][block])
        assert changed == live
        assert not torch.equal(pair[0][f"head/{modality(block)}"], pair[1][f"head/{modality(block)}"])
        assert torch.equal(pair[0][FUSION], pair[1][FUSION])


GROUPED_KEYS = [*(f"{b}:fused" for b in (FUSION, *ENCODERS)), *(f"{b}:unimodal" for b in HEADS)]
SOME_KEYS = [
    *("fusion:fused", "fusion:terms"),
    *("encoder/ecg:fused", "encoder/ecg:unimodal", "encoder/ecg:terms"),
    *("encoder/lab:all", "encoder/notes:all", "head/ecg:all", "head/lab:unimodal", "head/notes:all"),
]


@pytest.mark.parametrize(
    ("plan", "live", "terms", "keys"),
    [
        (RowPlan(), True, True, [f"{block}:all" for block in BLOCKS]),
        (RowPlan(ALL), True, False, GROUPED_KEYS),
        (RowPlan(ALL, True), False, False, GROUPED_KEYS),
        (RowPlan(frozenset({FUSION, "encoder/ecg", "head/lab"}), True), True, True, SOME_KEYS),
    ],
)
def test_plan_lists_what_is_sent(plan: RowPlan, live: bool, terms: bool, keys: list[str]) -> None:
    assert [path.key for path in plan.paths(MODALITIES, live, terms)] == keys
