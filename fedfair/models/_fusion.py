"""Fusion networks that accept any subset of the modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedfair.models._base import Fusion
from fedfair.models._masks import masked_softmax


class LearnedConstant(nn.Module):
    """A learned array, zero at first, times a factor per record.

    It is a layer, and not a parameter of the network around it, because Opacus differentiates by
    record through layers with one input only.

    Parameters
    ----------
    *shape : int
        Of the array.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, factors: Tensor) -> Tensor:
        """Return [B, *shape] from the factors [B, 1, ...], which have as many axes."""
        return factors * self.weight


class ConcatFusion(Fusion):
    """Concatenate the embeddings, a learned token standing in for a missing one, then a hidden layer.

    Parameters
    ----------
    num_modalities, embedding_dim : int
        M and p.
    feature_dim : int
        P, the width of the hidden layer.
    num_classes : int
        C.
    """

    def __init__(self, num_modalities: int, embedding_dim: int, feature_dim: int, num_classes: int) -> None:
        super().__init__(nn.Linear(feature_dim, num_classes))
        self.missing = nn.ModuleList(LearnedConstant(embedding_dim) for _ in range(num_modalities))
        self.body = nn.Sequential(nn.Linear(num_modalities * embedding_dim, feature_dim), nn.ReLU())

    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        """Return features [B, P]."""
        absent = (~present).to(embeddings[0].dtype)
        filled = [z + self.missing[m](absent[:, m, None]) for m, z in enumerate(embeddings)]
        joined: Tensor = self.body(torch.cat(filled, dim=1))
        return joined


class AttentionFusion(Fusion):
    """Softmax attention over the modalities that are present, whatever their order.

    Each embedding plus its modality's learned position gives a value and a score; a missing
    modality gets score minus infinity. A record without any modality attends to nothing (zeros).

    Parameters
    ----------
    num_modalities, embedding_dim, feature_dim, num_classes : int
        M, p, P and C.
    """

    def __init__(self, num_modalities: int, embedding_dim: int, feature_dim: int, num_classes: int) -> None:
        super().__init__(nn.Linear(feature_dim, num_classes))
        self.position = LearnedConstant(num_modalities, embedding_dim)
        self.score = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.Tanh(), nn.Linear(embedding_dim, 1)
        )
        self.value = nn.Sequential(nn.Linear(embedding_dim, feature_dim), nn.ReLU())

    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        """Return features [B, P]."""
        ones = embeddings[0].new_ones(len(present), 1, 1)
        tokens = torch.stack(list(embeddings), dim=1) + self.position(ones)
        attention = masked_softmax(self.score(tokens)[..., 0], present)
        attended: Tensor = (attention[..., None] * self.value(tokens)).sum(dim=1)
        return attended
