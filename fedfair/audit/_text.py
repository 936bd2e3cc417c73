"""An audit log as people read it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedfair.audit._log import EVENTS, Entry, moment
from fedfair.audit._verify import verify
from fedfair.errors import counted

SHOWN, HASH_SHOWN = 60, 12  # characters of a value, of a hash
UNWITNESSED = "witnesses: none, so a cut end would not show; check it against the log of the other side"
HASHES = {"hash", "code", "config_hash", "code_hash", "digest", "log", "peer_hash", "sha256"}


def render(found: Iterable[Entry]) -> str:
    """Return entries as an aligned table; long values are cut, and no text can steer a terminal."""
    rows = [["n", "time (UTC)", "event", "hash", "what"]]
    for entry in found:
        names = [name for name in EVENTS.get(entry["event"], ()) if name in entry]
        what = "  ".join(f"{name} {_shown(name, entry[name])}" for name in names)
        event, value = (_shown(name, entry[name]) for name in ("event", "hash"))
        rows.append([str(entry["n"]), _time(entry), event, value, what])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def summary(path: Path, against: Iterable[Path] = ()) -> str:
    """Return a log in a few lines: span, head and witnesses, then per run what was done, sent and spent.

    Parameters
    ----------
    path, against : Path, Iterable[Path]
        As `verify` takes them.

    Raises
    ------
    AuditError
        If the log is not as it was written.
    """
    log = verify(path, against)
    first, last = log.entries[0], log.entries[-1]
    by_run: dict[Any, list[Entry]] = {}
    for entry in log.entries:
        if "run" in entry:
            by_run.setdefault(entry["run"], []).append(entry)
    entries = counted(len(log.entries), "entry", "entries")
    return "\n".join(
        [
            f"{path.name}: {entries}, {_time(first)} to {_time(last)} UTC, unbroken",
            f"head: entry {last['n']}, {last['hash']}",
            f"witnesses: {log.witnessed} of its heads stand in other logs" if log.witnessed else UNWITNESSED,
            *(f"note: {note}" for note in log.notes),
            *(f"run {_shown('run', run)}: {_told(of)}" for run, of in by_run.items()),
        ]
    )


def _time(entry: Entry) -> str:
    return f"{moment(entry):%Y-%m-%d %H:%M:%S}"


def _told(run: Sequence[Entry]) -> str:
    counts = Counter(entry["event"] for entry in run)
    told = [f"{event} {count}" for event, count in counts.items()]
    if sent := sum(entry.get("bytes", 0) for entry in run):
        told.append(f"{sent:,} bytes")
    if spent := [entry for entry in run if entry.get("epsilon") is not None]:
        told.append(f"epsilon {spent[-1]['epsilon']:.4g} at delta {spent[-1].get('delta')}")
    return ", ".join(told)


def _shown(name: str, value: object) -> str:
    """Return a value cut short, of a mapping its names; text that is more than letters is quoted as JSON."""
    if isinstance(value, dict):
        value = ", ".join(value)
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    if name in HASHES:
        return text[:HASH_SHOWN]
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
