"""Members of .npz files, read one at a time: to know a record's groups, no image is decompressed.

An .npz file is a zip archive of .npy members. Nothing is unpickled, ever: an early release keeps texts as
pickled objects, and those are recognised by comparing their opcodes with those of a text, not run.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import math
import pickle
import pickletools
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import DataError

_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError)
_REFUSED = (NotImplementedError, RuntimeError)  # what zipfile raises for an encrypted member
_LARGEST_TEXT = 1 << 16
_LARGEST_ARRAY = 1 << 28
_VALUE = "\x00value"

Token = tuple[str, object]


class Header(NamedTuple):
    """What the first bytes of an .npy member say."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file.

    Raises
    ------
    DataError
        If it is no archive, is cut short, or what is read of it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (*_DAMAGED, *_REFUSED) as error:
        raise DataError("the .npz file must be whole and readable") from error


def keys_of(archive: zipfile.ZipFile) -> tuple[str, ...]:
    """Return the keys of an archive."""
    return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def shape_of(archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    """Return the shape of a member that must be numbers, from its first bytes.

    Raises
    ------
    DataError
        If it is damaged, no array of numbers, or shorter than its header says.
    """
    with _member(archive, key) as file:
        return _numbers(archive, key, file).shape


def array_of(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    """Return a member that must be numbers.

    Raises
    ------
    DataError
        If it is damaged, no array of numbers, or shorter than its header says.
    """
    with _member(archive, key) as file:
        header = _numbers(archive, key, file)
        # Reading on to the end lets zipfile compare the checksum.
        flat = np.frombuffer(file.read(), header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")


def scalar_of(archive: zipfile.ZipFile, key: str) -> str:
    """Return a member that must be one number or text, as text.

    Raises
    ------
    DataError
        If it is damaged, more than one value, or a pickled object that is no text.
    """
    with _member(archive, key) as file:
        header = _header(file)
        size = header.dtype.itemsize
        if math.prod(header.shape) != 1 or header.dtype.kind not in "buifUSO" or size > _LARGEST_TEXT:
            raise DataError(f"`{key}` must be one value")
        if header.dtype.hasobject:
            return _pickled_text(key, file.read(_LARGEST_TEXT))
        # One byte more than there should be: at the end, zipfile compares the checksum.
        return _told(np.frombuffer(file.read(size + 1), header.dtype, 1)[0]) if size else ""


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, key: str) -> Iterator[IO[bytes]]:
    """Open a member, whose damage is told by its key."""
    try:
        with archive.open(f"{key}.npy") as file:
            yield file
    except (*_DAMAGED, *_REFUSED) as error:
        raise DataError(f"`{key}` must be whole and readable") from error


def _header(file: IO[bytes]) -> Header:
    """Return a member's header, leaving `file` at its first value."""
    start = file.read(10)
    if len(start) < 10 or not start.startswith(np.lib.format.MAGIC_PREFIX) or start[6] not in (1, 2):
        raise ValueError("no .npy member")
    if start[6] == 2:
        start += file.read(2)
        (length,) = struct.unpack("<I", start[8:])
    else:
        (length,) = struct.unpack("<H", start[8:])
    return _parsed(start + file.read(min(length, _LARGEST_TEXT)))


@lru_cache(maxsize=1024)
def _parsed(start: bytes) -> Header:
    """Return what the bytes before the first value say; few differ between files."""
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
    try:
        return Header(*read(file))
    except (tokenize.TokenError, SyntaxError, TypeError, RecursionError) as error:  # NumPy lets these pass
        raise ValueError("no header") from error


def _numbers(archive: zipfile.ZipFile, key: str, file: IO[bytes]) -> Header:
    """Return the header of a member that must be numbers, all of them there."""
    header = _header(file)
    if header.dtype.kind not in "buif" or math.prod(header.shape) > _LARGEST_ARRAY:
        raise DataError(f"`{key}` must be an array of at most {_LARGEST_ARRAY} numbers")
    size = math.prod(header.shape) * header.dtype.itemsize
    if archive.getinfo(f"{key}.npy").file_size != file.tell() + size:
        raise ValueError("cut short")
    return header


def _told(value: object) -> str:
    """Return one value as text, truth values as 0 and 1."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value)) if isinstance(value, np.bool_) else str(value)


def _pickled_text(key: str, data: bytes) -> str:
    """Return the text of a pickled array of one text, without running the pickle."""
    try:
        tokens = _tokens(data)
    except (ValueError, IndexError) as error:
        raise DataError(f"`{key}` must be whole and readable") from error
    for template in _templates():
        place = template.index(next(token for token in template if token[1] == _VALUE))
        text = tokens[place][1] if len(tokens) == len(template) else None
        if isinstance(text, str) and (*tokens[:place], template[place], *tokens[place + 1 :]) == template:
            return text
    raise DataError(
        f"`{key}` must be a number or a text, not another pickled object, which could run code; save it as a "
        "plain value"
    )


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[Token, ...], ...]:
    """Return the opcodes of an array of one text, alone and in a list of length 1, per pickle protocol."""
    arrays = (np.array(_VALUE, dtype=object), np.array([_VALUE], dtype=object))
    return tuple(_tokens(pickle.dumps(array, protocol)) for array in arrays for protocol in (2, 3, 4))


def _tokens(data: bytes) -> tuple[Token, ...]:
    """Return a pickle's opcodes and arguments, leaving out what only says how long or how new it is."""
    found = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in {"PROTO", "FRAME"}:
            # The module moved in NumPy 2.
            told = argument.replace("numpy._core", "numpy.core") if isinstance(argument, str) else argument
            name = "UNICODE" if opcode.name.endswith("BINUNICODE") else opcode.name
            found.append((name, told))
    return tuple(found)
