"""The errors fedfair raises on purpose.

Each carries one sentence that names what is wrong, shows the value it found and says what to do.
The command line prints that sentence and exits with a non-zero status; nothing else is caught there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedfairError(Exception):
    """Base class: an input or a state that fedfair refuses, explained in one sentence."""


class ConfigError(FedfairError):
    """A configuration key or value that is unknown, of the wrong type or inconsistent."""


class DataError(FedfairError):
    """Records that cannot be read or used: a missing file or column, a bad label, no test records."""


class ShapeError(FedfairError):
    """An array whose shape does not fit the schema, the model or the other arrays."""


class InconsistentUpdates(FedfairError):
    """Site updates that cannot be added up: other arrays, non-finite values, counts that disagree."""


class RunError(FedfairError):
    """A run that cannot start or go on: its folder exists, too few sites answered, a site failed."""


class RoundRefused(RunError):
    """A round that is not committed: too few sites, or too few records of a group, answered in it."""


class PrivacyError(FedfairError):
    """A release that the site refuses: undeclared, not accounted for, or beyond what was agreed."""


class PrivacyBudgetExhausted(PrivacyError):
    """A release that would spend more privacy budget than the site has declared as its cap."""


class AuditError(FedfairError):
    """An audit log that is not as it was written, or an entry that has no place in one."""


class MissingDependency(FedfairError):
    """An optional package that the requested feature needs is not installed."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 round``, ``2 rounds``; `plural` where it takes more than an s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean `rounds`?`` or an empty string.

    Parameters
    ----------
    name : str
        What was written.
    known : Iterable[str]
        What would have been accepted.
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{match[0]}`?" if match else ""


def likely(name: str, known: Iterable[str]) -> str:
    """Return the hint of `nearest`, or else all names that are known, if a user may well want to see them."""
    names = list(known)
    return nearest(name, names) or f"; known here are {', '.join(names) or 'no keys'}"
