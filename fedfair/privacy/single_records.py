"""Gradients of single records, one after the other, by plain autograd: slow, and right for any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import Schema
from fedfair.errors import PrivacyError
from fedfair.gradients import summed_loss
from fedfair.models import MultimodalModel
from fedfair.paths import Scales
from fedfair.privacy.isolation import made_up_batch

ByRecord = Callable[[MultimodalModel, ParameterBlocks, MultimodalBatch, Scales], Mapping[str, Tensor]]
"""Returns every record's gradient {block: [B, P_b]}."""


def record_loss(model: MultimodalModel, batch: MultimodalBatch, scales: Scales) -> Tensor:
    """Return sum_i (K_0g l_i + sum_m k_mg u_mi), where u_m counts for records that have modality m.

    Parameters
    ----------
    model : MultimodalModel
        In whatever mode.
    batch : MultimodalBatch
        B > 0 records.
    scales : Scales
        K_0 and k; u reaches the encoders if live.
    """
    embeddings = model.encode(batch)
    unimodal = model.unimodal(embeddings if scales.live else [z.detach() for z in embeddings])
    weights = scales.fused[0, batch.groups], scales.unimodal[:, batch.groups]
    return summed_loss(model.fusion(embeddings, batch.present), unimodal, batch, weights)


def single_gradients(
    model: MultimodalModel, blocks: ParameterBlocks, batch: MultimodalBatch, scales: Scales
) -> dict[str, Tensor]:
    """Return each record's gradient of `record_loss` {block: [B, P_b]}, of blocks that have parameters."""
    parameters = all_parameters(blocks)
    rows = []
    for i in range(len(batch)):
        loss = record_loss(model, batch.select(torch.tensor([i], device=batch.labels.device)), scales)
        rows.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
    return by_block(blocks, [torch.stack(own) for own in zip(*rows, strict=True)])


def all_parameters(blocks: ParameterBlocks) -> list[nn.Parameter]:
    """Return the parameters of all blocks, in order."""
    return [p for own in blocks.parameters.values() for p in own]


def by_block(blocks: ParameterBlocks, samples: Iterable[Tensor]) -> dict[str, Tensor]:
    """Join the gradients [B, ...] of `all_parameters`, B > 0, to {block: [B, P_b]}."""
    rest = iter(samples)
    return {
        name: torch.cat([next(rest).flatten(1) for _ in own], 1)
        for name, own in blocks.parameters.items()
        if own
    }


def check_gradients(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    schema: Schema,
    like: Tensor,
    groups: int,
    by_record: ByRecord,
    hint: str,
) -> None:
    """Refuse gradients by record that are not those of single records, on a few made-up ones.

    They are all taken together, and again without each modality: a layer that is left out where
    nobody has the modality may confuse what `by_record` does.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        The model, in the mode in which it trains, and its blocks; unchanged.
    schema : Schema
        Gives the inputs' shapes.
    like : Tensor
        Device and dtype.
    groups : int
        G.
    by_record : ByRecord
        What is checked.
    hint : str
        What to do about a difference.

    Raises
    ------
    PrivacyError
        Naming the block and the difference.
    """
    full = made_up_batch(schema, like, groups)
    names = list(full.modalities)
    batches = [full, *(_without(full, name) for name in names if len(names) > 1)]
    scales = Scales(like.new_ones(len(names) + 1, groups), like.new_ones(len(names), groups), True)
    with _dropout_off(model):
        for batch in batches:
            wanted = single_gradients(model, blocks, batch, scales)
            _compare(wanted, by_record(model, blocks, batch, scales), hint)


def _compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], hint: str) -> None:
    for name, own in wanted.items():
        # Sums in another order round differently: a few hundred units in the last place.
        slack = 1e3 * torch.finfo(own.dtype).eps * (1 + float(own.abs().max()))
        difference = float((own - found[name]).abs().max())
        if not difference <= slack:
            raise PrivacyError(
                f"gradients by record of block `{name}` must be those of single records, got a difference of "
                f"{difference:.2g}; {hint}"
            )


def _without(batch: MultimodalBatch, modality: str) -> MultimodalBatch:
    """Return the records as they are without a modality."""
    present = batch.present.clone()
    present[:, list(batch.modalities).index(modality)] = False
    inputs = {**batch.modalities, modality: torch.zeros_like(batch.modalities[modality])}
    return replace(batch, modalities=inputs, present=present)


@contextmanager
def _dropout_off(model: nn.Module) -> Iterator[None]:
    """Switch dropout layers off, which would draw other masks for the same record."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
