"""Gradients by record: what one patient adds to every block, for clipping.

One record is differentiated by `torch.func.grad` and all of them at once by `torch.func.vmap`, so
records cannot mix and the model needs no layers of a special kind: shared encoders, slices of one
record, attention over modalities and parameters outside layers are differentiated like all else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.errors import ConfigError
from fedfair.models import MultimodalModel, Scores
from fedfair.paths import Scales
from fedfair.terms import PreparedTerms


@torch.no_grad()
def record_gradients(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    scales: Scales,
    terms: PreparedTerms | None,
    chunk_size: int | None = None,
) -> dict[str, Tensor]:
    """Return every record's gradient {block: [B, P_b]}, before the coefficient of its group.

    With l the fused and u_m the unimodal loss of a record that belongs to group g, t its extra
    terms, K the coefficients of l and k those of u:

        fusion     d (l + t / K_0g)
        encoder m  d (l + (k_mg u_m [if live] + t) / K_mg)
        head m     d u_m, zero without the modality

    so that sum_i K_g(i) gradient_i (k_g(i) in heads) is `fedfair.gradients.weighted_gradients`. What
    the coefficients do within a block thus stands before clipping, and what multiplies it after.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        The model, in training or evaluation mode, and its blocks; unchanged.
    batch : MultimodalBatch
        B >= 0 records; none give [0, P_b].
    scales : Scales
        Coefficients by block and group.
    terms : PreparedTerms | None
        Extra loss terms; where the model has dropout they see masks of their own.
    chunk_size : int | None
        Records differentiated at once, which bounds the memory of activations; None for all.

    Raises
    ------
    ConfigError
        If the model's code depends on the values of a record, as boolean indexing does.
    """
    if not len(batch):
        return {name: vector.new_empty(0, len(vector)) for name, vector in blocks.vectors.items()}
    record = _RecordLoss(model, blocks, scales.live, terms, batch.precomputed)
    # Closed over and not passed on: what is passed costs time for every tensor and level of mapping.
    by_record = vmap(
        lambda *own: grad(record.loss)(record.vectors, *own), randomness="different", chunk_size=chunk_size
    )
    try:
        # The other kernels of attention cannot be mapped over records.
        with sdpa_kernel(SDPBackend.MATH):
            gradients: dict[str, Tensor] = by_record(*_arguments(batch, scales))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        if "vmap" not in reason:
            raise
        raise ConfigError(
            "`model.name` must compute every record alike, without boolean indexing or branches on values, "
            f"got {reason!r}; write what is missing as a mask times zeros"
        ) from error
    # An encoder without parameters has an empty gradient; one that is not used has an expanded zero.
    return {
        name: gradients[name].contiguous() if name in gradients else vector.new_empty(len(batch), 0)
        for name, vector in blocks.vectors.items()
    }


def _arguments(batch: MultimodalBatch, scales: Scales) -> tuple[Mapping[str, Tensor] | Tensor, ...]:
    """Return each record as a batch of one, with the coefficients [M + 1] and [M] of its group."""
    return (
        {name: value[:, None] for name, value in batch.modalities.items()},
        batch.present[:, None],
        batch.labels[:, None],
        batch.groups[:, None],
        scales.fused.T[batch.groups],
        scales.unimodal.T[batch.groups],
        *(() if batch.cells is None else (batch.cells[:, None],)),
    )


class _RecordLoss(nn.Module):
    """The loss of one record as a function of the block vectors."""

    def __init__(
        self,
        model: MultimodalModel,
        blocks: ParameterBlocks,
        live: bool,
        terms: PreparedTerms | None,
        precomputed: frozenset[str],
    ) -> None:
        super().__init__()
        self.model, self.live, self.terms, self.precomputed = model, live, terms, precomputed
        self.vectors = {name: vector for name, vector in blocks.vectors.items() if len(vector)}
        self.shapes = {name: [p.shape for p in own] for name, own in blocks.parameters.items()}
        places = {id(p): (block, i) for block, own in blocks.parameters.items() for i, p in enumerate(own)}
        self.places = {name: places[id(p)] for name, p in _named_parameters(self)}

    def loss(self, vectors: Mapping[str, Tensor], *arguments: object) -> Tensor:
        """Return the scalar loss of a record."""
        views = {block: _views(vector, self.shapes[block]) for block, vector in vectors.items()}
        named = {name: views[block][i] for name, (block, i) in self.places.items()}
        loss: Tensor = functional_call(self, named, arguments, tie_weights=False)
        return loss

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor,
        label: Tensor,
        group: Tensor,
        fused_scale: Tensor,
        unimodal_scale: Tensor,
        cells: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, scaled as it enters each block."""
        record = MultimodalBatch(inputs, present, label, group, cells, self.precomputed)
        embeddings = self.model.encode(record)
        fused = self.model.fusion(embeddings, present)
        entries = [z.detach() for z in embeddings]
        if self.live:
            entries = _scaled(embeddings, unimodal_scale / fused_scale[1:])
        loss = _cross_entropies(fused, self.model.unimodal(entries), record)
        if self.terms is None:
            return loss
        entries = _scaled(embeddings, fused_scale[0] / fused_scale[1:])
        again = fused if self.terms.direction is None else self.model.fusion(entries, present)
        heads = [] if self.terms.fairness is None else self._frozen_heads(entries)
        return loss + self.terms.loss(again, heads, record) / fused_scale[0]

    def _frozen_heads(self, entries: Sequence[Tensor]) -> list[Scores]:
        """Return the unimodal scores, which no gradient reaches through the heads' own parameters."""
        heads = [self.model.heads[name] for name in self.model.modalities]
        return [
            functional_call(
                head, {name: p.detach() for name, p in _named_parameters(head)}, (entry,), tie_weights=False
            )
            for head, entry in zip(heads, entries, strict=True)
        ]


def _named_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each place that holds a parameter once.

    One that two modules share has two places. A module with two names has one: replaced under
    both, the second replacement would be what is found, and put back, as its original.
    """
    for prefix, part in module.named_modules():
        yield from part.named_parameters(prefix, recurse=False, remove_duplicate=False)


def _views(vector: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the parameters in a block's vector; one split, as its derivative is one concatenation."""
    parts = torch.split(vector, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _scaled(embeddings: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
    """Return the same embeddings, their gradients multiplied by the factors [M]."""
    constants = [z.detach() for z in embeddings]
    return [c + (z - c) * f for z, c, f in zip(embeddings, constants, factors, strict=True)]


def _cross_entropies(fused: Scores, unimodal: Sequence[Scores], record: MultimodalBatch) -> Tensor:
    """Return the sum of a record's cross entropies, those of missing modalities left out."""
    logits = torch.cat([fused.logits, *(scores.logits for scores in unimodal)])
    weights = torch.cat([torch.ones_like(record.present[:, :1]), record.present], 1)[0]
    own = logits.gather(1, record.labels.expand(len(logits))[:, None])[:, 0]
    # Written out and for all heads at once: `cross_entropy` takes a tenth of a small model's step.
    return ((logits.logsumexp(1) - own) * weights).sum()
