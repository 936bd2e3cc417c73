"""A private step (gradients by record, clipped and added) beside the plain one and beside Opacus's.

No step draws noise or moves the model. As a program, ``python -m benchmarks.private_step CASE STEP``
prints the memory that one step needs.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from benchmarks._cases import HEART, IMAGE, IMAGES, TABLE, batch, open_case
from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, extra_memory, interleave
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.data.schema import Schema
from fedfair.gradients import weighted_gradients
from fedfair.models import ConcatFusion, MultimodalModel, build_model
from fedfair.paths import Scales
from fedfair.privacy.clipping import clip_blocks, norm_bounds
from fedfair.privacy.per_record import record_gradients

Action = Callable[[], object]
SIZES = {"heart": (32, 60), "2 images + table": (64, 15)}
GROUPS = 2
PLAIN, ONE_ROW, HOOKS = "backward()", "fedfair, 1 row", "Opacus, hooks"
ROOT = Path(__file__).resolve().parents[1]
# What is freed goes back to the system, so that the next peak is the step's own.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def tables() -> Iterator[Table]:
    """Yield one table: a row per model and step."""
    columns = (
        "model, batch",
        "step",
        "time",
        f"to {PLAIN} (quartiles)",
        "to 1 row",
        "to hooks",
        "extra memory",
    )
    rows = []
    for case, (records, turns) in SIZES.items():
        actions = steps(case)
        times = dict(zip(actions, interleave(list(actions.values()), turns), strict=True))
        for name, own in times.items():
            plain = compare(own, times[PLAIN])
            beside = (f"{compare(own, times[peer]).ratio:.2f}" for peer in (ONE_ROW, HOOKS))
            cells = (f"{case}, {records}", name, milliseconds(plain.seconds), str(plain), *beside)
            rows.append((*cells, _memory(case, name)))
    yield Table("private-step", columns, rows)


def steps(case: str) -> dict[str, Action]:
    """Return the steps of a case by name."""
    # Opacus's hooks on layers whose inputs are data.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    schema, plain = _schema(case)
    model = build_model("late_fusion", schema, plain.get("model", {}).get("options", {}), seed=0)
    one = batch(schema, (1 / GROUPS,) * GROUPS, SIZES[case][0])
    modalities, rng = len(model.modalities), np.random.default_rng(1)
    coefficients = Coefficients(
        rng.uniform(0.5, 2, (modalities + 1, GROUPS)), rng.uniform(0.5, 2, (modalities, GROUPS)), live=True
    )
    blocks, scales = ParameterBlocks(model), Scales.build(coefficients, torch.zeros(()))
    bounds = norm_bounds(1.0, blocks.names)
    by_group = one_hot(one.groups, GROUPS).T.to(torch.float32)
    together = torch.ones(1, len(one))

    def private(rows: Tensor) -> dict[str, Tensor]:
        clipped = clip_blocks(record_gradients(model, blocks, one, scales, None), bounds)
        return {block: rows @ gradient for block, gradient in clipped.items()}

    return {
        PLAIN: plain_step(Layers(model), one),
        "fedfair, not private": lambda: weighted_gradients(model, blocks, one, scales, None),
        ONE_ROW: lambda: private(together),
        f"fedfair, {GROUPS} rows": lambda: private(by_group),
        HOOKS: hooks_step(Layers(model), one),
        "Opacus, ghost": ghost_step(Layers(model), one),
    }


def _schema(case: str) -> tuple[Schema, Mapping[str, Any]]:
    if case == "heart":
        return open_case(case, {})[1].schema, HEART
    modalities = {"left": IMAGE, "right": IMAGE, "table": TABLE}
    return Schema(modalities, ("healthy", "ill"), {"sex": ("female", "male")}, ("site",)), IMAGES


class Layers(nn.Module):
    """The same encoders, heads and fusion without the parameter of no layer, which Opacus refuses.

    The token for missing modalities is left out: the batch has none.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        own = copy.deepcopy(model)
        if not isinstance(own.fusion, ConcatFusion):
            raise TypeError(f"the model must join by ConcatFusion, got {type(own.fusion).__name__}")
        self.modalities, self.encoders, self.heads = own.modalities, own.encoders, own.heads
        self.body, self.classifier = own.fusion.body, own.fusion.classifier

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of all heads, [B, heads, C]."""
        embeddings = [self.encoders[name](inputs[name]) for name in self.modalities]
        fused = self.classifier(self.body(torch.cat(embeddings, 1)))
        unimodal = [self.heads[name](z).logits for name, z in zip(self.modalities, embeddings, strict=True)]
        return torch.stack([fused, *unimodal], 1)


class SummedLosses(nn.Module):
    """Sum of the heads' cross entropies; mean over the records, or each record's own."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = "mean"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits [B, heads, C]."""
        each = cross_entropy(
            logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), reduction="none"
        )
        by_record = each.view(logits.shape[:2]).sum(1)
        return by_record if self.reduction == "none" else by_record.mean()


def plain_step(layers: Layers, one: MultimodalBatch) -> Action:
    """Return an ordinary backward pass."""
    loss = SummedLosses()

    def step() -> None:
        layers.zero_grad()
        loss(layers(one.modalities), one.labels).backward()

    return step


def hooks_step(layers: Layers, one: MultimodalBatch) -> Action:
    """Return Opacus's step with hooks."""
    from opacus import GradSampleModule  # type: ignore[import-untyped]
    from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]

    module, loss = GradSampleModule(layers), SummedLosses()
    optimizer = DPOptimizer(torch.optim.SGD(module.parameters(), lr=0.1), **_opacus(one))

    def step() -> None:
        optimizer.zero_grad()
        loss(module(one.modalities), one.labels).backward()
        optimizer.clip_and_accumulate()

    return step


def ghost_step(layers: Layers, one: MultimodalBatch) -> Action:
    """Return Opacus's step with ghost clipping: norms first, then a second backward pass."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # type: ignore[import-untyped]
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping  # type: ignore[import-untyped]
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping  # type: ignore[import-untyped]

    module = GradSampleModuleFastGradientClipping(layers, max_grad_norm=1.0, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(torch.optim.SGD(module.parameters(), lr=0.1), **_opacus(one))
    loss = DPLossFastGradientClipping(module, optimizer, SummedLosses(), "mean")

    def step() -> None:
        optimizer.zero_grad()
        loss(module(one.modalities), one.labels).backward()
        optimizer.accumulate()

    return step


def _opacus(one: MultimodalBatch) -> dict[str, Any]:
    return {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": len(one)}


def _memory(case: str, step: str) -> str:
    command = [sys.executable, "-m", "benchmarks.private_step", case, step]
    environment = os.environ | GIVE_BACK
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return f"{float(done.stdout) / 2**20:.1f} MiB"


def _probe(case: str, step: str) -> None:
    action = steps(case)[step]
    action()  # imports, and buffers that stay
    print(extra_memory(action))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _probe(*sys.argv[1:])
