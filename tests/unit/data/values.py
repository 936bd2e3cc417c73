"""What records hold, as numbers, whatever they are kept as."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfair.data.pixels import Pixels
from fedfair.data.schema import SiteRecords


def values(records: SiteRecords, name: str) -> NDArray[np.float32]:
    raw = records.modalities[name]
    return raw.values() if isinstance(raw, Pixels) else raw
