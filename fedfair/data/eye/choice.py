"""Which records can be used, and the refusal of what does not fit together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from fedfair.data.eye.ages import AGE_GROUP
from fedfair.data.eye.notes import has_text
from fedfair.data.eye.profiles import FIELD, NOTE
from fedfair.data.eye.records import Entry, Problem
from fedfair.data.eye.settings import Settings
from fedfair.errors import DataError

LISTED = "; `fedfair data check` lists them all"
MAY_MISS = "; add it, or set `data.options.allow_missing: true`"


def group_of(entry: Entry, name: str, settings: Settings) -> int | None:
    """Return a record's group of an attribute; None where nobody knows it and such records do not stay."""
    if name != AGE_GROUP:
        group = entry.attributes[name]
    else:
        group = None if entry.age is None else bisect_right(settings.age_edges, entry.age)
    return len(settings.groups[name]) - 1 if group is None and settings.keeps_unknown else group


def reason_against(entry: Entry, settings: Settings, texts: Mapping[str, str]) -> str | None:
    """Return why a record is left out: what nobody knows, or no chosen modality. None if it is in."""
    if entry.label is None:
        return "label unknown"
    for name in settings.attributes:
        if group_of(entry, name, settings) is None:
            return f"{name} unknown"
    text = NOTE in settings.modalities and has_text(entry, settings.text_field, texts)
    return None if entry.seen or text or FIELD in settings.modalities else "no modality"


def check_texts(entries: Sequence[Entry], settings: Settings, texts: Mapping[str, str]) -> None:
    """Refuse notes that no record has.

    Raises
    ------
    DataError
        Saying where they should be.
    """
    if NOTE in settings.modalities and not any(has_text(e, settings.text_field, texts) for e in entries):
        raise DataError(
            f"`{settings.text_field}` must be a column of data_summary.csv, a table of notes or a member of "
            "the .npz files, got it nowhere; add it or leave `note` out of `data.options.modalities`"
        )


def refuse(problems: Sequence[Problem], advice: str = LISTED) -> None:
    """Refuse data with a problem.

    Raises
    ------
    DataError
        On the first problem, with how many there are of its kind.
    """
    if problems:
        first = problems[0]
        count = sum(problem.must == first.must for problem in problems)
        raise DataError(f"{first.must}, got {count} otherwise, first {first.file}{advice}")
