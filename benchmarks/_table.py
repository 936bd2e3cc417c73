"""Tables of results: on the terminal, and between markers in a page of docs/."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfair.provenance import versions

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Table:
    """A table in Markdown.

    Attributes
    ----------
    name : str
        Of the markers ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` around it.
    columns : Sequence[str]
        Headings.
    rows : Sequence[Sequence[str]]
        Cells.
    page : str
        Of docs/, where the markers are.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    page: str = "performance.md"

    def __str__(self) -> str:
        """Return the table with aligned columns."""
        cells = [list(self.columns), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        lines = [
            " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
        ]
        return "\n".join(f"| {line} |" for line in lines)


def machine() -> str:
    """Return one sentence on what the numbers were measured with; it names no host and no user."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("torch", "flwr", "numpy"))
    return (
        f"Measured on {datetime.date.today().isoformat()}: {cores} cores of {_processor()}, "
        f"Python {found['python']}, {packages}."
    )


def write(table: Table) -> None:
    """Put the table and the machine between its markers.

    Raises
    ------
    LookupError
        If the page has no such markers.
    """
    begin, end = f"<!-- begin {table.name} -->", f"<!-- end {table.name} -->"
    page = DOCS / table.page
    text = page.read_text(encoding="utf-8")
    block = f"{begin}\n{table}\n\n{machine()}\n{end}"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not found.search(text):
        raise LookupError(f"{page.name} must hold the markers {begin} and {end}, got neither or one")
    page.write_text(found.sub(lambda _: block, text), encoding="utf-8")


def milliseconds(seconds: float) -> str:
    """Return a time for a table."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
