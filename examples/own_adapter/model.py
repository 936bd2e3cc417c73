"""A small model for the drawings: own encoders, heads and fusion, joined by `MultimodalModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedfair.data.schema import Schema
from fedfair.models import Fusion, Head, MultimodalModel


class MeanFusion(Fusion):
    """The mean of the embeddings that a record has, then a hidden layer."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(nn.Linear(width, classes))
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        """Return features [B, width]; the embedding of a missing modality is zero already."""
        count = present.sum(1, keepdim=True).clamp_min(1)
        features: Tensor = self.body(torch.stack(list(embeddings)).sum(0) / count)
        return features


def small_model(schema: Schema, width: int = 16) -> MultimodalModel:
    """Return the model; keyword arguments come from `model.options`."""
    (columns,) = schema.modalities["table"].shape
    image = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()]
    encoders = {
        "image": nn.Sequential(*image, nn.Linear(8 * 4 * 4, width)),
        "table": nn.Sequential(nn.Linear(columns, width), nn.ReLU()),
    }
    classes = len(schema.classes)
    heads = {name: Head(nn.Linear(width, width), nn.Linear(width, classes)) for name in encoders}
    return MultimodalModel(encoders, heads, MeanFusion(width, classes))
