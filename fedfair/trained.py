"""A trained model with all it needs to score new records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.config import load
from fedfair.data.encode import to_batch
from fedfair.data.schema import Schema, SiteRecords
from fedfair.errors import RunError
from fedfair.loading import batches
from fedfair.models import MultimodalModel, build_model
from fedfair.networks import with_networks
from fedfair.record import MODEL, MOMENTS

AT_ONCE = 64
"""Records per forward pass."""


@dataclass(frozen=True)
class TrainedModel:
    """The global model of one run.

    Attributes
    ----------
    model : MultimodalModel
        In evaluation mode, on the CPU.
    schema : Schema
        The schema of the data it was trained on.
    moments : Mapping[str, NDArray]
        [2, columns] pooled mean and standard deviation per table modality.
    """

    model: MultimodalModel
    schema: Schema
    moments: Mapping[str, NDArray[np.float64]]

    @torch.no_grad()
    def predict(self, records: SiteRecords) -> NDArray[np.float64]:
        """Return the fused class probabilities [n, C] of raw records, whatever they lack.

        Images at 8 bits become numbers a few records at a time. Labels are not read, and of attributes those
        alone that `model.attributes` names.

        Raises
        ------
        ShapeError, DataError
            If the records do not fit the schema, or lack an attribute that the model reads.
        """
        kind = next(self.model.parameters())
        first = np.zeros(len(records), np.int64)
        batch = to_batch(self._told(records, first), self.schema, self.moments, first)
        parts = batches(batch.to(kind.device, kind.dtype), torch.arange(len(records)), AT_ONCE)
        scores = torch.cat([self.model(part).double() for part in parts])
        probabilities: NDArray[np.float64] = torch.softmax(scores, 1).numpy()
        return probabilities

    def _told(self, records: SiteRecords, first: NDArray[np.int64]) -> SiteRecords:
        """Return the records with what the model reads; of the rest, all have the first class and groups."""
        read = self.model.attributes
        attributes = {name: first for name in self.schema.attributes if name not in read}
        attributes |= {name: own for name, own in records.attributes.items() if name in read}
        return replace(records, labels=first, attributes=attributes)


def load_trained(folder: Path, schema: Schema, weights: Path | None = None) -> TrainedModel:
    """Return the model of a finished run, such as ``runs/heart/001/seed-0/dual_mimo``.

    Parameters
    ----------
    folder : Path
        A run with config.yaml, model.pt and moments.npz.
    schema : Schema
        The schema of its data set: ``open_dataset(...).schema``.
    weights : Path | None
        The folder of stored networks in which the run's are, if it names some; None: the working directory.

    Raises
    ------
    RunError
        If the folder holds no finished run, or one of another schema.
    """
    for name in (MODEL, MOMENTS, "config.yaml"):
        if not (folder / name).is_file():
            raise RunError(f"`folder` must hold a finished run with {name}, got {folder}")
    config = with_networks(load(folder / "config.yaml"), weights)
    model = build_model(config.model.name, schema, config.model.options, config.seed)
    state = torch.load(folder / MODEL, map_location="cpu", weights_only=True)
    own = {name: value.shape for name, value in model.state_dict().items()}
    if own != {name: value.shape for name, value in state.items()}:
        raise RunError(
            f"`schema` must be that of the data the run was trained on, its model differs: {folder}"
        )
    model.to(next(iter(state.values())).dtype).load_state_dict(state)
    with np.load(folder / MOMENTS) as stored:
        moments = {name: stored[name] for name in stored.files}
    return TrainedModel(model.eval(), schema, moments)
