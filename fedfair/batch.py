"""MultimodalBatch: the records of one step, with what is missing said explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MultimodalBatch:
    """B records of M modalities.

    Attributes
    ----------
    modalities : Mapping[str, Tensor]
        One tensor [B, ...] per modality, in the schema's order. Where a record lacks the
        modality its values are zeros and `present` says so.
    present : Tensor
        Bool [B, M]: which record has which modality.
    labels : Tensor
        Int64 [B] in ``0 .. C-1``.
    groups : Tensor
        Int64 [B] in ``0 .. G-1``: the value of the modulated attribute, or the cell where sums are kept by
        cell.
    cells : Tensor | None
        Int64 [B]: each record's index into the product of all attributes, see `fedfair.data.encode.cells`.
        Only a model that scores a record by its group reads them; None where nobody knows them.
    precomputed : frozenset[str]
        Modalities whose values are what a `fedfair.models.FrozenEncoder` made of the inputs.
    """

    modalities: Mapping[str, Tensor]
    present: Tensor
    labels: Tensor
    groups: Tensor
    cells: Tensor | None = None
    precomputed: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Return B."""
        return int(self.labels.shape[0])

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        cells = [] if self.cells is None else [self.cells]
        return [*self.modalities.values(), self.present, self.labels, self.groups, *cells]

    def select(self, index: Tensor) -> MultimodalBatch:
        """Return the records at `index` (int64 or bool mask), in that order."""
        return MultimodalBatch(
            {name: value[index] for name, value in self.modalities.items()},
            self.present[index],
            self.labels[index],
            self.groups[index],
            None if self.cells is None else self.cells[index],
            self.precomputed,
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> MultimodalBatch:
        """Return the batch on `device`, its floating-point inputs in `dtype`."""
        return MultimodalBatch(
            {
                name: value.to(device, dtype if value.is_floating_point() else value.dtype)
                for name, value in self.modalities.items()
            },
            self.present.to(device),
            self.labels.to(device),
            self.groups.to(device),
            None if self.cells is None else self.cells.to(device),
            self.precomputed,
        )
