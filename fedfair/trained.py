"""A trained model with all it needs to score new records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.batch import MultimodalBatch
from fedfair.config import load
from fedfair.data.encode import cells, encode
from fedfair.data.schema import Schema, SiteRecords
from fedfair.errors import RunError
from fedfair.models import MultimodalModel, build_model
from fedfair.networks import with_networks
from fedfair.record import MODEL, MOMENTS


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

        Labels are not read, and of attributes those alone that `model.attributes` names.

        Raises
        ------
        ShapeError, DataError
            If the records do not fit the schema, or lack an attribute that the model reads.
        """
        inputs, present = encode(records, self.schema, self.moments)
        kind = next(self.model.parameters())
        nobody, own = torch.zeros(len(records), dtype=torch.int64), torch.from_numpy(self._cells(records))
        batch = MultimodalBatch(inputs, present, nobody, nobody, own).to(kind.device, kind.dtype)
        probabilities: NDArray[np.float64] = torch.softmax(self.model(batch).double(), 1).numpy()
        return probabilities

    def _cells(self, records: SiteRecords) -> NDArray[np.int64]:
        """Return the records' cells, as if all were of the first group where the model does not read it."""
        read, first = self.model.attributes, np.zeros(len(records), np.int64)
        attributes = {name: first for name in self.schema.attributes if name not in read}
        attributes |= {name: own for name, own in records.attributes.items() if name in read}
        return cells(replace(records, attributes=attributes), self.schema)


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
