"""Clinical notes, or their summaries: from a table's column, a table by position, or the .npz file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedfair.data.eye.layout import Layout, name_of
from fedfair.data.eye.records import Entry
from fedfair.data.eye.scalars import opened, scalar_of
from fedfair.data.table import read_csv
from fedfair.errors import DataError

SUMMARY, FULL, EXTRA = "gpt4_summary", "note", "note_extra"
TEXT_FIELDS = (SUMMARY, FULL, EXTRA)
SUMMARY_LENGTH = 180
"""Characters of a summary that are read, as FairCLIP (arXiv 2403.19949) cuts it for CLIP's 77 tokens."""

_NAME, _TEXT = 0, 2  # positions in a table of notes, as the authors read it


def texts_by_table(layout: Layout, field: str) -> dict[str, str]:
    """Return the texts of a table of notes, by the name of their file; empty without such a table.

    Raises
    ------
    DataError
        If it cannot be read, or has fewer than three columns.
    """
    table = layout.texts.get(field)
    if table is None:
        return {}
    rows = [list(row.values()) for row in read_csv(layout.root / table, f"`{table}`")]
    if len(rows[0]) <= _TEXT:
        raise DataError(
            f"`{table}` must have the file name in column 1 and the text in column 3, got {len(rows[0])} "
            "columns"
        )
    return {name_of(row[_NAME]): row[_TEXT] for row in rows}


def has_text(entry: Entry, field: str, texts: Mapping[str, str]) -> bool:
    """Return whether a record has a text, as far as can be told without opening its file."""
    return bool(_by_table(entry, field, texts)) or field in entry.facts.noted


def text_of(root: Path, entry: Entry, field: str, texts: Mapping[str, str]) -> str | None:
    """Return a record's text as it is used, None where it has none.

    A column of the tables of records comes before a table of notes, and that before the .npz file. A summary
    is cut after the last word that ends within `SUMMARY_LENGTH` characters.

    Raises
    ------
    DataError
        If the .npz file must be read and is damaged.
    """
    text = _by_table(entry, field, texts)
    if not text and field in entry.facts.noted:
        with opened(root / entry.file.path) as archive:
            text = scalar_of(archive, field).strip()
    return (cut(text, SUMMARY_LENGTH) if field == SUMMARY else text) or None


def _by_table(entry: Entry, field: str, texts: Mapping[str, str]) -> str:
    columns = (row[field] for row in entry.rows if row.get(field))
    return next(columns, texts.get(entry.file.name, "")).strip()


def cut(text: str, length: int) -> str:
    """Return the words of a text that end within `length` characters; a longer first word is cut through."""
    if len(text) <= length:
        return text
    words, space, _ = text[: length + 1].rpartition(" ")
    return words.rstrip() if space else text[:length]
