"""The ledger: what a site's data set has been charged, on the site's own disk, across runs.

A charge is durable before it returns and comes before the release it pays for, so a run that dies in
between has paid for nothing, and no run has released for nothing. The file holds noise multipliers,
sample rates and step counts by run, and nothing of a patient. Losing it loses the record of what was
spent: back it up with the data set it belongs to.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedfair.errors import ConfigError, PrivacyBudgetExhausted, PrivacyError
from fedfair.privacy.accounting import Event, Statement, describe, epsilon, merge

FORMAT = 1

Runs = dict[str, dict[str, Any]]


class Ledger:
    """The account of one data set at one site.

    Parameters
    ----------
    path : Path
        The file, created by the first charge; a lock lies beside it.
    dataset, site : str
        Whose account this is; a file of another one is refused.
    delta : float
        In (0, 1), at which losses are computed; the file holds the history and no delta.
    cap : float | None
        The epsilon that a charge may not exceed; None keeps the account without a limit.

    Raises
    ------
    ConfigError
        If `delta` or `cap` is out of range.
    """

    def __init__(self, path: Path, dataset: str, site: str, delta: float, cap: float | None) -> None:
        if not 0 < delta < 1:
            raise ConfigError(f"`delta` must be in (0, 1), got {delta}")
        if cap is not None and not cap > 0:
            raise ConfigError(f"`cap` must be above 0, or None for no limit, got {cap}")
        self._path = path.resolve()  # a link must not split the account in two
        self._owner = {"format": FORMAT, "dataset": dataset, "site": site}
        self._site = site
        self._delta = delta
        self._cap = cap

    def events(self) -> tuple[Event, ...]:
        """Return all that was charged, merged over runs, as it stands on the disk.

        Raises
        ------
        PrivacyError
            If the file is damaged, unreadable or another account's.
        """
        return _history(self._read())

    def statement(self, unit: str) -> Statement:
        """Return what the data set has spent; `unit` says whose data the statement covers."""
        return describe(self.events(), self._delta, unit)

    def charge(self, run: str, events: Sequence[Event], reserve: Sequence[Event] = ()) -> None:
        """Charge events to a run, before anything is computed or released.

        Parameters
        ----------
        run : str
            The run's identifier; charges of one run add up.
        events : Sequence[Event]
            What is about to be released.
        reserve : Sequence[Event]
            What the run will still need: counted against the cap, not charged.

        Raises
        ------
        PrivacyBudgetExhausted
            If the whole history with `events` and `reserve` exceeds the cap; nothing is written.
        PrivacyError
            If the file is damaged, unreadable, not writable or another account's.
        """
        with self._locked() as first:
            if not (first or self._path.exists()):
                raise self._refusal("lie beside its lock, got none")
            runs = self._read()
            self._refuse_beyond_cap(_history(runs), [*events, *reserve])
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entry = runs.get(run, {"first": now, "events": ()})
            runs[run] = {**entry, "last": now, "events": merge([*entry["events"], *events])}
            self._write(runs)

    def _refuse_beyond_cap(self, spent: tuple[Event, ...], more: Sequence[Event]) -> None:
        if self._cap is None:
            return
        whole = [*spent, *more]
        # RDP takes milliseconds and is above PRV: within the cap by RDP is within it.
        if epsilon(whole, self._delta, "rdp") <= self._cap:
            return
        asked = epsilon(whole, self._delta)
        if asked > self._cap:
            spent_now = epsilon(spent, self._delta)
            raise PrivacyBudgetExhausted(
                f"`privacy.max_epsilon` of site {self._site} must not be exceeded, got epsilon {asked:.4g}"
                f" with this release where {spent_now:.4g} is spent and {self._cap:.4g} is the cap"
                f" (delta {self._delta:.3g}); stop here, or let the site's data protection raise the cap"
            )

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the account alone, and tell whether it has not been charged yet.

        The ledger itself is replaced by each charge, so it cannot carry the lock. The lock is empty
        until the first charge is written: one with content and no ledger beside it was lost.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(_beside(self._path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refusal(f"be in a folder that can be written, got {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield os.fstat(lock).st_size == 0
            if os.fstat(lock).st_size == 0:
                os.write(lock, b"charged\n")
        finally:
            os.close(lock)

    def _read(self) -> Runs:
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            digest = document.pop("digest")
            runs = {run: _parsed(entry) for run, entry in document["runs"].items()}
            owner = {key: document[key] for key in self._owner}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._refusal(f"be readable, got {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise self._refusal("be a ledger, got a damaged or foreign file") from error
        if owner != self._owner:
            raise self._refusal(f"belong to {self._owner}, got {owner}")
        if digest != _digest(document):
            raise self._refusal("be as it was written, got another digest of its content")
        return runs

    def _write(self, runs: Runs) -> None:
        document = {**self._owner, "runs": {run: _plain(entry) for run, entry in runs.items()}}
        text = json.dumps({**document, "digest": _digest(document)}, indent=1)
        try:
            _replace(self._path, text)
        except OSError as error:
            raise self._refusal(f"be writable, got {error.strerror}; nothing may be released") from error

    def _refusal(self, requirement: str) -> PrivacyError:
        return PrivacyError(
            f"privacy ledger `{self._path}` must {requirement}; restore it from a backup or correct the"
            " configuration, since a new file would forget what was spent"
        )


def _replace(path: Path, text: str) -> None:
    """Replace a file by a new one, durably and in one step."""
    new = _beside(path, ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is durable only now
    finally:
        os.close(folder)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _history(runs: Runs) -> tuple[Event, ...]:
    return merge(event for entry in runs.values() for event in entry["events"])


def _parsed(entry: dict[str, Any]) -> dict[str, Any]:
    events = tuple(Event(*values) for values in entry["events"])
    return {"first": entry["first"], "last": entry["last"], "events": events}


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    events = [[event.noise_multiplier, event.sample_rate, event.steps] for event in entry["events"]]
    return {**entry, "events": events}


def _digest(document: dict[str, Any]) -> str:
    """Return a digest that tells an accidental change; it is no protection against an intended one."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
