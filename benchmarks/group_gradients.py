"""Gradients by block and group beside the ungrouped step, and beside a plain backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks._cases import batch, open_case
from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, interleave
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.gradients import path_gradients, weighted_gradients
from fedfair.models import MultimodalModel, build_model
from fedfair.paths import RowPlan, Scales

SHARES = {"equal": {2: (0.5, 0.5), 3: (1 / 3, 1 / 3, 1 / 3)}, "80/20": {2: (0.8, 0.2), 3: (0.8, 0.1, 0.1)}}
SIZES = {"heart": (32, 60), "image + table": (64, 20)}


def tables() -> Iterator[Table]:
    """Yield one table: a row per model and division into groups."""
    columns = ("model, batch", "groups", "by group", "by group / one step", "by group / backward()")
    rows = []
    for case, (records, turns) in SIZES.items():
        config, adapter = open_case(case, {})
        model = build_model(config.model.name, adapter.schema, config.model.options, config.seed)
        blocks = ParameterBlocks(model)
        for groups in (2, 3):
            for division, shares in SHARES.items():
                one = batch(adapter.schema, shares[groups], records)
                grouped, step, plain = interleave(steps(model, blocks, one, groups), turns)
                own, beside = compare(grouped, step), compare(grouped, plain)
                cells = (f"{case}, {records}", f"{groups}, {division}", milliseconds(own.seconds))
                rows.append((*cells, str(own), str(beside)))
    yield Table("group-gradients", columns, rows)


def steps(
    model: MultimodalModel, blocks: ParameterBlocks, one: MultimodalBatch, groups: int
) -> list[Callable[[], object]]:
    """Return the gradient by group, the ungrouped one with coefficients, and plain autograd's."""
    rng, modalities = np.random.default_rng(1), len(model.modalities)
    coefficients = Coefficients(
        rng.uniform(0.5, 2, (modalities + 1, groups)), rng.uniform(0.5, 2, (modalities, groups)), live=True
    )
    scales, plan = Scales.build(coefficients, torch.zeros(())), RowPlan(frozenset(blocks.names))
    return [
        lambda: path_gradients(model, blocks, one, plan, scales, None),
        lambda: weighted_gradients(model, blocks, one, scales, None),
        lambda: backward(model, one),
    ]


def backward(model: MultimodalModel, one: MultimodalBatch) -> None:
    """Differentiate the sum of the mean losses of all heads as any training loop would."""
    model.zero_grad()
    embeddings = model.encode(one)
    loss = cross_entropy(model.fusion(embeddings, one.present).logits, one.labels)
    for m, scores in enumerate(model.unimodal(embeddings)):
        loss = loss + (cross_entropy(scores.logits, one.labels, reduction="none") * one.present[:, m]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
