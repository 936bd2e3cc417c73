"""Paths: which gradients a site keeps apart, and which coefficient multiplies each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfair.blocks import FUSION, encoder_block, head_block
from fedfair.coefficients import Coefficients


@dataclass(frozen=True)
class Path:
    """One gradient a site sends for a block.

    Attributes
    ----------
    block : str
        The block it moves.
    source : str
        ``fused`` or ``unimodal`` loss; ``terms`` for the extra loss terms; ``all`` when the site
        has already weighted everything.
    grouped : bool
        Whether it has one row per group (else one row).
    """

    block: str
    source: str
    grouped: bool

    @property
    def key(self) -> str:
        """Name on the wire."""
        return f"{self.block}:{self.source}"


@dataclass(frozen=True)
class RowPlan:
    """Which blocks send one row per group, so that the server can recombine them.

    Attributes
    ----------
    grouped : frozenset[str]
        Blocks with group rows; the others send one row, weighted at the site.
    split : bool
        Whether grouped blocks send the gradients of the unimodal losses and of the extra terms as
        rows of their own. If not, they are joined to the fused one in the ratio of the coefficients
        that came with the model: the sum is the same until the server changes those.
    """

    grouped: frozenset[str] = frozenset()
    split: bool = False

    def paths(self, modalities: Sequence[str], live: bool, terms: bool) -> tuple[Path, ...]:
        """Return the paths of a model, in wire order."""
        result = list(self._of(FUSION, ["fused"], terms))
        for name in modalities:
            sources = ["fused", "unimodal"] if self.split and live else ["fused"]
            result += self._of(encoder_block(name), sources, terms)
        for name in modalities:
            result += self._of(head_block(name), ["unimodal"], False)
        return tuple(result)

    def _of(self, block: str, sources: list[str], terms: bool) -> Iterable[Path]:
        if block not in self.grouped:
            return [Path(block, "all", False)]
        rows = [Path(block, source, True) for source in sources]
        return rows + ([Path(block, "terms", False)] if terms and self.split else [])


@dataclass(frozen=True)
class Scales:
    """Coefficients on the model's device: `fused` [M + 1, G], `unimodal` [M, G]."""

    fused: Tensor
    unimodal: Tensor
    live: bool

    @classmethod
    def build(cls, coefficients: Coefficients, like: Tensor) -> Scales:
        """Move coefficients to the device and dtype of `like`."""
        return cls(
            torch.as_tensor(coefficients.fused).to(like),
            torch.as_tensor(coefficients.unimodal).to(like),
            coefficients.live,
        )


def path_scale(path: Path, scales: Scales, modalities: Sequence[str]) -> Tensor:
    """Return the coefficients [rows] that multiply a path's rows: G of them, or a single one."""
    if not path.grouped:
        return torch.ones_like(scales.fused[0, :1])
    kind, _, modality = path.block.partition("/")
    if kind == FUSION:
        return scales.fused[0]
    m = modalities.index(modality)
    return scales.unimodal[m] if path.source == "unimodal" else scales.fused[m + 1]
