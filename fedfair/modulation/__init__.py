"""Modulation: pooled signals in, the coefficient matrix K[block, group] out. One method, one file."""

from __future__ import annotations

from collections.abc import Mapping

from fedfair.modulation._base import Memory, Method, Modulation
from fedfair.modulation._dual_mimo import DualMimo
from fedfair.modulation._fedavg import FedAvg
from fedfair.modulation._mimo import Mimo
from fedfair.modulation._multifair import MultiFair

__all__ = ["METHODS", "DualMimo", "FedAvg", "Memory", "Method", "Mimo", "Modulation", "MultiFair"]

METHODS: Mapping[str, type[Method]] = {method.name: method for method in (FedAvg, MultiFair, Mimo, DualMimo)}
