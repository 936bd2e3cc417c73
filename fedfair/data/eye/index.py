"""What each .npz file says of its record, read once: a cache knows it by path, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fedfair.data.cache import own_folder, user_cache
from fedfair.data.eye.aliases import AGE, ATTRIBUTES, DISEASES, LEAKS
from fedfair.data.eye.layout import NpzFile
from fedfair.data.eye.profiles import ARRAYS, NOTE
from fedfair.data.eye.scalars import keys_of, opened, scalar_of, shape_of
from fedfair.errors import DataError
from fedfair.files import write_atomically

CACHE = "index.json"
_VERSION = 1
# Reading is waiting, on a hospital's network drive most of all.
_READERS = 8
_SCALARS = (
    *(key for field in (*ATTRIBUTES.values(), *DISEASES.values()) for key in field.keys),
    *AGE,
)
_NOTED = (*LEAKS, NOTE)


class Facts(NamedTuple):
    """What one file holds, no image among it.

    Attributes
    ----------
    values : Mapping[str, str]
        Its scalar members of demographics and diagnosis, as text.
    shapes : Mapping[str, list[int]]
        The shapes of its image members.
    noted : list[str]
        Which members it has that say the label, or a note.
    problem : str
        Why it cannot be used; empty if it can.
    """

    values: Mapping[str, str]
    shapes: Mapping[str, list[int]]
    noted: list[str]
    problem: str


def facts_of(root: Path, files: Sequence[NpzFile], cache: Path | None) -> dict[str, Facts]:
    """Return the facts of every file, by path.

    Parameters
    ----------
    root : Path
        The data set's folder; nothing is written there.
    files : Sequence[NpzFile]
        The files.
    cache : Path | None
        A folder for `CACHE`, made if it can be; None keeps nothing. It holds the records' demographics and
        diagnoses, so others than the owner cannot look into it. A damaged cache is as good as none.
    """
    kept = {} if cache is None else _read_cache(cache)
    facts = {f.path: kept[_key(f)] for f in files if _key(f) in kept}
    new = [file for file in files if file.path not in facts]
    if new:
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda file: facts_of_file(root / file.path), new)
            facts.update(zip([file.path for file in new], read, strict=True))
        if cache is not None:
            paths = {file.path for file in files}
            others = {key: value for key, value in kept.items() if key.split(" ", 2)[2] not in paths}
            _write_cache(cache, others | {_key(file): facts[file.path] for file in files})
    return facts


def facts_of_file(path: Path) -> Facts:
    """Return the facts of one file; what cannot be read is told in `problem`."""
    values: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    try:
        with opened(path) as archive:
            keys = keys_of(archive)
            for key in _SCALARS:
                if key in keys:
                    values[key] = scalar_of(archive, key)
            for array in ARRAYS.values():
                if array.key in keys:
                    shapes[array.key] = list(shape_of(archive, array.key))
    except DataError as error:
        return Facts({}, {}, [], str(error))
    return Facts(values, shapes, [key for key in _NOTED if key in keys], "")


def default_cache(root: Path) -> Path | None:
    """Return the user's own folder for what is known of the files under `root`, None without a home."""
    base = user_cache()
    return None if base is None else base / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]


def _key(file: NpzFile) -> str:
    return f"{file.size} {file.mtime_ns} {file.path}"


def _read_cache(folder: Path) -> dict[str, Facts]:
    """Return what a cache holds; nothing if it is damaged, out of date, not the user's or not there."""
    try:
        own_folder(folder)
        content = json.loads((folder / CACHE).read_bytes())
        if content["version"] != _VERSION:
            return {}
        return {key: _checked(Facts(*facts)) for key, facts in content["files"].items() if key.count(" ") > 1}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _checked(facts: Facts) -> Facts:
    """Return facts as they are; raise `TypeError` if they are not what they should be."""
    texts = [*facts.values.items(), *((key, facts.problem) for key in (*facts.shapes, *facts.noted))]
    sizes = [size for shape in facts.shapes.values() for size in shape]
    if not all(type(x) is str for pair in texts for x in pair) or not all(type(x) is int for x in sizes):
        raise TypeError("not facts")
    return facts


def _write_cache(folder: Path, facts: Mapping[str, Facts]) -> None:
    """Keep facts for the next time; where nothing can be written, they are read again then."""
    content = json.dumps({"version": _VERSION, "files": facts}).encode()
    with contextlib.suppress(OSError):
        own_folder(folder)
        write_atomically(folder / CACHE, content)
