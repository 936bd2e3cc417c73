"""What a site's audit log says of a message: what was asked, what left, what was refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedfair.audit import AuditLog, digest
from fedfair.config import parse_json
from fedfair.errors import AuditError, FedfairError

CENTRE = "centre"
_SHOWN = 20  # characters of what should be a number
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
        # What is missing or odd is refused later, in words, and that stands in the log too.
        told = dict(message.content.config_records.get("run") or {})
        self._log = None if path is None else AuditLog(path)
        self._about = {
            "run": str(told.get("run", "")),
            "round": _number(told.get("round", "")),
            "kind": message.metadata.message_type,
        }
        self._peer: dict[str, object] = {}
        if "audit-hash" in told:
            n, head = _number(told.get("audit-n", "")), str(told["audit-hash"])
            self._peer = {"peer": CENTRE, "peer_n": n, "peer_hash": head}
        self._code, self._config = str(told.get("source", "")), str(told.get("config", ""))

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Note why nothing leaves; of an error that fedfair did not raise on purpose only the kind."""
        with contextlib.ExitStack() as stack:
            stack.push(self._note)
            yield

    def _note(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del trace
        # A log that cannot be written cannot say so.
        if self._log is None or kind is None or isinstance(error, AuditError):
            return
        reason = str(error) if isinstance(error, FedfairError) else f"failed with {kind.__name__}"
        self._log.append("refused", **self._about, reason=reason, **self._peer)

    def opens(self, survivors: Sequence[str]) -> None:
        """Note that this site helps to open the sum over these sites."""
        if self._log is not None and survivors:
            run, number = self._about["run"], self._about["round"]
            self._log.append("secure-sum", run=run, round=number, sites=list(survivors))

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


def _number(value: object) -> int | str:
    """Return a whole number, or what stands in its place, cut."""
    text = str(value)[:_SHOWN]
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else text
