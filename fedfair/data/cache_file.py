"""The file of one modality's codes: how it begins and ends, and where codes are painted until it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from fedfair.data.pixels import Codes, Mask, Pixels
from fedfair.files import sync_folder

_PARTIAL = ".partial"


class Wanted(NamedTuple):
    """The images of one modality.

    Attributes
    ----------
    shape : tuple[int, ...]
        Of a record.
    slices : bool
        Whether what is missing is said by slice (the first axis), else by record.
    place : str
        What the images are of. Another file of the same place is out of date, and removed.
    key : str
        Hash of everything that decides the codes, see `key_of`.
    """

    shape: tuple[int, ...]
    slices: bool
    place: str
    key: str


class Format:
    """What a file must begin and end with, and its names."""

    def __init__(self, want: Wanted, count: int) -> None:
        self.want, self.shape = want, (count, *want.shape)
        self.seen_shape = (count, want.shape[0] if want.slices else 1)
        start = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(start, about)
        self.start = start.getvalue()
        self.end = len(self.start) + math.prod(self.shape)

    @property
    def stem(self) -> str:
        """Return how the names of all files of the same place begin."""
        return hashlib.sha256(self.want.place.encode()).hexdigest()[:16] + "-"

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return f"{self.stem}{self.want.key[:32]}.npy"

    def tail(self, seen: bytes) -> bytes:
        """Return what stands behind the codes."""
        return seen + hashlib.sha256(self.start + seen + self.want.key.encode()).digest()

    def opened(self, folder: Path) -> Pixels | None:
        """Return the images of a file, of which no code is read; None if it is damaged or not there."""
        try:
            with (folder / self.name).open("rb") as file:
                start = file.read(len(self.start))
                file.seek(self.end)
                tail = file.read()
                seen = tail[: math.prod(self.seen_shape)]
                if start != self.start or tail != self.tail(seen):
                    return None
                codes = np.memmap(file, np.uint8, "r", len(self.start), self.shape)
        except (OSError, ValueError):
            return None
        return Pixels.of(np.asarray(codes), np.frombuffer(seen, np.bool_).reshape(self.seen_shape))


class Canvas:
    """Where codes are painted: a file that takes its place when all are there, or memory."""

    def __init__(self, form: Format, folder: Path | None) -> None:
        self.form, self.folder = form, folder
        self.seen: Mask = np.zeros(form.seen_shape, np.bool_)
        self.file: BinaryIO | None = None
        if folder is not None:
            with told(folder):
                self._begin(folder)
        if self.file is None:
            self.codes: Codes = np.zeros(form.shape, np.uint8)

    def _begin(self, folder: Path) -> None:
        """Reserve the room: to paint into a map of what a full disk cannot hold would end the process."""
        # Between its making and its locking, another builder would take a file for one left behind.
        with _alone(folder):
            _sweep(folder, self.form)
            handle, name = tempfile.mkstemp(_PARTIAL, self.form.stem, folder)
            file, self.path = os.fdopen(handle, "r+b"), Path(name)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            file.write(self.form.start)
            file.flush()
            os.posix_fallocate(handle, 0, self.form.end + len(self.form.tail(self.seen.tobytes())))
            self.codes = np.memmap(file, np.uint8, "r+", len(self.form.start), self.form.shape)
        except OSError:
            self.path.unlink()
            file.close()
            raise
        self.file = file

    def put(self, record: int, codes: Codes) -> None:
        """Paint a record, or the slices that it has."""
        self.codes[record, : len(codes)] = codes
        self.seen[record, : len(codes)] = True

    def pixels(self) -> Pixels:
        """Return what was painted, which nobody can change any more."""
        codes = self.codes.view(np.ndarray)
        codes.flags.writeable = False
        return Pixels.of(codes, self.seen)

    def __enter__(self) -> Self:
        """Return the canvas."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or remove it after an error."""
        if self.file is None or self.folder is None:
            return
        with told(self.folder), self.file:
            try:
                if kind is None:
                    self._finish(self.file, self.folder)
            finally:
                self.path.unlink(missing_ok=True)  # what has its name is not there any more

    def _finish(self, file: BinaryIO, folder: Path) -> None:
        if isinstance(self.codes, np.memmap):
            self.codes.flush()
        file.seek(self.form.end)
        file.write(self.form.tail(self.seen.tobytes()))
        file.flush()
        os.fsync(file.fileno())
        self.path.replace(folder / self.form.name)
        sync_folder(folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other builders waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(folder: Path, form: Format) -> None:
    """Remove images that are out of date, and what killed builders have left; those that live hold a lock."""
    for path in folder.glob(f"{form.stem}*.npy"):
        if path.name != form.name:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{form.stem}*{_PARTIAL}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Go on without a file where none can be written, and say why."""
    try:
        yield
    except OSError as error:
        _warn(folder, error.strerror or type(error).__name__)


@lru_cache(maxsize=256)
def _warn(folder: Path, reason: str) -> None:
    """Say it once per process, folder and cause, though every image of every site may meet it."""
    del folder  # not for a log
    logging.getLogger(__name__).warning("images are not kept on the disk: %s", reason)
