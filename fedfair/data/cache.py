"""Images kept between runs: one file of 8-bit codes per modality of a site, mapped and never read whole.

A file is an .npy array of codes, then a byte per record or slice that says what is there, then a seal over
all but the codes. It is written beside itself and renamed, so it is whole or not there; one that is cut or of
another form is built again. Only a folder that is the user's alone is read or written: who could change the
codes could change the images.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from fedfair.data.options import as_integer
from fedfair.data.pixels import Codes, Mask, Pixels
from fedfair.files import sync_folder

Paint = Callable[[int, Collection[str]], Mapping[str, Codes]]
"""Of a record's number and modalities: the codes of those that it has, of a volume the slices that it has."""

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


def key_of(*parts: object) -> str:
    """Return a hash of the parts' `repr`, which must tell all of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def user_cache() -> Path | None:
    """Return the user's own folder for what fedfair may forget, None without a home."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not chosen.is_absolute():  # the standard's word for no choice
        try:
            chosen = Path.home() / ".cache"
        except RuntimeError:
            return None
    return chosen / "fedfair"


def own_folder(folder: Path) -> None:
    """Make a folder that only its owner can look into, unless it is there.

    Raises
    ------
    OSError
        If it cannot be made, belongs to another user, or is open to others.
    """
    for place in (folder.parent, folder):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError(errno.EACCES, "the folder must be the user's alone (chmod 700)")


def as_workers(value: object, where: str) -> int:
    """Return how many threads paint: None for one per core, and never more than 8 or cores.

    The options may be another's, so they cannot ask a machine for more.

    Raises
    ------
    ConfigError
        If it is no integer of at least 1.
    """
    most = min(8, os.cpu_count() or 1)
    return most if value is None else min(most, as_integer(value, where, 1))


def images(
    wanted: Mapping[str, Wanted], count: int, paint: Paint, workers: int, folder: Path | None
) -> dict[str, Pixels]:
    """Return the images of every modality, from their files or painted anew.

    Parameters
    ----------
    wanted : Mapping[str, Wanted]
        By modality.
    count : int
        n records.
    paint : Paint
        Called from several threads, for those records and modalities that no file has.
    workers : int
        Threads: decompressing, resizing and large arrays leave Python to others.
    folder : Path | None
        Of the files. None, or a folder that cannot be written in or is not the user's alone, keeps the images
        in memory.
    """
    forms = {name: _Format(want, count) for name, want in wanted.items()}
    found: dict[str, Pixels] = {}
    place = None
    if folder is not None and count:
        with _told(folder):
            own_folder(folder)
            place = folder
    if place is not None:
        read = {name: form.opened(place) for name, form in forms.items()}
        found = {name: own for name, own in read.items() if own is not None}
    if left := {name: form for name, form in forms.items() if name not in found}:
        found |= _painted(left, count, paint, workers, place)
    return {name: found[name] for name in wanted}


def _painted(
    forms: Mapping[str, _Format], count: int, paint: Paint, workers: int, folder: Path | None
) -> dict[str, Pixels]:
    with contextlib.ExitStack() as stack:
        canvases = {name: stack.enter_context(_Canvas(form, folder)) for name, form in forms.items()}

        def fill(record: int) -> None:
            for name, codes in paint(record, canvases.keys()).items():
                canvases[name].put(record, codes)

        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(fill, range(count)):
                pass
    return {name: canvas.pixels() for name, canvas in canvases.items()}


class _Format:
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


class _Canvas:
    """Where codes are painted: a file that takes its place when all are there, or memory."""

    def __init__(self, form: _Format, folder: Path | None) -> None:
        self.form, self.folder = form, folder
        self.seen: Mask = np.zeros(form.seen_shape, np.bool_)
        self.file: BinaryIO | None = None
        if folder is not None:
            with _told(folder):
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
        with _told(self.folder), self.file:
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


def _sweep(folder: Path, form: _Format) -> None:
    """Remove images that are out of date, and what killed builders have left; those that live hold a lock."""
    for path in folder.glob(f"{form.stem}*.npy"):
        if path.name != form.name:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"{form.stem}*{_PARTIAL}"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
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
