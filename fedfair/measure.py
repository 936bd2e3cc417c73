"""Measuring a model: the signals of a site's records, a forward pass and no more."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.errors import InconsistentUpdates, ShapeError
from fedfair.models import MultimodalModel, Scores
from fedfair.signals import Signals, head_signals


@torch.no_grad()
def measure(
    model: MultimodalModel,
    records: MultimodalBatch,
    num_groups: int,
    bins: int,
    chunk_size: int,
    head_gradients: bool = False,
) -> Signals:
    """Return the signals of a model, in evaluation mode, on a site's records.

    Parameters
    ----------
    model : MultimodalModel
        The downloaded global model.
    records : MultimodalBatch
        n >= 0 records whose `groups` are in ``0 .. num_groups-1``.
    num_groups, bins, chunk_size : int
        G, Q, and records per forward pass.
    head_gradients : bool
        Whether to add the last layers' gradients.
    """
    if model.training:
        model.eval()
    parts = (_measure_chunk(model, c, num_groups, bins, head_gradients) for c in chunks(records, chunk_size))
    return reduce(Signals.__add__, parts)


def chunks(records: MultimodalBatch, size: int) -> Iterator[MultimodalBatch]:
    """Yield the records in order, at most `size` at a time; an empty batch is one chunk."""
    if len(records) <= size:
        yield records
        return
    for index in torch.split(torch.arange(len(records), device=records.labels.device), size):
        yield records.select(index)


def _measure_chunk(
    model: MultimodalModel, batch: MultimodalBatch, num_groups: int, bins: int, head_gradients: bool
) -> Signals:
    embeddings = model.encode(batch)
    everyone = torch.ones_like(batch.labels, dtype=torch.bool)
    scores = [model.fusion(embeddings, batch.present), *model.unimodal(embeddings)]
    masks = [everyone, *batch.present.unbind(1)]
    parts = []
    for own, mask in zip(scores, masks, strict=True):
        parts.append(head_signals(own.logits[mask], batch.labels[mask], batch.groups[mask], num_groups, bins))
    counts, losses, histograms = (np.stack(part) for part in zip(*parts, strict=True))
    if not np.isfinite(losses).all():
        raise InconsistentUpdates(
            "the global model must give finite scores, got NaN or infinity; lower the learning rate"
        )
    gradients = None
    if head_gradients:
        layers = [_last_layer(s, batch.labels, k) for s, k in zip(scores, masks, strict=True)]
        if len(shapes := {layer.shape for layer in layers}) > 1:
            raise ShapeError(
                f"the last layers of fusion and heads must have one shape for a direction term, got {shapes};"
                " give them one feature width or set `method.direction: 0`"
            )
        gradients = np.stack(layers)
    return Signals(counts, losses, histograms, gradients)


def _last_layer(scores: Scores, labels: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """Return sum_i (p_i - e_y) [q_i; 1]^T [C, P + 1], the gradient of the summed cross-entropy."""
    residual = torch.softmax(scores.logits, 1).double()
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    residual = residual * mask[:, None]
    inputs = torch.cat([scores.features.double(), torch.ones_like(residual[:, :1])], 1)
    return (residual.T @ inputs).cpu().numpy()
