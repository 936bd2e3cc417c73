"""Where a release's files are, whatever its age: .npz files by split and disease, and what each table is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fedfair.data.eye.aliases import DISEASES, SPLITS
from fedfair.data.eye.profiles import Profile
from fedfair.errors import DataError

_DEPTH = 6
_DISEASE = "|".join(DISEASES)
_RECORDS = re.compile(rf"(?:data_summary|meta)(?:_all)?(?:_({_DISEASE}))?|({_DISEASE})_meta")
_SITES = re.compile(r"meta_(site[^_]+)_([a-z]+?)(?:_(train|test))?")
_TEXTS = {
    "gpt4_summary": re.compile(r"gpt-?4_summari[sz]ed_notes"),
    "note": re.compile(r"original_notes"),
}
_SPLIT_TABLE = "split_files"


class NpzFile(NamedTuple):
    """One .npz file: path from the data set's folder, name without ending, size and time of change."""

    path: str
    name: str
    size: int
    mtime_ns: int


class SiteTable(NamedTuple):
    """A table that says which files are a site's: its attribute's family and its side, if it is of one."""

    path: str
    site: str
    family: str
    side: str | None


class Tree(NamedTuple):
    """All .npz files, tables and packed archives under a folder, sorted by path."""

    root: Path
    files: tuple[NpzFile, ...]
    tables: tuple[str, ...]
    archives: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The files of one disease of a data set, and what its tables are for; paths start at `root`.

    Attributes
    ----------
    root : Path
        The data set's folder.
    files : tuple[NpzFile, ...]
        Every .npz file.
    records : tuple[str, ...]
        Tables with a row per record; where two have a column, both must agree.
    splits : tuple[str, ...]
        Tables that name the split alone.
    texts : Mapping[str, str]
        Tables of notes, by what they hold.
    sites : tuple[SiteTable, ...]
        Tables that name a site's files.
    unused : tuple[str, ...]
        Tables that are none of these.
    """

    root: Path
    files: tuple[NpzFile, ...]
    records: tuple[str, ...]
    splits: tuple[str, ...]
    texts: Mapping[str, str]
    sites: tuple[SiteTable, ...]
    unused: tuple[str, ...]

    @property
    def tables(self) -> tuple[str, ...]:
        """Return every table that is read."""
        sites = tuple(table.path for table in self.sites)
        return (*self.records, *self.splits, *sorted(self.texts.values()), *sites)


def scan(path: str | Path) -> Tree:
    """Return what is under a folder, six folders deep; links are followed, each folder once.

    Raises
    ------
    DataError
        If it is no folder that can be listed.
    """
    root = Path(path).absolute()  # its own name may be that of a disease or a split
    files: list[NpzFile] = []
    others: dict[str, list[str]] = {"csv": [], "zip": []}
    try:
        for relative, entry in _walk(root, "", _DEPTH, set()):
            stem, _, ending = entry.name.casefold().rpartition(".")
            if ending == "npz":
                status = entry.stat()
                files.append(NpzFile(relative, stem, status.st_size, status.st_mtime_ns))
            elif ending in others:
                others[ending].append(relative)
    except OSError as error:
        raise DataError(
            f"`data.path` must be a folder that can be listed, got {str(root)!r}: {error.strerror}"
        ) from error
    return Tree(root, tuple(sorted(files)), tuple(sorted(others["csv"])), tuple(sorted(others["zip"])))


def diseases_in(tree: Tree, profile: Profile) -> tuple[str, ...]:
    """Return the diseases that the .npz files or tables under a folder are of, by their folders and names."""
    if len(profile.diseases) == 1:
        return tuple(profile.diseases)
    named = {_disease_of(tree.root, file.path) for file in tree.files}
    if named == {None}:
        named = {_table_disease(tree.root, table) for table in (*tree.tables, *_beside(tree.root))}
    return tuple(disease for disease in profile.diseases if disease in named)


def names_of_diseases(tree: Tree) -> set[str]:
    """Return the diseases that tables, or folders below the root, are named after."""
    tables = (_RECORDS.fullmatch(_stem(table)) for table in tree.tables or _beside(tree.root))
    folders = {part for file in tree.files for part in file.path.casefold().split("/")[:-1]}
    return {*folders, *(name for match in tables if match for name in match.groups() if name)} & {*DISEASES}


def find_layout(tree: Tree, profile: Profile, disease: str) -> Layout:
    """Return the files and tables of one disease.

    Raises
    ------
    DataError
        If there is no .npz file of it.
    """
    alone = len(profile.diseases) == 1
    folders = {file: _disease_of(tree.root, file.path) for file in tree.files}
    # Under a folder that names no disease at all, everything is of the one asked for.
    any_named = not alone and any(folders.values())
    files = tuple(file for file, found in folders.items() if not any_named or found == disease)
    if not files:
        raise DataError(
            f"`data.path` must hold .npz files of {profile.title}, {disease}, got none under "
            f"{str(tree.root)!r} ({len(tree.tables)} tables); looked for {profile.expected}"
        )
    tables = [t for t in tree.tables if alone or _table_disease(tree.root, t) in {disease, None}]
    if not any(_is_records(table) for table in tables) and not alone:
        tables += [table for table in _beside(tree.root) if _table_disease(tree.root, table) == disease]
    return _sorted_out(tree.root, files, tables)


def split_folder(layout: Layout, file: NpzFile) -> int | None:
    """Return the official split that a file's folders name, None if they name none."""
    named = [SPLITS[part] for part in _folders(layout.root, file.path) if part in SPLITS]
    return named[-1] if named else None


