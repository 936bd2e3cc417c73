"""Files and folders that are there whole or not at all, and never readable by others for an instant."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedfair.errors import RunError

PRIVATE = 0o600
PUBLIC = 0o644
PROGRAM = 0o755
PRIVATE_FOLDER = 0o700


def write_new(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write a file that does not exist yet, with its mode from the first byte (the umask narrows it).

    Raises
    ------
    FileExistsError
        If there is one already; a link counts.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def replace(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Write a file in one step: whoever reads sees the old one or the new one, never a part."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_new(fresh, data, mode)
    fresh.replace(path)


@contextlib.contextmanager
def whole_folder(target: Path, key: str) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `target` when all went well, else vanishes.

    Parameters
    ----------
    target : Path
        The folder to make; its parent exists.
    key : str
        What the message calls it.

    Raises
    ------
    RunError
        If `target` exists or cannot be made.
    """
    if target.exists() or target.is_symlink():
        raise RunError(f"`{key}` must be a folder that does not exist yet, got {target}; name another")
    try:
        scratch = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
    except OSError as error:
        raise RunError(
            f"`{key}` must lie in a folder that can be written to, got {target}: {error}"
        ) from error
    with scratch:
        folder = Path(scratch.name) / target.name
        folder.mkdir(mode=PRIVATE_FOLDER)
        yield folder
        folder.rename(target)
