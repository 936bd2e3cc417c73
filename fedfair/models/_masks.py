"""Attention over those parts of a record that it has."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return softmax over the last axis where `mask` holds, zeros elsewhere; nowhere gives zeros only."""
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    # A row of minus infinity only would turn into NaN.
    return weights.masked_fill(~mask, 0.0)
