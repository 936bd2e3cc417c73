"""Arrays to and from Flower's records."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedfair import wire


def wrapped(arrays: wire.Arrays) -> ArrayRecord:
    """Return the record of an upload."""
    return ArrayRecord({key: _wrap(value) for key, value in arrays.items()})


def _wrap(value: NDArray[np.generic]) -> Array:
    return Array(value.dtype.name, value.shape, "numpy.ndarray", wire.to_bytes(value))


def brought(content: RecordDict) -> wire.Download | None:
    """Return the download in a message, or None if it brings none."""
    if "arrays" not in content.array_records:
        return None
    record = content.array_records["arrays"]
    arrays = {key: wire.from_bytes(value.data, value.dtype, value.shape) for key, value in record.items()}
    return wire.unpack_download(arrays)
