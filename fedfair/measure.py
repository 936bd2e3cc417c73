"""Measuring a model: the signals of a site's records, a forward pass and no more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.errors import ConfigError, InconsistentUpdates, ShapeError
from fedfair.loading import batches
from fedfair.models import MultimodalModel, Scores
from fedfair.signals import Signals, head_signals
from fedfair.stored import StoredBatch

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RecordBounds:
    """The most that one record may add to a sum, whatever its values.

    Attributes
    ----------
    loss : float
        To the losses of each head, in nats; positive.
    gradient : float | None
        Norm of what it adds to the head gradients, over all heads together; positive. None if
        head gradients are not measured.
    """

    loss: float
    gradient: float | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that bound nothing."""
        for name, value in (("loss", self.loss), ("gradient", self.gradient)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"`bounds.{name}` must be positive and finite, got {value!r}")


@torch.no_grad()
def measure(
    model: MultimodalModel,
    records: MultimodalBatch,
    num_groups: int,
    bins: int,
    chunk_size: int,
    head_gradients: bool = False,
    bounds: RecordBounds | None = None,
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
    bounds : RecordBounds | None
        Clip what each record adds. No value of a record is then refused, since a refusal would tell
        of it: one without a finite score still counts, in the first bins and with the largest loss,
        and a gradient that is not finite is left out.

    Raises
    ------
    InconsistentUpdates
        If a score is not finite and there are no `bounds`.
    ShapeError
        If the last layers differ in shape and `head_gradients` are asked for.
    ConfigError
        If `head_gradients` are asked for under `bounds` without one for them.
    """
    if head_gradients and bounds is not None and bounds.gradient is None:
        raise ConfigError("`bounds.gradient` must be given to measure head gradients, got None")
    if model.training:
        model.eval()
    parts = (
        _measure_chunk(model, c, num_groups, bins, head_gradients, bounds)
        for c in chunks(records, chunk_size)
    )
    return reduce(Signals.__add__, parts)


def chunks(records: MultimodalBatch, size: int) -> Iterator[MultimodalBatch]:
    """Yield the records in order, at most `size` at a time; an empty batch is one chunk."""
    if len(records) <= size and not isinstance(records, StoredBatch):
        yield records
        return
    yield from batches(records, torch.arange(len(records)), size)


def _measure_chunk(
    model: MultimodalModel,
    batch: MultimodalBatch,
    num_groups: int,
    bins: int,
    head_gradients: bool,
    bounds: RecordBounds | None,
) -> Signals:
    embeddings = model.encode(batch)
    everyone = torch.ones_like(batch.labels, dtype=torch.bool)
    scores = [model.fusion(embeddings, batch.present), *model.unimodal(embeddings)]
    masks = [everyone, *batch.present.unbind(1)]
    most = None if bounds is None else bounds.loss
    parts = []
    for own, mask in zip(scores, masks, strict=True):
        parts.append(
            head_signals(own.logits[mask], batch.labels[mask], batch.groups[mask], num_groups, bins, most)
        )
    counts, losses, histograms = (np.stack(part) for part in zip(*parts, strict=True))
    if not np.isfinite(losses).all():
        raise InconsistentUpdates(
            "the global model must give finite scores, got NaN or infinity; lower the learning rate"
        )
    gradients = None
    if head_gradients:
        layers = [_last_layer(s, batch.labels, k) for s, k in zip(scores, masks, strict=True)]
        if bounds is not None and bounds.gradient is not None:
            layers = _clipped(layers, bounds.gradient)
        gradients = _summed(layers)
    return Signals(counts, losses, histograms, gradients)


def _last_layer(scores: Scores, labels: Tensor, mask: Tensor) -> Factors:
    """Return p_i - e_y [B, C], zero where masked, and [q_i; 1] [B, P + 1].

    Their outer product is the gradient of a record's cross-entropy with respect to the last layer.
    """
    residual = torch.softmax(scores.logits, 1).double()
    residual[torch.arange(len(labels), device=labels.device), labels] -= 1.0
    inputs = torch.cat([scores.features.double(), torch.ones_like(residual[:, :1])], 1)
    return residual * mask[:, None], inputs


def _clipped(layers: Sequence[Factors], bound: float) -> list[Factors]:
    """Scale each record so that its gradient over all layers has norm `bound` at most.

    A record with a value that is not finite becomes zero in all of them.
    """
    squares = [residual.square().sum(1) * inputs.square().sum(1) for residual, inputs in layers]
    norm = torch.stack(squares).sum(0).sqrt()
    known, scale = torch.isfinite(norm)[:, None], (bound / norm).clamp(max=1.0)[:, None]
    # Chosen, not multiplied: zero times infinity is no number.
    return [
        (torch.where(known, residual * scale, 0.0), torch.where(known, inputs, 0.0))
        for residual, inputs in layers
    ]


def _summed(layers: Sequence[Factors]) -> NDArray[np.float64]:
    """Return sum_i (p_i - e_y) [q_i; 1]^T of each layer, [H, C, P + 1]."""
    gradients = [(residual.T @ inputs).cpu().numpy() for residual, inputs in layers]
    if len(shapes := {gradient.shape for gradient in gradients}) > 1:
        raise ShapeError(
            f"the last layers of fusion and heads must have one shape for a direction term, got {shapes};"
            " give them one feature width or set `method.direction: 0`"
        )
    return np.stack(gradients)
