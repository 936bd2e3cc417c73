"""What frozen networks make of a site's records, computed once."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.errors import ConfigError
from fedfair.measure import chunks
from fedfair.models import FrozenEncoder, MultimodalModel
from fedfair.stored import StoredBatch


def precomputed(model: MultimodalModel, records: MultimodalBatch, chunk_size: int) -> MultimodalBatch:
    """Return the records with the features of frozen networks in place of those networks' inputs.

    The model scores both alike; only, it no longer runs the networks. Features stay in memory, on the
    records' device: for each record as many numbers as the network is wide, for volumes times slices.

    Parameters
    ----------
    model : MultimodalModel
        Without a `FrozenEncoder` the records are returned as they are.
    records : MultimodalBatch
        n >= 0 records.
    chunk_size : int
        Records that a network sees at once.

    Raises
    ------
    ConfigError
        If what an encoder precomputes depends on a parameter, which would then never learn.
    """
    frozen = {name: own for name, own in model.encoders.items() if isinstance(own, FrozenEncoder)}
    frozen = {name: own for name, own in frozen.items() if name not in records.precomputed}
    if not frozen:
        return records
    model.eval()
    features: dict[str, list[Tensor]] = {name: [] for name in frozen}
    for chunk in chunks(records, chunk_size):
        for name in frozen:
            found = model.precompute(name, chunk)
            if found.requires_grad:
                raise ConfigError(
                    f"`precompute` of encoder {name} must use frozen values alone, got a parameter that "
                    "learns; register what is frozen as a buffer, or use what learns in `embed`"
                )
            features[name].append(found)
    whole = {name: torch.cat(own) for name, own in features.items()}
    known = records.precomputed | frozen.keys()
    if not isinstance(records, StoredBatch):
        return dataclasses.replace(records, modalities={**records.modalities, **whole}, precomputed=known)
    stored = {name: own for name, own in records.stored.items() if name not in frozen}
    inputs = {**records.modalities, **whole}
    if stored:
        return dataclasses.replace(records, modalities=inputs, stored=stored, precomputed=known)
    inputs = {name: inputs[name] for name in records.order}
    return MultimodalBatch(inputs, records.present, records.labels, records.groups, records.cells, known)
