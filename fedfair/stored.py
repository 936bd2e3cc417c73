"""Images that stay on the host at 8 bits, and become numbers on the device when a batch reads them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.data.pixels import FULL, Pixels, spread


@dataclass(frozen=True)
class Stored:
    """One modality's images, and what they become.

    Attributes
    ----------
    pixels : Pixels
        n records, in memory or on the disk.
    device, dtype : torch.device, torch.dtype
        Of what is read.
    """

    pixels: Pixels
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    def read(self, index: Tensor) -> Tensor:
        """Return code / 255, zeros for what is missing, [B, *shape], of the records at `index` on the CPU."""
        chosen = self.pixels[index.numpy()]
        # From page-locked memory the copy runs beside the computation; the allocator keeps it until then.
        host = torch.empty(chosen.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        chosen.read_into(host.numpy())
        if not chosen.seen.all():
            host *= torch.from_numpy(spread(chosen.seen, host.ndim))
        codes = host.to(self.device, non_blocking=True)
        # Divided by a tensor: a GPU multiplies by the reciprocal of a number, which rounds otherwise.
        full = torch.full((), float(FULL), dtype=torch.float32, device=self.device)
        return codes.to(torch.float32).div_(full).to(self.dtype)


@dataclass(frozen=True)
class StoredBatch(MultimodalBatch):
    """Records some of whose modalities are read by `select` only; no model can take them as they are.

    Attributes
    ----------
    modalities : Mapping[str, Tensor]
        Those in memory.
    stored : Mapping[str, Stored]
        The others.
    order : tuple[str, ...]
        All names, in the schema's order.
    """

    stored: Mapping[str, Stored] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    @property
    def bytes_each(self) -> int:
        """Return what reading one record takes off the disk or out of memory."""
        return sum(math.prod(own.pixels.shape[1:]) for own in self.stored.values())

    def select(self, index: Tensor) -> MultimodalBatch:
        """Return the records at `index`, in that order, with all values; an index on the CPU is best."""
        host = index.cpu()
        near = super().select(host.to(self.labels.device, non_blocking=True))
        found = {**near.modalities, **{name: own.read(host) for name, own in self.stored.items()}}
        return dataclasses.replace(near, modalities={name: found[name] for name in self.order})

    def to(self, device: torch.device, dtype: torch.dtype) -> StoredBatch:
        """Return the records with the device and type that what is read goes to."""
        near = super().to(device, dtype)
        stored = {name: Stored(own.pixels, device, dtype) for name, own in self.stored.items()}
        own = (near.modalities, near.present, near.labels, near.groups, near.cells, near.precomputed)
        return StoredBatch(*own, stored, self.order)
