"""Federated averaging: every coefficient is one.

McMahan et al. 2017, arXiv 1602.05629, Algorithm 1, with each block averaged over the records
that have its modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfair.coefficients import Coefficients
from fedfair.modulation._base import Memory, Modulation
from fedfair.signals import Signals


@dataclass(frozen=True)
class FedAvg:
    """K[block, group] = 1; unimodal heads are trained as probes that change nothing else."""

    name: ClassVar[str] = "fedavg"
    modulates: ClassVar[bool] = False
    live: ClassVar[bool] = False
    needs_head_gradients: ClassVar[bool] = False

    def modulate(self, signals: Signals, memory: Memory) -> Modulation:
        """Return neutral coefficients, whatever the signals."""
        del memory
        return Modulation(Coefficients.neutral(signals.num_heads - 1, signals.num_groups))
