"""A cohort with what goes wrong at sites, its partitions, and the server's loop in its shortest form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedfair.aggregation import check_update, combine, pool
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.data.schema import ArrayModality, Schema
from fedfair.local import LocalTraining, SiteUpdate, train
from fedfair.measure import measure
from fedfair.models import MultimodalModel, build_model
from fedfair.modulation import Method
from fedfair.paths import RowPlan, Scales
from fedfair.signals import bin_logits
from fedfair.terms import PreparedTerms

WIDTHS = {"ecg": 4, "lab": 3, "notes": 5}
GROUPS = 3
BINS = 32

History = list[dict[str, Tensor]]


def cohort(records: int = 96, classes: int = 2, complete: bool = False, seed: int = 0) -> MultimodalBatch:
    """Return records of three unequal groups, in an order that makes contiguous sites non-iid.

    Unless `complete`, the first 20 lack `notes`, a tenth lacks `ecg` or `lab`, and one has nothing.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, records)
    groups = rng.choice(GROUPS, records, p=[0.45, 0.35, 0.2])
    present = np.ones((records, len(WIDTHS)), dtype=bool)
    if not complete:
        present[:, :2] = rng.random((records, 2)) > 0.1
        present[:20, 2] = False
        present[0] = False
    signal = {"ecg": 0.9, "lab": 0.4, "notes": 0.6}
    values = {
        name: rng.normal(size=(records, width)) + signal[name] * (labels * (1 - 0.3 * groups))[:, None]
        for name, width in WIDTHS.items()
    }
    order = np.lexsort((labels, groups, present[:, 2]))
    return MultimodalBatch(
        {
            name: torch.as_tensor((value * present[:, [m]])[order])
            for m, (name, value) in enumerate(values.items())
        },
        torch.as_tensor(present[order]),
        torch.as_tensor(labels[order]),
        torch.as_tensor(groups[order]),
    )


def partition(records: MultimodalBatch, sites: int) -> list[MultimodalBatch]:
    """Return contiguous shares of unequal size, one per site."""
    bounds = (np.linspace(0, 1, sites + 1) ** 1.1 * len(records)).round().astype(int)
    return [records.select(torch.arange(a, b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def small_model(classes: int = 2, fusion: str = "concat", seed: int = 1) -> MultimodalModel:
    """Return a float64 late-fusion model of the cohort's modalities."""
    schema = Schema(
        {name: ArrayModality((width,)) for name, width in WIDTHS.items()},
        tuple(f"class {c}" for c in range(classes)),
        {"sex": tuple(f"group {g}" for g in range(GROUPS))},
        ("all",),
    )
    options = {"hidden": [6], "embedding_dim": 4, "fusion": fusion}
    return build_model("late_fusion", schema, options, seed).double()


def prepared(terms: LossTerms, bins: int = BINS) -> PreparedTerms | None:
    """Return the terms as a site trains with them."""
    return PreparedTerms.build(terms, torch.as_tensor(bin_logits(bins))) if terms else None


def extra_terms(classes: int = 2, which: str = "both") -> LossTerms:
    """Return a direction matrix and slopes drawn at random, with histograms of the cohort."""
    rng = np.random.default_rng(5)
    signals = measure(small_model(classes), cohort(classes=classes), GROUPS, BINS, 512)
    fairness = FairnessTerm(rng.normal(size=(3, GROUPS)), signals.histograms[1:], 1.0)
    return LossTerms(
        rng.normal(size=(classes, 5)) if which in ("both", "direction") else None,
        fairness if which in ("both", "fairness") else None,
    )


def parameters(model: MultimodalModel) -> dict[str, Tensor]:
    """Return a copy of the parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def difference(one: History, other: History) -> float:
    """Return the largest difference of a parameter over all rounds."""
    return max(float((a[name] - b[name]).abs().max()) for a, b in zip(one, other, strict=True) for name in a)


def federate(
    model: MultimodalModel,
    sites: Sequence[MultimodalBatch],
    method: Method,
    rounds: int,
    rate: float,
    chunk_size: int = 512,
) -> History:
    """Run gradient mode with one exchange per round; return the parameters after every round.

    The terms that sites train with are one round old, the coefficients are fresh.
    """
    blocks = ParameterBlocks(model)
    plan = RowPlan(frozenset(blocks.names), split=True)
    settings = LocalTraining("gradient", chunk_size=chunk_size, learning_rate=rate)
    vectors = {name: value.numpy() for name, value in blocks.snapshot().items()}
    lengths = {name: len(value) for name, value in vectors.items()}
    coefficients = Coefficients.neutral(len(model.modalities), GROUPS, method.live)
    terms, memory, history = LossTerms(), {}, []
    for _ in range(rounds):
        scales = Scales.build(coefficients, torch.zeros((), dtype=torch.float64))
        updates = []
        for number, records in enumerate(sites):
            blocks.load({name: torch.from_numpy(value) for name, value in vectors.items()})
            signals = measure(model, records, GROUPS, BINS, chunk_size, method.needs_head_gradients)
            moved = train(model, blocks, records, plan, scales, prepared(terms), settings, torch.Generator())
            rows = {key: value.numpy() for key, value in moved.items()}
            updates.append(SiteUpdate(f"site {number}", rows, signals, signals))
        paths = plan.paths(model.modalities, method.live, bool(terms))
        for update in updates:
            check_update(update, paths, model.modalities, lengths, GROUPS)
        answer = method.modulate(pool(updates)[0], memory)
        combine(vectors, updates, answer.coefficients, paths, model.modalities)
        coefficients, terms, memory = answer.coefficients, answer.terms, answer.memory
        blocks.load({name: torch.from_numpy(value) for name, value in vectors.items()})
        history.append(parameters(model))
    return history
