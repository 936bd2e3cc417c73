"""What a check of a site found, and how a list of it reads in a log."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedfair.errors import FedfairError

_WIDTH = 100
_INDENT = " " * 27


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    ok : bool | None
        True: fine; False: the site cannot take part like this; None: worth a note, or not checked.
    name : str
        What was looked at.
    found : str
        What was found; never a value from a record.
    fix : str
        What to do, one sentence; empty when all is well.
    """

    ok: bool | None
    name: str
    found: str
    fix: str = ""


def attempt(name: str, work: Callable[[], str], fix: str) -> Finding:
    """Return what `work` tells, or the failure that its error tells."""
    try:
        return Finding(True, name, work())
    except (FedfairError, OSError) as error:
        return Finding(False, name, str(error), fix)


def render(findings: Sequence[Finding]) -> str:
    """Return the findings as a table of plain text, each with what to do about it, and a count."""
    lines: list[str] = []
    for finding in findings:
        state = {True: "ok", False: "FAIL", None: "note"}[finding.ok]
        lines += _wrapped(f"{state:<5} {finding.name:<20} ", finding.found)
        if finding.fix:
            lines += _wrapped(f"{_INDENT[:-3]}-> ", finding.fix)
    count = {ok: sum(finding.ok is ok for finding in findings) for ok in (True, False, None)}
    lines.append(f"{count[True]} ok, {count[False]} to mend, {count[None]} to note")
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()) or "-", _WIDTH, initial_indent=head, subsequent_indent=_INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
