"""Encoders of which the layers behind a frozen network alone learn."""

from __future__ import annotations

from torch import Tensor, nn

from fedfair.models._base import FrozenEncoder
from fedfair.models.encoders._plain import mlp
from fedfair.models.encoders._slices import SlicePooling, seen


class FrozenVector(FrozenEncoder):
    """A frozen network's features [B, width], then layers that learn.

    Parameters
    ----------
    frozen : nn.Module
        Maps inputs [B, ...] to features [B, width].
    layers : nn.Module
        Maps features to embeddings [B, p].
    """

    def __init__(self, frozen: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.layers = layers

    def precompute(self, inputs: Tensor) -> Tensor:
        """Return features [B, width]."""
        features: Tensor = self.frozen(inputs)
        return features

    def embed(self, precomputed: Tensor) -> Tensor:
        """Return embeddings [B, p]."""
        embedding: Tensor = self.layers(precomputed)
        return embedding


class FrozenSlices(FrozenEncoder):
    """A frozen network's features of each slice, then a layer and pooling by attention that learn.

    Parameters
    ----------
    frozen : nn.Module
        Maps volumes [B, S, H, W] to features [B, S, width], each slice by itself.
    width, out_dim : int
        Of the features, and p.
    """

    def __init__(self, frozen: nn.Module, width: int, out_dim: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.project = mlp(width, (), out_dim)
        self.pool = SlicePooling(out_dim)

    def precompute(self, inputs: Tensor) -> Tensor:
        """Return features [B, S, width], zeros for slices that a record lacks."""
        features: Tensor = self.frozen(inputs) * seen(inputs)[..., None]
        return features

    def embed(self, precomputed: Tensor) -> Tensor:
        """Return embeddings [B, p] of the slices whose features are not all zeros."""
        embedding: Tensor = self.pool(self.project(precomputed), (precomputed != 0).any(-1))
        return embedding
