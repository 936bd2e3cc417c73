"""A training step behind a frozen network, with its features computed once and with each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, interleave
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.data.schema import ArrayModality, Modality, Schema, TextModality
from fedfair.frozen import precomputed
from fedfair.gradients import weighted_gradients
from fedfair.models import build_model
from fedfair.paths import Scales
from fedfair.privacy.isolation import made_up_batch

# The sizes of ViT-B/16 and of BERT base, with random weights.
NETWORKS: Mapping[str, tuple[str, Modality]] = {
    "ViT-B/16, 224 px": ("vit", ArrayModality((3, 224, 224))),
    "BERT base, 128 words": ("bert", TextModality(128, 30523)),
}
COPIES, TURNS = 3, 7


def tables() -> Iterator[Table]:
    """Yield one table: a row per network."""
    columns = ("frozen network", "features, once per record", "step", "step on features", "to the former")
    yield Table("frozen", columns, [row(name) for name in NETWORKS])


def row(name: str) -> tuple[str, ...]:
    """Return one network's line."""
    kind, modality = NETWORKS[name]
    schema = Schema({"own": modality}, ("healthy", "ill"), {"sex": ("female", "male")}, ("one",))
    options = {"encoders": {"own": {"name": kind, "tune": "frozen", "config": {}}}}
    model = build_model("late_fusion", schema, options, 0)
    blocks, like = ParameterBlocks(model), torch.zeros(())
    few = made_up_batch(schema, like, 2)
    batch = few.select(torch.arange(len(few)).repeat(COPIES))
    known = precomputed(model, batch, len(batch))
    scales = Scales.build(Coefficients.neutral(1, 2, live=True), like)
    once, whole, short = interleave(
        [
            lambda: precomputed(model, batch, len(batch)),
            lambda: weighted_gradients(model, blocks, batch, scales, None),
            lambda: weighted_gradients(model, blocks, known, scales, None),
        ],
        TURNS,
    )
    beside = compare(short, whole)
    times = [milliseconds(float(np.median(own))) for own in (once / len(batch), whole, short)]
    return (
        f"{name}, batch {len(batch)}",
        *times,
        f"{beside.ratio:.4f} ({beside.low:.4f} to {beside.high:.4f})",
    )
