"""Files that are there as a whole, or not at all, whenever the power fails."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

from fedfair.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step; it is on the disk when this returns.

    Parameters
    ----------
    path : Path
        In a folder that exists; a file there stays as it was until the new one is whole.
    content : bytes
        Of the new file.
    """
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a file to write and to read, which takes the place of `path` in one step if no error is raised.

    Parameters
    ----------
    path : Path
        In a folder that exists; a file there stays as it was until the new one is whole.
    """
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; it is on the disk when this returns, and may be cut if it never does."""
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: a file that is new or renamed is safe only then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep other servers out of a folder: two would write over each other.

    Raises
    ------
    RunError
        If another one works in it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"one server at a time may work in {folder}, and one does; stop it") from error
        yield
