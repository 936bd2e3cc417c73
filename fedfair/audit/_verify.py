"""Whether a log is as it was written: by itself, and against what others noted of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from fedfair.audit._log import EVENTS, OWN, PEER, START, Entry, entries, moment
from fedfair.errors import AuditError

Head = tuple[int, str]  # the number and the hash of an entry
CLOCK_SLACK = timedelta(seconds=2)  # a clock that is set right may step back by so much


@dataclass(frozen=True)
class Verified:
    """A log that is as it was written.

    Attributes
    ----------
    entries : Sequence[Entry]
        All of it.
    notes : Sequence[str]
        What is odd and no proof of a change, such as a clock that was set back.
    witnessed : int
        Heads of this log, noted elsewhere, that stand in it; 0 leaves its end unproven.
    """

    entries: Sequence[Entry]
    notes: Sequence[str]
    witnessed: int


def verify(path: Path, against: Iterable[Path] = (), anchors: Mapping[int, str] | None = None) -> Verified:
    """Return the log in `path`, if it is as it was written.

    Parameters
    ----------
    path : Path
        The log.
    against : Iterable[Path]
        Logs of others, verified too: every head of this log that they noted must stand in it. Heads
        noted under one name belong to this log if any of them does; if none does, it was written anew.
    anchors : Mapping[int, str] | None
        Hashes of its entries by number, as noted by hand.

    Raises
    ------
    AuditError
        Naming the file, the line and what is wrong.
    """
    found = _chain(path)
    heads = [((n, value), "was noted by hand") for n, value in (anchors or {}).items()]
    noted = {other: _noted(_chain(other)) for other in against}
    for other, by_name in noted.items():
        heads += _belonging(path, found, other, by_name)
    for head, source in heads:
        _check_head(path, found, head, source)
    unseen = [f"`{other}` notes no head of another log" for other, by_name in noted.items() if not by_name]
    return Verified(found, [*_clock_notes(found), *unseen], len(heads))


def _chain(path: Path) -> list[Entry]:
    """Return the entries of a log that follow from one another."""
    found = entries(path)
    numbers, previous = [entry["n"] for entry in found], START
    for n, entry in enumerate(found):
        if fault := _fault(n, entry, numbers, previous):
            raise AuditError(f"`{path}`, line {n + 1}, must {fault}")
        previous = entry["hash"]
    return found


def _fault(n: int, entry: Entry, numbers: Sequence[int], previous: str) -> str | None:
    """Return what the entry on line n + 1 must be and is not."""
    event = entry["event"]
    if entry["n"] != n:
        return f"be entry {n}, got entry {entry['n']}: {_displaced(n, numbers)}"
    if entry["previous"] != previous:
        return "follow from the line before, got another `previous`: what stands before was replaced"
    if event not in EVENTS or (event == "begin") != (n == 0):
        return f"be one of {list(EVENTS)} and only the first `begin`, got {event!r}"
    if unknown := sorted(entry.keys() - {*OWN, *EVENTS[event]}):
        return f"have fields of {list(EVENTS[event])} only, got {unknown}"
    return None


def _displaced(n: int, numbers: Sequence[int]) -> str:
    if numbers.count(numbers[n]) > 1:
        return "an entry was inserted"
    return "entries were moved" if n in numbers else "an entry was removed"


def _clock_notes(found: Sequence[Entry]) -> list[str]:
    moments = [moment(entry) for entry in found]
    return [
        f"entry {n} is {(before - after).total_seconds():.0f} s older than the one before: a clock went back"
        for n, (before, after) in enumerate(pairwise(moments), 1)
        if before - after > CLOCK_SLACK
    ]


def _noted(found: Sequence[Entry]) -> dict[str, list[Head]]:
    """Return by name the heads of other logs that a log noted."""
    heads: dict[str, list[Head]] = {}
    for entry in found:
        match [entry.get(field) for field in PEER]:
            case [str(name), int(n), str(value)]:  # before a first message there is none
                heads.setdefault(name, []).append((n, value))
    return heads


def _belonging(
    path: Path, found: Sequence[Entry], other: Path, noted: Mapping[str, Sequence[Head]]
) -> list[tuple[Head, str]]:
    """Return the heads that `other` noted of this log, each with who noted it."""
    stand = {(entry["n"], entry["hash"]) for entry in found}
    names = [name for name, heads in noted.items() if not stand.isdisjoint(heads)]
    if noted and not names:
        raise AuditError(
            f"`{path}` must hold an entry that `{other}` noted for {sorted(noted)}, it holds none: it was"
            " written anew, or these two have never met"
        )
    return [(head, f"`{other}` noted for {name}") for name in names for head in noted[name]]


def _check_head(path: Path, found: Sequence[Entry], head: Head, source: str) -> None:
    n, value = head
    if not 0 <= n < len(found):
        raise AuditError(
            f"`{path}` must hold entry {n}, which {source}, it ends with entry {len(found) - 1}: its end"
            " was cut off"
        )
    if found[n]["hash"] != value:
        raise AuditError(
            f"`{path}`, line {n + 1}, must have the hash that {source}, got {found[n]['hash']}: the log was"
            " written anew up to there"
        )
