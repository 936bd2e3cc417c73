"""Counts told so that no number of 1 to 9 people can be had from all that is told together.

Told are tables of one attribute each, and tables of two. Whoever reads them knows the total, and every exact
margin. Below, a world is another set of records that would show the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SMALLEST = 10
"""Fewer people than this are not counted out; nobody at all is told as 0."""

FEW, MANY, WITHHELD = f"<{SMALLEST}", f"{SMALLEST} or more", "withheld"

Counts = NDArray[np.int64]


def told(counts: Mapping[str, int]) -> dict[str, str]:
    """Return counts of disjoint groups that together are everybody.

    Beside a small count the others are only ``10 or more``. It is then any of 1 to 9, since another group can
    make up for it, unless there are too few people for that: then nothing is told.

    Parameters
    ----------
    counts : Mapping[str, int]
        People per group, each in one.
    """
    small = [name for name, count in counts.items() if 0 < count < SMALLEST]
    if not small:
        return {name: f"{count:,}" for name, count in counts.items()}
    large = sum(count >= SMALLEST for count in counts.values())
    if not large or sum(counts.values()) < SMALLEST * large + (SMALLEST - 1) + (len(small) - 1):
        return dict.fromkeys(counts, WITHHELD)
    return {name: "0" if count == 0 else FEW if name in small else MANY for name, count in counts.items()}


def all_large(table: Counts) -> bool:
    """Return whether a table [rows, columns] may be told as it is: no cell below 10.

    Rows and columns without anybody are left out before. A table that is not told keeps ten possible values
    or more in each small cell: by the Frechet bounds they are ``min(a, b, n - a, n - b) + 1`` for a cell with
    margins a and b, which are 10 or more or themselves only known to a range of nine.
    """
    return bool((table >= SMALLEST).all())


def may_band(cells: Counts) -> bool:
    """Return whether a table of two attributes may be told as ``<10`` and ``10 or more``.

    Let two people of one class trade their second attribute: one of row r and column c', one of row r' and
    column c. The margins and all tables by class stay, and four cells move by one. So a small cell (r, c)
    can be any of 0 to 9 in some world if some (r', c') gives three cells that stay at 10 or more, and enough
    such pairs.

    Parameters
    ----------
    cells : Counts
        [rows, columns, classes] people, of rows and columns with somebody.
    """
    table = cells.sum(axis=-1)
    return all(_is_free(cells, r, c) for r, c in np.argwhere(table < SMALLEST).tolist())


def _is_free(cells: Counts, r: int, c: int) -> bool:
    """Return whether a small cell can be any of 0 to 9."""
    table, most = cells.sum(axis=-1), SMALLEST - 1
    for r2 in range(len(table)):
        for c2 in range(table.shape[1]):
            if r2 == r or c2 == c or min(table[r, c2], table[r2, c], table[r2, c2]) < SMALLEST + most:
                continue
            up = np.minimum(cells[r, c2], cells[r2, c]).sum()
            down = np.minimum(cells[r, c], cells[r2, c2]).sum()
            if up >= most and down >= table[r, c]:
                return True
    return False
