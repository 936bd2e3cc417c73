"""Large arrays of replies lie on disk until the round is committed, so that memory holds few models.

The coefficients follow from all sites' signals, so all their rows must be kept until the last answer
is in: sites x groups x model. On disk that is cheap, and read piece by piece in the end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import RunError

LARGE = 4 << 20  # bytes


def spooled(array: NDArray[np.generic], folder: Path) -> NDArray[np.generic]:
    """Return the array, read from an unnamed file in `folder` if it is large; the file goes with it.

    Raises
    ------
    RunError
        If the disk is full.
    """
    if array.nbytes < LARGE:
        return array
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            array.tofile(file)
            file.flush()
            return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
    except OSError as error:
        raise RunError(
            f"the disk of {folder} must hold the sites' updates of one round, got: {error}; make room there"
        ) from error
