"""Tables and .npz files joined: one entry per file, and everything that does not fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedfair.data.eye.aliases import AGE, FILENAME, Field, age_of, split_of
from fedfair.data.eye.index import Facts
from fedfair.data.eye.layout import Layout, NpzFile, name_of, split_folder
from fedfair.data.eye.profiles import ARRAYS
from fedfair.data.table import read_csv
from fedfair.errors import DataError

_USE = ("use", "file_type")
Row = Mapping[str, str]


class Problem(NamedTuple):
    """What does not hold: a sentence's "x must be y", and the file or table row that breaks it."""

    must: str
    file: str


class Entry(NamedTuple):
    """One record: its file, split, label and attributes; None where nobody knows.

    `seen` says which array modalities it has: an empty array is none. `rows` are its rows in the tables of
    records, `facts` what its file says.
    """

    file: NpzFile
    split: int | None
    label: int | None
    attributes: Mapping[str, int | None]
    age: float | None
    seen: frozenset[str]
    rows: tuple[Row, ...]
    facts: Facts


@dataclass(frozen=True)
class Joined:
    """The records of one disease.

    Attributes
    ----------
    entries : tuple[Entry, ...]
        Every file that can be read, by path.
    problems : tuple[Problem, ...]
        What does not fit together.
    no_file, no_row : tuple[str, ...]
        Names of rows without a file, and paths of files without a row in any table of records.
    """

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    no_file: tuple[str, ...]
    no_row: tuple[str, ...]


class Tables(NamedTuple):
    """The rows of all tables of records and of splits, by the name of their file, and what is wrong there."""

    records: tuple[Mapping[str, Row], ...]
    splits: tuple[Mapping[str, Row], ...]
    problems: tuple[Problem, ...]


class Wanted(NamedTuple):
    """The label, attributes and array modalities to read, and whether age and split are to be."""

    label: Field
    attributes: Sequence[Field]
    arrays: Collection[str]
    age: bool = True
    split: bool = True


def rows_of(layout: Layout, table: str) -> list[dict[str, str]]:
    """Return a table's rows, column names in lower case.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    rows = read_csv(layout.root / table, f"`{table}`")
    return [{column.casefold(): cell for column, cell in row.items()} for row in rows]


def by_name(layout: Layout, table: str) -> tuple[dict[str, Row], list[Problem]]:
    """Return a table's rows by the name of their file, and rows that stand twice.

    Raises
    ------
    DataError
        If it cannot be read or has no column `filename`.
    """
    rows = rows_of(layout, table)
    column = next((key for key in FILENAME if key in rows[0]), None)
    if column is None:
        raise DataError(f"`{table}` must have a column `filename`, got {len(rows[0])} other columns")
    names = [name_of(row[column]) for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems = [Problem(f"each `filename` must stand once in `{table}`", name) for name in twice]
    return dict(zip(names, rows, strict=True)), problems


def read_tables(layout: Layout) -> Tables:
    """Return the rows of a layout's tables.

    Raises
    ------
    DataError
        If one cannot be read.
    """
    problems: list[Problem] = []
    read: dict[str, dict[str, Row]] = {}
    for table in (*layout.records, *layout.splits):
        read[table], found = by_name(layout, table)
        problems += found
    return Tables(
        tuple(read[table] for table in layout.records),
        tuple(read[table] for table in layout.splits),
        tuple(problems),
    )


def join(layout: Layout, tables: Tables, facts: Mapping[str, Facts], wanted: Wanted) -> Joined:
    """Return the records of a layout.

    Parameters
    ----------
    layout, tables, facts
        The files, what the tables say of them, and what they say themselves.
    wanted : Wanted
        What is read; nothing else can be wrong.
    """
    problems = [*tables.problems, *_twice(layout.files)]
    entries = []
    for file in layout.files:
        found = facts[file.path]
        if found.problem:
            problems.append(Problem(found.problem, file.path))
            continue
        rows = tuple(table[file.name] for table in tables.records if file.name in table)
        uses = (*rows, *(table[file.name] for table in tables.splits if file.name in table))
        reader = _Reader(file, (*rows, found.values), problems)
        entries.append(
            Entry(
                file,
                reader.split(split_folder(layout, file), uses) if wanted.split else None,
                reader.code(wanted.label),
                {field.name: reader.code(field) for field in wanted.attributes},
                reader.age() if wanted.age else None,
                frozenset(name for name in wanted.arrays if reader.has(name, found)),
                rows,
                found,
            )
        )
    names = {file.name for file in layout.files}
    listed = {name for table in tables.records for name in table}
    no_row = [file.path for file in layout.files if tables.records and file.name not in listed]
    return Joined(tuple(entries), tuple(problems), tuple(sorted(listed - names)), tuple(no_row))


def absent(key: str) -> str:
    """Return what is wrong with a file that lacks a member."""
    return f"`{key}` must be in the .npz file"


def _twice(files: Sequence[NpzFile]) -> Iterator[Problem]:
    """Yield the files that share their name: a patient would be in two splits."""
    count = Counter(file.name for file in files)
    for file in files:
        if count[file.name] > 1:
            yield Problem("each name must be that of one .npz file, whatever its split", file.path)


class _Reader:
    """Reads one record from its sources, noting what does not fit."""

    def __init__(self, file: NpzFile, sources: tuple[Row, ...], problems: list[Problem]) -> None:
        self.file, self.sources, self.problems = file, sources, problems

    def note(self, must: str) -> None:
        self.problems.append(Problem(must, self.file.path))

    def code(self, field: Field) -> int | None:
        """Return the code that the sources agree on."""
        keys = [(source, key) for source in self.sources if (key := field.find(source)) is not None]
        if not keys:
            self.note(f"`{field.name}` must be in a table or the .npz file, as {' or '.join(field.keys)}")
            return None
        try:
            codes = {field.code(source[key]) for source, key in keys} - {None}
        except DataError as error:
            self.note(str(error))
            return None
        if len(codes) > 1:
            self.note(f"`{field.name}` must be the same in the tables and the .npz file")
            return None
        return next(iter(codes), None)

    def split(self, folder: int | None, uses: Sequence[Row]) -> int | None:
        """Return the split that folder and tables agree on."""
        try:
            named = {split_of(row[key]) for row in uses for key in _USE if key in row}
        except DataError as error:
            self.note(str(error))
            return None
        codes = (named | {folder}) - {None}
        if len(codes) > 1:
            self.note("the split must be the same by folder and by table")
            return None
        return next(iter(codes), None)

    def age(self) -> float | None:
        """Return the age of the first source that knows it."""
        try:
            ages = [age_of(source[key]) for source in self.sources for key in AGE if key in source]
        except DataError as error:
            self.note(str(error))
            return None
        return next((age for age in ages if age is not None), None)

    def has(self, name: str, facts: Facts) -> bool:
        """Return whether the file has an array modality, noting an absent or misshapen one."""
        array = ARRAYS[name]
        shape = facts.shapes.get(array.key)
        if shape is None:
            self.note(absent(array.key))
            return False
        if 0 in shape:
            return False
        if len(shape) != len(array.axes):
            self.note(f"`{array.key}` must be [{', '.join(array.axes)}]")
            return False
        return True
