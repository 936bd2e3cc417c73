"""The audit log: what was asked, what left and who agreed to it, in a file that shows changes to it.

Each line is one entry in JSON and holds the hash of the entry before it, so that none can be altered,
removed, inserted or moved unseen. A chain alone does not show that its end was cut off or that all of
it was written anew; for that, centre and sites note the head of each other's log with every message, and
`verify` compares. An entry has the fields that `EVENTS` names, none of them made for a patient's data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedfair.audit._log import EVENTS, AuditLog, Entry, entries
from fedfair.audit._text import render, summary
from fedfair.audit._verify import Verified, verify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EVENTS", "AuditLog", "Entry", "Verified", "digest", "entries", "render", "summary", "verify"]


def digest(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return a SHA-256 of names, dtypes, shapes and values, whatever the order of the names."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        # What stands before the values tells how long they are, so no two sets read the same.
        whole.update(json.dumps([name, array.dtype.str, array.shape]).encode() + b"\n" + array.tobytes())
    return whole.hexdigest()
