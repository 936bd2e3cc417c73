"""Federated averaging reads no signal."""

from __future__ import annotations

import numpy as np
import pytest

from fedfair.modulation import FedAvg
from tests.unit.modulation.cases import site_signals


@pytest.mark.parametrize("seed", range(3))
def test_everything_is_one_whatever_the_signals(seed: int) -> None:
    result = FedAvg().modulate(site_signals(seed, modalities=2, groups=4), {"anything": np.ones(1)})
    assert (result.coefficients.fused == 1).all()
    assert result.coefficients.fused.shape == (3, 4)
    assert (result.coefficients.unimodal == 1).all()
    assert not result.coefficients.live, "heads are probes"
    assert not result.terms
    assert not result.memory


def test_it_asks_for_nothing() -> None:
    assert (FedAvg.modulates, FedAvg.live, FedAvg.needs_head_gradients) == (False, False, False)
