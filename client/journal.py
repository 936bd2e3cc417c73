"""What a site's audit log says of a message: what was asked, what left, what was refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedfair.audit import AuditLog, digest
from fedfair.config import parse_json
from fedfair.errors import FedfairError

CENTRE = "centre"
Spent = Callable[[], tuple[float, float] | None]


class Journal:
    """Writes one message into the site's log; without a log, nothing.

    Parameters
    ----------
    path : Path | None
        The log.
    message : Message
        From the server.
    """

    def __init__(self, path: Path | None, message: Message) -> None:
        told = message.content.config_records["run"]
        self._log = None if path is None else AuditLog(path)
        self._about = {
            "run": str(told["run"]),
            "round": int(str(told["round"])),
            "kind": message.metadata.message_type,
        }
        self._peer: dict[str, object] = {}
        if "audit-hash" in told:
            n, head = int(str(told["audit-n"])), str(told["audit-hash"])
            self._peer = {"peer": CENTRE, "peer_n": n, "peer_hash": head}
        self._code, self._config = str(told["source"]), str(told["config"])

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Note why nothing leaves."""
        try:
            yield
        except FedfairError as error:
            if self._log is not None:
                self._log.append("refused", **self._about, reason=str(error), **self._peer)
            raise

    def leaves(self, arrays: Mapping[str, NDArray[np.generic]], spent: Spent) -> dict[str, str | int]:
        """Note what is about to leave; return the log's head, which goes with it.

        Parameters
        ----------
        arrays : Mapping[str, NDArray]
            The upload.
        spent : Callable
            Gives epsilon and delta of the site's ledger after it; None without privacy.

        Raises
        ------
        AuditError
            If it cannot be written: then nothing leaves.
        """
        if self._log is None:
            return {}
        epsilon, delta = spent() or (None, None)
        self._log.append(
            "left-site",
            **self._about,
            config_hash=parse_json(self._config).digest(),
            code_hash=self._code,
            leaves={name: list(array.shape) for name, array in sorted(arrays.items())},
            digest=digest(arrays),
            bytes=sum(array.nbytes for array in arrays.values()),
            # JSON knows no infinity, which is what a release without noise costs.
            epsilon=epsilon if epsilon is None or math.isfinite(epsilon) else "infinite",
            delta=delta,
            **self._peer,
        )
        n, head = self._log.head()
        return {"audit-n": n, "audit-hash": head}
