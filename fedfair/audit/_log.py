"""The log itself: what may stand in it, how an entry is written and read."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfair.errors import AuditError, nearest

Entry = dict[str, Any]

OWN = ("n", "time", "event", "previous", "hash")  # of every entry; the log itself writes them
PEER = ("peer", "peer_n", "peer_hash")  # the head of another's log, and whose
EVENTS: Mapping[str, Sequence[str]] = {
    "begin": ("log",),
    "torn": ("file", "bytes", "sha256"),
    "run-started": ("run", "config_hash", "code_hash", "config"),
    "run-ended": ("run", "status", "rounds"),
    "asked": ("run", "round", "kind", "site", *PEER),
    "answered": (
        *("run", "round", "kind", "site", "digest", "values", "bytes", "epsilon", "delta"),
        *PEER,
    ),
    "refused": ("run", "round", "kind", "site", "reason", *PEER),
    "left-site": (
        *(
            "run",
            "round",
            "kind",
            "config_hash",
            "code_hash",
            "leaves",
            "digest",
            "bytes",
            "epsilon",
            "delta",
        ),
        *PEER,
    ),
    "secure-sum": ("run", "round", "sites"),
    "code-approved": ("code", "by"),
    "code-revoked": ("code", "by"),
    "code-run": ("code", "run", "round", "message"),
    "code-refused": ("code", "run", "round", "message", "reason"),
    "joined": ("site", "consortium", "centre"),
    "stopped": ("reason",),
}
START = "0" * 64  # `previous` of the first entry
BLOCK = 4096  # bytes read at a time from the end
QUOTED = 60  # characters of a bad line that a message shows


class AuditLog:
    """A log that is only ever appended to, by any number of processes.

    Parameters
    ----------
    path : Path
        The file; begun with an entry of its own if there is none.

    Raises
    ------
    AuditError
        If the file cannot be written or its last entry is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head()

    def append(self, event: str, **fields: object) -> str:
        """Append an entry, durable when this returns, and return its hash: the log's new head.

        Parameters
        ----------
        event : str
            One of `EVENTS`.
        **fields : object
            Fields of the event: JSON scalars, lists and mappings of text to them.

        Raises
        ------
        AuditError
            If the event, a field or a value has no place in a log, or the log cannot be written.
        """
        _check(event, fields)
        with self._locked() as file:
            return str(self._write(file, self._last(file), event, fields)["hash"])

    def head(self) -> tuple[int, str]:
        """Return the number and the hash of the last entry, which stand for the whole log."""
        with self._locked() as file:
            last = self._last(file)
        return last["n"], last["hash"]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise AuditError(
                f"audit log `{self.path}` must be writable, got {error.strerror}; nothing is done unlogged"
            ) from error

    def _last(self, file: int) -> Entry:
        """Return the last entry of a log that is begun, and healed if a write was cut off."""
        line, torn = _tail(file)
        aside = self._set_aside(file, torn) if torn else None
        last = self._begin(file) if line is None else parsed(line, f"`{self.path}`, last entry,")
        return self._write(file, last, "torn", aside) if aside else last

    def _begin(self, file: int) -> Entry:
        entry = self._write(file, None, "begin", {"log": secrets.token_hex(16)})
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the file's name is durable only now
        finally:
            os.close(folder)
        return entry

    def _set_aside(self, file: int, torn: bytes) -> Entry:
        """Move the bytes of a write that was cut off to a file of their own; return what tells of them."""
        names = (self.path.with_name(f"{self.path.name}.torn-{k}") for k in itertools.count(1))
        name = next(name for name in names if not name.exists())
        aside = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_whole(aside, torn)
        finally:
            os.close(aside)
        os.ftruncate(file, os.fstat(file).st_size - len(torn))
        return {"file": name.name, "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}

    def _write(self, file: int, before: Entry | None, event: str, fields: Mapping[str, object]) -> Entry:
        entry: Entry = {
            **fields,
            "n": 0 if before is None else before["n"] + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "previous": START if before is None else before["hash"],
        }
        entry["hash"] = _hash(entry)
        _write_whole(file, _canonical(entry) + b"\n")
        return entry


def entries(path: Path) -> list[Entry]:
    """Return the entries of a log, each as it was written by itself; `verify` checks the chain.

    Raises
    ------
    AuditError
        If the file cannot be read, is empty, or a line is not what was written.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # no entry is half written while this is held
            *lines, rest = file.read().split(b"\n")
    except OSError as error:
        raise AuditError(f"audit log `{path}` must be readable, got {error.strerror}") from error
    found = [parsed(line, f"`{path}`, line {k},") for k, line in enumerate(lines, 1)]
    if rest:
        raise AuditError(
            f"`{path}`, line {len(lines) + 1}, must end with its line, got {len(rest)} bytes of a write that"
            " was cut off, or changed by hand; the next entry will set them aside"
        )
    if not found:
        raise AuditError(f"audit log `{path}` must begin with an entry, got an empty file")
    return found


def _check(event: str, fields: Mapping[str, object]) -> None:
    """Refuse what has no place in a log."""
    if event not in EVENTS:
        raise AuditError(f"`event` must be one of {list(EVENTS)}, got {event!r}{nearest(event, EVENTS)}")
    if unknown := sorted(fields.keys() - set(EVENTS[event])):
        raise AuditError(f"an entry `{event}` must have fields of {list(EVENTS[event])} only, got {unknown}")
    try:
        same = json.loads(_canonical(fields)) == fields
    except (ValueError, TypeError, RecursionError) as error:
        raise AuditError(f"fields of `{event}` must be JSON and finite, got {error}") from error
    if not same:
        raise AuditError(f"fields of `{event}` must be JSON, got tuples, or names that are no text: {fields}")


def _canonical(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _hash(entry: Entry) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in entry.items() if k != "hash"})).hexdigest()


def parsed(line: bytes, where: str) -> Entry:
    """Return the entry in a line that has its own hash, byte for byte as it was written."""
    try:
        entry: Entry = json.loads(line.decode("ascii"))
        kinds = [type(entry[name]) for name in OWN]
        moment(entry)
        same = _canonical(entry) == line and _hash(entry) == entry["hash"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AuditError(f"{where} must be an entry in JSON, got {line[:QUOTED]!r}") from error
    if not same or kinds != [int, str, str, str, str]:
        raise AuditError(f"{where} must be as it was written, got another hash: it was altered")
    return entry


def moment(entry: Entry) -> datetime:
    """Return when an entry was written."""
    return datetime.fromisoformat(entry["time"]).astimezone(UTC)


def _tail(file: int) -> tuple[bytes | None, bytes]:
    """Return the last whole line, None if there is none, and what follows it."""
    size, block = os.fstat(file).st_size, BLOCK
    while True:
        start = max(0, size - block)
        *lines, rest = os.pread(file, size - start, start).split(b"\n")
        # The first of several lines may have been cut by the block.
        if start == 0 or len(lines) > 1:
            return (lines[-1] if lines else None), rest
        block *= 2


def _write_whole(file: int, content: bytes) -> None:
    if os.write(file, content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)