def name_of(cell: str) -> str:
    """Return the name that a table's `filename` stands for: no folder, no ending, lower case."""
    return PurePosixPath(cell.strip().replace("\\", "/")).name.casefold().removesuffix(".npz")


def _walk(
    root: Path, below: str, depth: int, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file under a folder with its path from the root."""
    status = (root / below).stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(root / below) as entries:
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield relative, entry
            elif entry.is_dir() and depth > 1:
                yield from _walk(root, relative, depth - 1, seen)


def _folders(root: Path, path: str) -> tuple[str, ...]:
    """Return the folders that a file lies in, the data set's own first, in lower case."""
    return tuple(f"{root.name}/{path}".casefold().split("/")[:-1])


def _disease_of(root: Path, path: str) -> str | None:
    """Return the disease that a file's folders name, the innermost of them."""
    return next((part for part in reversed(_folders(root, path)) if part in DISEASES), None)


def _stem(table: str) -> str:
    return PurePosixPath(table).stem.casefold()


def _is_records(table: str) -> bool:
    return _RECORDS.fullmatch(_stem(table)) is not None


def _table_disease(root: Path, table: str) -> str | None:
    """Return the disease that a table's name says, or else its folders."""
    match = _RECORDS.fullmatch(_stem(table))
    named = next(filter(None, match.groups()), None) if match else None
    return named or _disease_of(root, table)


def _beside(root: Path) -> tuple[str, ...]:
    """Return the record tables beside a folder: where PATH is that of one disease, its table lies there."""
    try:
        names = sorted(path.name for path in root.parent.glob("*.[cC][sS][vV]"))
    except OSError:
        return ()
    return tuple(f"../{name}" for name in names if _is_records(name))


def _sorted_out(root: Path, files: tuple[NpzFile, ...], tables: list[str]) -> Layout:
    """Return the layout, each table where it belongs."""
    records, splits, unused = [], [], []
    texts: dict[str, str] = {}
    sites = []
    for table in tables:
        stem = _stem(table)
        kind = next((kind for kind, pattern in _TEXTS.items() if pattern.fullmatch(stem)), None)
        if kind is not None:
            texts.setdefault(kind, table)
        elif _is_records(table):
            records.append(table)
        elif stem == _SPLIT_TABLE:
            splits.append(table)
        elif match := _SITES.fullmatch(stem):
            sites.append(SiteTable(table, match[1], match[2], match[3]))
        else:
            unused.append(table)
    return Layout(root, files, tuple(records), tuple(splits), texts, tuple(sites), tuple(unused))
