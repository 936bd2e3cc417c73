"""The imaging devices: what each does to the picture of the same eye."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.phantom.anatomy import FIELD

Pixels = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Device(NamedTuple):
    """How a device turns light into grey values.

    Attributes
    ----------
    gain, offset, gamma : float
        Grey value of the fundus image: (gain * light + offset)^gamma.
    blur : float
        SD of the point spread across the retina (mm).
    noise : float
        SD of the noise of the fundus image, and of the floor of OCT relative to a third of it.
    looks : float
        Independent speckle patterns that an OCT pixel averages.
    rnfl : float
        Factor on the RNFL thickness that it shows.
    """

    gain: float
    offset: float
    gamma: float
    blur: float
    noise: float
    looks: float
    rnfl: float


DEVICES: Mapping[str, Device] = {
    "A": Device(1.0, 0.0, 1.0, 0.02, 0.030, 3.0, 1.0),
    # Two makes of spectral-domain OCT differ by 6.7 um of some 100 (PMC3299866); all else here is assumed.
    "B": Device(0.85, 0.0, 1.25, 0.02, 0.045, 2.1, 1.065),
    "C": Device(1.15, 0.05, 0.9, 0.09, 0.025, 4.8, 0.97),
}


def grey(values: NDArray[np.floating[Any]]) -> Bytes:
    """Return values in [0, 1] as bytes, those outside at the nearest end."""
    levels: Bytes = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    return levels


@lru_cache
def axis(size: int, width: float = FIELD) -> Pixels:
    """Return the positions (mm) of `size` pixels over `width`, from - to +."""
    return (((np.arange(size) + 0.5) / size - 0.5) * width).astype(np.float32)


@lru_cache
def blurring(size: int, blur: float) -> Pixels:
    """Return the matrix [size, size] that blurs along an axis of the field; each row adds up to one."""
    place = axis(size)
    weight: Pixels = np.exp(-0.5 * ((place[:, None] - place) / max(blur, 1e-3)) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


@lru_cache
def speckle_table(looks: float, entries: int = 4096) -> Pixels:
    """Return quantiles of the gamma distribution with this shape and mean one, at (k + 1/2) / entries.

    Speckle averaged over L looks has it (Goodman, Speckle Phenomena in Optics, 2007); looking up a table is
    three times as fast as drawing.
    """
    grid = np.arange(1, 1 << 16) / (1 << 16) * 30
    density = np.exp((looks - 1) * np.log(grid) - looks * (grid - 1))
    cumulative = np.cumsum(density) / density.sum()
    table = np.interp((np.arange(entries) + 0.5) / entries, cumulative, grid)
    quantiles: Pixels = table.astype(np.float32)
    return quantiles


def speckle(rng: np.random.Generator, looks: float, shape: tuple[int, ...]) -> Pixels:
    """Return speckle of a shape, mean one and variance 1 / looks."""
    table = speckle_table(looks)
    count = int(np.prod(shape))
    draws = np.frombuffer(rng.bytes(2 * count), dtype="<u2") & (len(table) - 1)
    drawn: Pixels = table[draws].reshape(shape)
    return drawn
