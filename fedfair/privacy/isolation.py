"""The start-up check that one record's scores and gradients do not depend on the others of its batch.

Sensitivity rests on it, and a model can break it without an error: by a mean over the batch, by
sequence-first layers, by repacking. It runs on made-up records, so it tells nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.encode import cells
from fedfair.data.schema import Schema, SiteRecords, TextModality, VolumeModality
from fedfair.errors import PrivacyError
from fedfair.models import MultimodalModel
from fedfair.seeding import torch_generator

RECORDS = 3
MADE_UP_SCALE = 0.5  # of made-up parameters: large enough that every path carries something


def made_up_batch(schema: Schema, like: Tensor, groups: int, seed: int = 0) -> MultimodalBatch:
    """Return a few records of standard normal inputs and random words.

    One lacks its first modality, another has half the words and slices. They are of as many groups of
    every attribute as they can be, the first and the last never of the same.
    """
    generator = torch_generator(seed, "isolation")
    present = torch.ones(RECORDS, len(schema.modalities), dtype=torch.bool)
    if len(schema.modalities) > 1:
        present[1, 0] = False
    inputs = {}
    for m, (name, spec) in enumerate(schema.modalities.items()):
        if isinstance(spec, TextModality):
            value = torch.randint(1, spec.vocabulary, (RECORDS, *spec.shape), generator=generator)
        else:
            value = torch.randn(RECORDS, *spec.shape, generator=generator)
        if isinstance(spec, TextModality | VolumeModality):
            value[2, (spec.shape[0] + 1) // 2 :] = 0
        inputs[name] = value * present[:, m].reshape(-1, *[1] * len(spec.shape))
    each = np.arange(RECORDS)
    attributes = {name: each.clip(max=len(own) - 1) for name, own in schema.attributes.items()}
    known = SiteRecords({}, each % len(schema.classes), attributes)
    labels, own, all_cells = map(torch.tensor, (known.labels, each % groups, cells(known, schema)))
    batch = MultimodalBatch(inputs, present, labels, own, all_cells)
    return batch.to(like.device, like.dtype)


@torch.no_grad()
def check_isolation(
    model: MultimodalModel, blocks: ParameterBlocks, schema: Schema, like: Tensor, groups: int
) -> None:
    """Refuse a model whose scores of a record change with the other records of its batch.

    It is checked as it is and with made-up parameters, since a path between records may be closed at
    the initial ones.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        In whatever mode; put in evaluation mode, its parameters put back.
    schema : Schema
        Gives the inputs' shapes.
    like : Tensor
        Device and dtype.
    groups : int
        G.

    Raises
    ------
    PrivacyError
        If they do.
    """
    model.eval()
    batch = made_up_batch(schema, like, groups)
    own = blocks.snapshot()
    try:
        _compare(model, batch)
        generator = torch_generator(0, "isolation", "parameters")
        for vector in blocks.vectors.values():
            made_up = torch.randn(vector.shape, generator=generator, dtype=torch.float64)
            vector.copy_(MADE_UP_SCALE * made_up)
        _compare(model, batch)
    finally:
        blocks.load(own)


def _compare(model: MultimodalModel, batch: MultimodalBatch) -> None:
    together = _scores(model, batch)
    index = torch.arange(RECORDS, device=batch.labels.device)
    alone = [_scores(model, batch.select(index[i : i + 1])) for i in range(RECORDS)]
    for head, whole in enumerate(together):
        # Matrix products of other sizes round differently: a few hundred units in the last place.
        slack = 1e3 * torch.finfo(whole.dtype).eps * (1 + whole.abs().max())
        difference = float((whole - torch.cat([own[head] for own in alone])).abs().max())
        if not difference <= float(slack):
            raise PrivacyError(
                "a record's scores must not depend on the others of its batch, got a change of "
                f"{difference:.2g} in head {head}; look for means over the batch, sequence-first layers or "
                "repacked records"
            )


def _scores(model: MultimodalModel, batch: MultimodalBatch) -> list[Tensor]:
    embeddings = model.encode(batch)
    # A head's scores mean nothing where its modality is missing, and are not counted there.
    masks = batch.present.unbind(1)
    own = [s.logits * mask[:, None] for s, mask in zip(model.unimodal(embeddings), masks, strict=True)]
    return [model.fusion(embeddings, batch.present).logits, *own]
