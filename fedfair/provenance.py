"""What ran: a digest of the source files, and the versions of what they stand on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path

PACKAGES = ("fedfair", "torch", "numpy", "flwr")


@cache
def source_digest(root: Path) -> str:
    """Return a hash of the Python files of fedfair/, server/ and client/ under `root`.

    The server sends its own and a site refuses another one: a simulation worker that imported a
    different copy of the app would otherwise go unnoticed.
    """
    digest = hashlib.sha256()
    for folder in ("fedfair", "server", "client"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
