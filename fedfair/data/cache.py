"""Images kept between runs: one file of 8-bit codes per modality of a site, mapped and never read whole.

A file is an .npy array of codes, then a byte per record or slice that says what is there, then a seal over
all but the codes. It is written beside itself and renamed, so it is whole or not there; one that is cut or of
another form is built again. Only a folder that is the user's alone is read or written: who could change the
codes could change the images.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedfair.data.cache_file import Canvas, Format, Wanted, told
from fedfair.data.options import as_integer
from fedfair.data.pixels import Codes, Pixels

Paint = Callable[[int, Collection[str]], Mapping[str, Codes]]
"""Of a record's number and modalities: the codes of those that it has, of a volume the slices that it has."""


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
    forms = {name: Format(want, count) for name, want in wanted.items()}
    found: dict[str, Pixels] = {}
    place = None
    if folder is not None and count:
        with told(folder):
            own_folder(folder)
            place = folder
    if place is not None:
        read = {name: form.opened(place) for name, form in forms.items()}
        found = {name: own for name, own in read.items() if own is not None}
    if left := {name: form for name, form in forms.items() if name not in found}:
        found |= _painted(left, count, paint, workers, place)
    return {name: found[name] for name in wanted}


def _painted(
    forms: Mapping[str, Format], count: int, paint: Paint, workers: int, folder: Path | None
) -> dict[str, Pixels]:
    with contextlib.ExitStack() as stack:
        canvases = {name: stack.enter_context(Canvas(form, folder)) for name, form in forms.items()}

        def fill(record: int) -> None:
            for name, codes in paint(record, canvases.keys()).items():
                canvases[name].put(record, codes)

        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(fill, range(count)):
                pass
    return {name: canvas.pixels() for name, canvas in canvases.items()}
