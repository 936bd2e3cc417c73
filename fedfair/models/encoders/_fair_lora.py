"""FairLoRA: low-rank adapters with singular values for each demographic group, Li et al. arXiv 2508.00873."""

from __future__ import annotations

from collections.abc import Collection
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor, nn

from fedfair.data.crossing import Attributes, axes
from fedfair.models._base import CellEncoder

# Groups take this way past the networks of another library, which hand their layers nothing but activations.
_CODES: ContextVar[Tensor] = ContextVar("codes")


class GroupValues(nn.Module):
    """The first half of an adapter by group, x -> diag(s_g) A x, for records passing through a `ByGroup`.

    The values are the weights [r, G] of a linear layer on one-hot groups, and no table, because Opacus
    differentiates such layers by record. They start at one, which is A alone.

    Parameters
    ----------
    first : nn.Linear
        A [r, inputs].
    groups : int
        G.
    """

    def __init__(self, first: nn.Linear, groups: int) -> None:
        super().__init__()
        self.first = first
        # Without its random start, whose draws would change those of all layers behind.
        self.values = nn.Linear(groups, first.out_features, bias=False, device="meta").to_empty(device="cpu")
        nn.init.ones_(self.values.weight)

    @property
    def weight(self) -> Tensor:
        """A, whose dtype the adapter library asks for."""
        return self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [n, tokens, r] from [n, tokens, inputs], n / B rows in turn from each of B records."""
        values: Tensor = self.values(_CODES.get())
        rows = len(inputs) // len(values)
        hidden: Tensor = self.first(inputs) * values.repeat_interleave(rows, 0)[:, None]
        return hidden


class ByGroup(CellEncoder):
    """An encoder whose adapters hold values by group, told the group of each record.

    Parameters
    ----------
    encoder : nn.Module
        Some of its layers are `GroupValues`.
    codes : Tensor
        [cells, G], what `group_codes` returned.
    attributes : Collection[str]
        Those that tell the group.
    """

    codes: Tensor

    def __init__(self, encoder: nn.Module, codes: Tensor, attributes: Collection[str]) -> None:
        super().__init__(attributes)
        self.encoder = encoder
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, inputs: Tensor, cells: Tensor) -> Tensor:
        """Return embeddings [B, p] of inputs [B, ...] of records in these cells [B]."""
        token = _CODES.set(self.codes[cells])
        try:
            embedding: Tensor = self.encoder(inputs)
        finally:
            _CODES.reset(token)
        return embedding


def group_codes(attributes: Attributes, name: str) -> Tensor:
    """Return the group of an attribute or crossing to which each cell belongs, one-hot [cells, G].

    Raises
    ------
    ConfigError
        If a part of the name is no attribute, or stands twice.
    """
    chosen = axes(attributes, name)
    sizes = [len(groups) for groups in attributes.values()]
    crossed = [sizes[axis] for axis in chosen]
    places = np.indices(sizes).reshape(len(sizes), -1)
    groups = np.ravel_multi_index(tuple(places[list(chosen)]), crossed)
    return torch.eye(int(np.prod(crossed)))[torch.from_numpy(groups)]
