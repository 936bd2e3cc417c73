"""The direction term of MultiFair, without double backward and without pooling data.

CGGM (arXiv 2411.01409, eq. 3) adds to the loss
    L_gm = (1/M) sum_m ( |B_m| - B_m cos(G, G_m) ),
G the gradient of the fused loss and G_m that of unimodal loss m, both at the last linear layer.
With G_m held constant its gradient is that of <G(theta), V>, where
    V = dL_gm/dG = -(1 / (M ||G||)) sum_m B_m (G_m/||G_m|| - cos_m G/||G||).
For cross-entropy <G(theta), V> is a mean over records of (p_i - e_y)^T V [q_i; 1], so the server
broadcasts V and each record adds one term. (The released code of MultiFair finds no such layer
and its term has no gradient; see docs/methods/multifair.md.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def direction_matrix(head_gradients: Array, counts: Array, balance: Array) -> tuple[Array, Array]:
    """Return V [C, P + 1] and the cosines [M].

    Parameters
    ----------
    head_gradients : Array
        [H, C, P + 1] pooled sums; row 0 the fused head.
    counts : Array
        [H] records behind each sum.
    balance : Array
        B_m [M].

    Returns
    -------
    tuple[Array, Array]
        V is orthogonal to G and zero where G vanishes; a head without records or gradient
        contributes nothing and its cosine is NaN.
    """
    fused = head_gradients[0] / max(counts[0], 1.0)
    norm = float(np.linalg.norm(fused))
    cosines = np.full(len(balance), np.nan)
    result = np.zeros_like(fused)
    for m, factor in enumerate(balance):
        own = float(np.linalg.norm(head_gradients[m + 1]))
        if norm == 0.0 or own == 0.0:
            continue
        unit = head_gradients[m + 1] / own
        cosines[m] = float((unit * fused).sum() / norm)
        result -= factor * (unit - cosines[m] * fused / norm) / (len(balance) * norm)
    return result, cosines
