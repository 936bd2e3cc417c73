"""Images at 8 bits, resized to a square by area or bilinear weights, in NumPy alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfair.data.pixels import Codes
from fedfair.errors import DataError


def resize(images: NDArray[Any], size: int) -> NDArray[np.float32]:
    r"""Return images [..., size, size] from [..., H, W].

    Rows and columns are weighted apart, ``A_H X A_W^T``. Along an axis of n pixels: for ``n >= size`` by
    area, an output pixel is the mean over the stretch of ``n / size`` input pixels that it covers; for
    ``n < size`` bilinearly between pixel centres, the outermost ones held. ``n = size`` changes nothing.

    Parameters
    ----------
    images : NDArray[Any]
        [..., H, W], H and W at least 1.
    size : int
        At least 1.
    """
    rows, columns = _weights(images.shape[-2], size), _weights(images.shape[-1], size)
    return np.asarray(rows @ images.astype(np.float32) @ columns.T, dtype=np.float32)


def slo_image(raw: NDArray[Any], size: int, transposed: bool) -> Codes:
    """Return an SLO fundus image [1, size, size].

    Parameters
    ----------
    raw : NDArray[Any]
        [H, W] in 0 .. 255.
    size : int
        Side of the square.
    transposed : bool
        Whether the axes are stored swapped.

    Raises
    ------
    DataError
        If a value is outside 0 .. 255.
    """
    upright = raw.T if transposed else raw
    return _codes(resize(_in_range(upright, "slo_fundus"), size))[None]


def oct_volume(raw: NDArray[Any], slices: int, size: int) -> Codes:
    """Return an OCT volume [taken, size, size], as many slices as the record has, at most `slices`.

    Parameters
    ----------
    raw : NDArray[Any]
        [S, H, W] in 0 .. 255, S at least 1; one B-scan per index of the first axis.
    slices : int
        Of S B-scans, number ``floor((i + 1/2) S / slices)`` is taken for i = 0 .. slices-1: the middle one
        of each of as many equal stretches. With fewer than `slices`, all are.
    size : int
        Side of the square.

    Raises
    ------
    DataError
        If a value of a B-scan that is taken is outside 0 .. 255.
    """
    taken = min(slices, len(raw))
    index = (2 * np.arange(taken) + 1) * len(raw) // (2 * taken)
    return _codes(resize(_in_range(raw[index], "oct_bscans"), size))


def _codes(images: NDArray[np.float32]) -> Codes:
    """Return the nearest whole numbers: the 8 bits of the files themselves."""
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _in_range(raw: NDArray[Any], key: str) -> NDArray[Any]:
    """Return values as they are, refused outside 0 .. 255; NaN is outside."""
    if not (raw.min() >= 0 and raw.max() <= 255):
        raise DataError(f"`{key}` must hold values in 0 .. 255")
    return raw


@lru_cache(maxsize=64)
def _weights(length: int, size: int) -> NDArray[np.float32]:
    """Return the weights [size, length] of an axis; every row sums to 1."""
    pixel = np.arange(length)
    if length >= size:
        start = np.arange(size)[:, None] * length / size
        covered = np.minimum(start + length / size, pixel + 1) - np.maximum(start, pixel)
        return np.asarray(np.maximum(covered, 0) * size / length, np.float32)
    centre = np.clip((np.arange(size)[:, None] + 0.5) * length / size - 0.5, 0, length - 1)
    return np.asarray(np.maximum(1 - np.abs(centre - pixel), 0), np.float32)
