"""The model interface: encoders, unimodal heads and a fusion network, for any number of modalities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fedfair.batch import MultimodalBatch
from fedfair.errors import ShapeError


class Scores(NamedTuple):
    """What a head returns: `logits` [B, C] and the `features` [B, P] its last layer read."""

    logits: Tensor
    features: Tensor


class Head(nn.Module):
    """A body followed by one linear layer, whose gradient the direction term needs.

    Parameters
    ----------
    body : nn.Module
        Maps an embedding to features [B, P].
    classifier : nn.Linear
        Maps features to logits [B, C].
    """

    def __init__(self, body: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.classifier = classifier

    def forward(self, embedding: Tensor) -> Scores:
        """Return the scores of embeddings [B, p]."""
        features = self.body(embedding)
        return Scores(self.classifier(features), features)


class Fusion(nn.Module, ABC):
    """Joins the embeddings of the modalities; subclasses write `join`.

    Parameters
    ----------
    classifier : nn.Linear
        Maps the joined features [B, P] to logits [B, C].
    """

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.classifier = classifier

    @abstractmethod
    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        """Return features [B, P] from M embeddings [B, p] and the mask `present` [B, M]."""

    def forward(self, embeddings: Sequence[Tensor], present: Tensor) -> Scores:
        """Return the fused scores."""
        features = self.join(embeddings, present)
        return Scores(self.classifier(features), features)


class CellEncoder(nn.Module):
    """An encoder that reads groups: its forward takes the cells [B] of a batch after the inputs.

    Parameters
    ----------
    attributes : Collection[str]
        Those whose groups it reads, without which a record has no embedding.
    """

    def __init__(self, attributes: Collection[str]) -> None:
        super().__init__()
        self.attributes = frozenset(attributes)


class FrozenEncoder(nn.Module, ABC):
    """An encoder whose first part learns nothing, so that it need see a record once in a run."""

    @abstractmethod
    def precompute(self, inputs: Tensor) -> Tensor:
        """Return what the first part makes of inputs [B, ...], each record by itself and never at random."""

    @abstractmethod
    def embed(self, precomputed: Tensor) -> Tensor:
        """Return embeddings [B, p] of what was precomputed."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings [B, p] of inputs."""
        return self.embed(self.precompute(inputs))


class MultimodalModel(nn.Module):
    """One encoder and one head per modality, and a fusion network.

    The embedding of a missing modality is set to zero, so it sends no gradient into its encoder;
    the mask goes on to the fusion network.

    Parameters
    ----------
    encoders : Mapping[str, nn.Module]
        Per modality, maps inputs [B, ...] to an embedding [B, p]; a `CellEncoder` also reads cells [B].
    heads : Mapping[str, Head]
        Per modality, maps the embedding to unimodal scores.
    fusion : Fusion
        Maps all embeddings and the mask to the fused scores.

    Raises
    ------
    ShapeError
        If encoders and heads do not name the same modalities.

    Attributes
    ----------
    mixed_precision : bool
        Whether encoders compute products in bfloat16; parameters, gradients, heads and fusion stay float32.
    """

    encoders: nn.ModuleDict
    heads: nn.ModuleDict
    fusion: Fusion

    def __init__(self, encoders: Mapping[str, nn.Module], heads: Mapping[str, Head], fusion: Fusion) -> None:
        super().__init__()
        if list(encoders) != list(heads):
            raise ShapeError(
                f"`heads` must name the modalities of `encoders`, got {list(heads)} and {list(encoders)}"
            )
        self.modalities = tuple(encoders)
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict(heads)
        self.fusion = fusion
        self.mixed_precision = False

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes whose groups some encoder reads; most models read none."""
        readers = (e for e in self.encoders.values() if isinstance(e, CellEncoder))
        return frozenset[str]().union(*(reader.attributes for reader in readers))

    def encode(self, batch: MultimodalBatch) -> list[Tensor]:
        """Return M embeddings [B, p], zero where the modality is missing.

        Raises
        ------
        ShapeError
            If an encoder reads groups and the batch has no cells.
        """
        return [
            self._embedded(name, batch) * batch.present[:, m, None] for m, name in enumerate(self.modalities)
        ]

    def precompute(self, name: str, batch: MultimodalBatch) -> Tensor:
        """Return what the `FrozenEncoder` of a modality makes of B records, zeros where it is missing."""
        encoder, inputs = cast(FrozenEncoder, self.encoders[name]), batch.modalities[name]
        found = self._in_own_type(batch, lambda: encoder.precompute(inputs))
        present = batch.present[:, self.modalities.index(name)]
        return found * present.view(-1, *[1] * (found.ndim - 1))

    def _embedded(self, name: str, batch: MultimodalBatch) -> Tensor:
        return self._in_own_type(batch, lambda: self._embedding(name, batch))

    def _in_own_type(self, batch: MultimodalBatch, compute: Callable[[], Tensor]) -> Tensor:
        """Return a result in the model's own type, whatever type it was computed in."""
        if not self.mixed_precision:
            return compute()
        # No cache: it would hold the weights of one functional call for the next.
        with torch.autocast(batch.labels.device.type, torch.bfloat16, cache_enabled=False):
            return compute().float()

    def _embedding(self, name: str, batch: MultimodalBatch) -> Tensor:
        encoder, inputs = self.encoders[name], batch.modalities[name]
        embedding: Tensor
        if name in batch.precomputed:
            return cast(FrozenEncoder, encoder).embed(inputs)
        if isinstance(encoder, CellEncoder):
            if batch.cells is None:
                raise ShapeError(
                    f"`cells` of the batch must be [{len(batch)}] for encoder {name}, which reads "
                    f"{sorted(encoder.attributes)}, got None; take them from `fedfair.data.encode.cells`"
                )
            embedding = encoder(inputs, batch.cells)
        else:
            embedding = encoder(inputs)
        return embedding

    def unimodal(self, embeddings: Sequence[Tensor]) -> list[Scores]:
        """Return the scores of each unimodal head; they mean nothing where the modality is missing."""
        return [self.heads[name](z) for name, z in zip(self.modalities, embeddings, strict=True)]

    def forward(self, batch: MultimodalBatch) -> Tensor:
        """Return the fused logits [B, C]."""
        scores: Scores = self.fusion(self.encode(batch), batch.present)
        return scores.logits
