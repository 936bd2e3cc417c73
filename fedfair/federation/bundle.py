"""What the centre hands to one site: packed in one archive, opened with distrust.

The checksums find a damaged archive, not a forged one: whoever can change a file can change its
sum. That the bundle comes from the centre is for the way it travels to ensure.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from fedfair.errors import ConfigError
from fedfair.federation import units
from fedfair.federation.consortium import Consortium, slug
from fedfair.federation.files import PRIVATE, PROGRAM, PUBLIC, whole_folder, write_new
from fedfair.federation.keys import NodeKey
from fedfair.federation.settings import write_settings

SUMS = "SHA256SUMS"
MODES = {
    "site.yaml": PUBLIC,
    "ca.crt": PUBLIC,
    "node.key": PRIVATE,
    "node.pub": PUBLIC,
    "roster.txt": PUBLIC,
    "start.sh": PROGRAM,
    "compose.yaml": PUBLIC,
    "Dockerfile": PUBLIC,
    "fedfair-site.service": PUBLIC,
    "README.txt": PUBLIC,
    SUMS: PUBLIC,
}
"""The files of a bundle and their modes, which do not depend on what an archive says."""

# A bundle has some 20 kB; an archive that unpacks to more than this is none.
_LARGEST = 4 * 1024**2
_FOLDER = re.compile(r"[A-Za-z0-9-]+")


def folder_name(consortium: Consortium, site: str) -> str:
    """Return the name of a site's folder, which its bundle unpacks to."""
    return f"{consortium.name}-{slug(site)}"


def pack(consortium: Consortium, site: str, key: NodeKey, authority: bytes, roster: bytes) -> bytes:
    """Return the archive of one site's bundle; the same input gives the same bytes.

    Parameters
    ----------
    consortium : Consortium
        The federation.
    site : str
        One of its sites.
    key : NodeKey
        The site's key.
    authority : bytes
        The certificate that the site trusts, PEM.
    roster : bytes
        As `roster_text` gives it.
    """
    files = {
        "site.yaml": write_settings(consortium, site).encode(),
        "ca.crt": authority,
        "node.key": key.private,
        "node.pub": key.public,
        "roster.txt": roster,
        **{name: text.encode() for name, text in units.site_files(consortium, site).items()},
    }
    files[SUMS] = "".join(f"{_sum(files[name])}  {name}\n" for name in sorted(files)).encode()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, mode in MODES.items():
            member = tarfile.TarInfo(f"{folder_name(consortium, site)}/{name}")
            member.size, member.mode = len(files[name]), mode
            archive.addfile(member, io.BytesIO(files[name]))
    return gzip.compress(plain.getvalue(), mtime=0)


def open_bundle(path: Path, into: Path) -> Path:
    """Unpack a bundle into a new folder inside `into` and return that folder.

    A folder of that name that was made from the same bundle is returned as it is, with the
    settings that the hospital has made in it since.

    Parameters
    ----------
    path : Path
        The archive.
    into : Path
        The folder in which the site's folder is made.

    Raises
    ------
    ConfigError
        If it is damaged, is no bundle, or holds anything but the files of one; nothing is written.
    RunError
        If the folder cannot be made, or holds another site's key.
    """
    folder, files = _read(path)
    _check_sums(path, files)
    target = into / folder
    known = target / "node.pub"
    if known.is_file() and known.read_bytes() == files["node.pub"]:
        return target
    with whole_folder(target, f"the folder of {path.name}") as fresh:
        for name, mode in MODES.items():
            write_new(fresh / name, files[name], mode)
    return target


def _read(path: Path) -> tuple[str, Mapping[str, bytes]]:
    """Return the top folder's name and the content of the files, all in memory."""
    folders, files = set(), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_inflated(path))) as archive:
            for member in archive:
                folder, _, name = member.name.partition("/")
                fine = member.type == tarfile.REGTYPE and _FOLDER.fullmatch(folder) and name in MODES
                if not fine or name in files:
                    raise ConfigError(f"{path} must hold the files of a bundle alone, got {member.name!r}")
                content = archive.extractfile(member)
                files[name] = content.read() if content is not None else b""
                folders.add(folder)
    except tarfile.TarError as error:
        raise ConfigError(_damaged(path, error)) from error
    if missing := sorted(MODES.keys() - files.keys()):
        raise ConfigError(f"{path} must hold all files of a bundle, got none of {missing}; ask for it again")
    if len(folders) != 1:
        raise ConfigError(f"{path} must hold one folder, got {sorted(folders)}")
    return folders.pop(), files


def _inflated(path: Path) -> bytes:
    """Return what the archive unpacks to, as far as a bundle could be that large."""
    try:
        with gzip.open(path) as file:
            content = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(_damaged(path, error)) from error
    if len(content) > _LARGEST:
        raise ConfigError(f"{path} must unpack to a bundle's size, got more than {_LARGEST} bytes")
    return content


def _check_sums(path: Path, files: Mapping[str, bytes]) -> None:
    wanted = {f"{_sum(content)}  {name}" for name, content in files.items() if name != SUMS}
    stated = files[SUMS].decode("utf-8", "replace").splitlines()
    if wrong := sorted(wanted.symmetric_difference(stated)):
        names = sorted({line.partition("  ")[2] for line in wrong})
        raise ConfigError(f"{path} must match its {SUMS}, got another content of {names}; ask for it again")


def _damaged(path: Path, error: Exception) -> str:
    return f"`bundle` must be the .tar.gz that the centre handed over, got {path}: {error}; ask for it again"


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
