"""Every method's answer to one fixed set of signals, frozen.

Two modalities, two groups of 16 and 8 records (half of them positive), four bins. What a change of a method
does to its numbers shows here first. Six decimals are written down, hence the tolerance of 5e-7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest

from fedfair.modulation import METHODS, DualMimo, FedAvg, Memory, Method, Mimo, MultiFair
from fedfair.signals import Signals

# By head and group: negatives, then positives, by bin.
HISTOGRAMS = np.array(
    [
        [[[6, 2, 0, 0], [0, 2, 6, 0]], [[0, 4, 0, 0], [0, 2, 2, 0]]],
        [[[6, 2, 0, 0], [0, 2, 6, 0]], [[2, 2, 0, 0], [2, 0, 2, 0]]],
        [[[4, 4, 0, 0], [0, 4, 4, 0]], [[0, 4, 0, 0], [0, 2, 2, 0]]],
    ],
    dtype=float,
)[:, :, None]
LOSSES = np.array([[7.2, 4.4], [8.0, 5.6], [9.6, 4.8]])
GRADIENTS = np.array([[[48.0, 0.0], [0.0, 0.0]], [[5.0, 5.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 7.0]]])
SIGNALS = Signals(HISTOGRAMS[:, :, 0].sum(-1), LOSSES, HISTOGRAMS, GRADIENTS)


class Row(NamedTuple):
    """A method, what it remembers, and its answer."""

    method: Method
    memory: Memory
    fused: list[list[float]]
    unimodal: list[list[float]]
    direction: list[list[float]] | None = None
    slopes: list[list[float]] | None = None


# The pooled AUCs of the two heads are 124/144 and 120/144; they rose by 0.1 and 0.3.
MEMORY = {
    "rounds": np.array([1.0]),
    "auc": np.array([124 / 144 - 0.1, 120 / 144 - 0.3]),
    "group_auc": np.full((2, 2), 0.5),
}

TABLE: Mapping[str, Row] = {
    "fedavg": Row(FedAvg(), {}, [[1.0, 1.0]] * 3, [[1.0, 1.0]] * 2),
    # Mean losses 13.6 / 24 and 14.4 / 24 differ by 1/30, which is 1/3 of mu:
    # w = (1, e^(1/3)) / (1 + e^(1/3)) = (0.417430, 0.582570), times lambda = 2.
    "mimo": Row(
        Mimo(penalty=2.0, mu=0.1), {}, [[1.0, 1.0]] * 3, [[0.834860, 0.834860], [1.165140, 1.165140]]
    ),
    # Fused: r = (.45, .55) / ln 2 = (0.649213, 0.793482), mean 0.697303 by shares 2/3 and 1/3, shrunk by
    # 16/24 and 8/16 to (0.665243, 0.745393). K = e^(r / mu) / sum pi e^(r / mu), exponents 0.801498 apart:
    # 1 / (2/3 + 2.228878 / 3) = 0.709408 and 2.228878 times it.
    # Unimodal: r shrunk to (0.753407, 0.913707) and twice 0.865617; e^(r / mu) against the largest
    # (0.201292, 1, 0.618227, 0.618227), whose mean by pi / M is 0.542878; each over that mean and over M.
    "dual_mimo": Row(
        DualMimo(penalty=1.0, mu=0.1, shrinkage=8.0),
        {},
        [[0.709408, 1.581183]] * 3,
        [[0.185394, 0.921017], [0.569398, 0.569398]],
    ),
    # B = 2 (0.3, 0.1) / 0.4 = (1.5, 0.5). Group AUCs (62/64, 10/16) and (56/64, 12/16), so
    # f = 1 + 0.5 (mean - A) = (0.9140625, 1.0859375) and (0.96875, 1.03125).
    # V: ||G|| = 2, unit gradients (e_1 + e_2) / sqrt 2 and e_4: -0.4 / 4 (1.5 / sqrt 2 e_2 + 0.5 e_4).
    # F_G, one-sided: the lower group of each head, -0.3 / (M G).
    "multifair": Row(
        MultiFair(tau=1.0, gate=0.0, decay=0.0, group_min=4, direction=0.4, fairness=0.3),
        MEMORY,
        [[1.0, 1.0], [1.37109375, 1.62890625], [0.484375, 0.515625]],
        [[1.0, 1.0]] * 2,
        [[0.0, -0.106066], [0.0, -0.05]],
        [[0.0, -0.075], [0.0, -0.075]],
    ),
}


def test_signals_are_valid_and_every_method_is_frozen() -> None:
    SIGNALS.check("the table")
    assert TABLE.keys() == METHODS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_values(name: str) -> None:
    row = TABLE[name]
    result = row.method.modulate(SIGNALS, row.memory)
    fairness = result.terms.fairness
    found = {
        "fused": result.coefficients.fused,
        "unimodal": result.coefficients.unimodal,
        "direction": result.terms.direction,
        "slopes": None if fairness is None else fairness.slopes,
    }
    for field, value in found.items():
        expected = getattr(row, field)
        if expected is None:
            assert value is None, field
        else:
            np.testing.assert_allclose(value, expected, rtol=0, atol=5e-7, err_msg=field)
