"""What the centre's audit log says of a run; without a log, nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord
from numpy.typing import NDArray

from fedfair.audit import AuditLog, digest
from fedfair.errors import InconsistentUpdates

_HASH = re.compile("[0-9a-f]{64}")


class Journal:
    """Writes the exchanges of one run into the centre's log, and swaps heads with the sites' logs.

    Parameters
    ----------
    path : Path | None
        The log; None for a run on one machine, which sends nothing anywhere.
    run : str
        The run's name.
    """

    def __init__(self, path: Path | None, run: str) -> None:
        self._log = None if path is None else AuditLog(path)
        self._run = run

    def started(self, config_hash: str, code_hash: str, config: str) -> None:
        """Note what is about to run."""
        self._note("run-started", config_hash=config_hash, code_hash=code_hash, config=config)

    def ended(self, status: str, rounds: int) -> None:
        """Note how it ended."""
        self._note("run-ended", status=status, rounds=rounds)

    def asked(self, number: int, kind: str, sites: Sequence[str]) -> dict[str, str | int]:
        """Note who is asked for what; return the log's head, which goes with the message."""
        self._note("asked", round=number, kind=kind, site=list(sites))
        if self._log is None:
            return {}
        n, head = self._log.head()
        return {"audit-n": n, "audit-hash": head}

    def answered(
        self,
        number: int,
        kind: str,
        site: str,
        arrays: Mapping[str, NDArray[np.generic]],
        told: ConfigRecord,
    ) -> None:
        """Note what came back, and the head of the site's log as it was then."""
        if self._log is None:
            return
        self._note(
            "answered",
            round=number,
            kind=kind,
            site=site,
            digest=digest(arrays),
            values=sum(array.size for array in arrays.values()),
            bytes=sum(array.nbytes for array in arrays.values()),
            **peer(site, told),
        )

    def summed(self, number: int, sites: Sequence[str]) -> None:
        """Note which sites' answers were opened, as one sum."""
        self._note("secure-sum", round=number, sites=list(sites))

    def refused(self, number: int, kind: str, site: str, reason: str) -> None:
        """Note that nothing usable came back, and why."""
        self._note("refused", round=number, kind=kind, site=site, reason=reason)

    def _note(self, event: str, **fields: object) -> None:
        if self._log is not None:
            self._log.append(event, run=self._run, **fields)


def peer(name: str, told: ConfigRecord) -> dict[str, object]:
    """Return the head of the other side's log, if it told one.

    Raises
    ------
    InconsistentUpdates
        If what it told is no number and hash of an entry.
    """
    n, head = told.get("audit-n"), told.get("audit-hash")
    if n is None and head is None:
        return {}
    if type(n) is not int or n < 0 or not isinstance(head, str) or not _HASH.fullmatch(head):
        raise InconsistentUpdates(
            f"`audit-n` and `audit-hash` of {name} must be the number and the hash of a log's entry, "
            "they are not"
        )
    return {"peer": name, "peer_n": n, "peer_hash": head}
