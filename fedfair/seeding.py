"""Every random draw takes a generator derived from (seed, labels...), never global state.

The labels name the draw's place (site, round, purpose), so the same seed gives the same bits
whatever the engine, its number of workers or the order in which sites answer.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed that is a hash of `seed` and the labels.

    Parameters
    ----------
    seed : int
        The run's seed.
    *labels : str | int
        The draw's place, for example ``("Cleveland", 3, "batches")``.
    """
    text = "\x1f".join([str(seed), *(f"{type(x).__name__}:{x}" for x in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """Return a NumPy generator for the draw that the labels name."""
    return np.random.default_rng(derive_seed(seed, *labels))


def torch_generator(seed: int, *labels: str | int) -> torch.Generator:
    """Return a CPU torch generator for the draw that the labels name."""
    return torch.Generator().manual_seed(derive_seed(seed, *labels))
