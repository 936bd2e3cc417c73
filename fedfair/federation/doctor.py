"""``fedfair doctor``: whether a site could take part, and for each thing that fails what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedfair.audit import verify
from fedfair.errors import ConfigError, counted
from fedfair.federation.approval import approved
from fedfair.federation.certificates import describe
from fedfair.federation.finding import Finding, attempt, render
from fedfair.federation.folder import SiteFolder
from fedfair.federation.reach import check_reach, days_left
from fedfair.federation.records import check_records
from fedfair.privacy.policy import Policy

__all__ = ["Finding", "check", "render"]

FILES = ("ca.crt", "node.key", "node.pub")
"""What of a bundle the site cannot do without, beside its settings."""
SMALLEST_FREE = 2 * 2**30
_AGAIN = "unpack the bundle again, or ask the centre for a new one"


def check(site: Path, online: bool = True) -> list[Finding]:
    """Look at all that a site needs to take part; nothing is changed, no record is shown.

    Parameters
    ----------
    site : Path
        The folder that the bundle was unpacked to.
    online : bool
        Whether the centre is called as well.
    """
    findings = [*_check_packages(), _gpu()]
    try:
        folder = SiteFolder.read(site)
        policy = Policy.of({"settings": str(folder.settings_file)})
        host, port = folder.centre
    except ConfigError as error:
        return [*findings, Finding(False, "settings", str(error), "correct site.yaml, or " + _AGAIN)]
    findings.append(Finding(True, "settings", f"{folder.name} in {folder.root}, centre {host}:{port}"))
    findings += _check_bundle(folder)
    if online and not any(finding.name == "bundle" and finding.ok is False for finding in findings):
        findings += check_reach(folder)
    findings += check_records(folder, policy)
    findings += _check_disk(folder, policy)
    findings.append(_approvals(folder))
    return findings


def _check_packages() -> Iterator[Finding]:
    """Compare Python and the installed packages with what this version of fedfair asks for."""
    try:
        wanted = metadata.requires("fedfair") or []
        python = metadata.metadata("fedfair")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding(None, "packages", "not checked: fedfair is not installed, it runs from a folder")
        return
    running = platform.python_version()
    fine = running in SpecifierSet(python, prereleases=True)
    yield Finding(fine, "python", running, "" if fine else f"install Python {python}")
    yield from _check_requirements([Requirement(text) for text in wanted])
    program = shutil.which("flower-superexec", path=programs_path())
    fix = "pip install --upgrade fedfair, in the environment that runs this"
    yield Finding(bool(program), "Flower's programs", program or "not on the PATH", "" if program else fix)


def programs_path() -> str:
    """Return the PATH on which Flower's programs are found: those installed with this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _check_requirements(requirements: list[Requirement]) -> Iterator[Finding]:
    fine = []
    for needed in requirements:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = "none"
        if version != "none" and needed.specifier.contains(version, prereleases=True):
            fine.append(f"{needed.name} {version}")
        else:
            told = f"{needed.name} {version}, where {needed.specifier} is asked for"
            yield Finding(False, "packages", told, f"pip install '{needed.name}{needed.specifier}'")
    yield Finding(True, "packages", ", ".join(fine) or "no other")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(True, "GPU", "none, or none that torch can use; training takes the CPU")
    return Finding(True, "GPU", torch.cuda.get_device_name())


def _check_bundle(folder: SiteFolder) -> Iterator[Finding]:
    if missing := [name for name in FILES if not (folder.root / name).is_file()]:
        yield Finding(False, "bundle", f"lacks {', '.join(missing)}", _AGAIN)
        return
    yield Finding(True, "bundle", "all files are there")
    yield _key_mode(folder.root / "node.key")
    yield attempt("key", lambda: _key(folder.root), _AGAIN)
    try:
        until = describe(folder.root / "ca.crt").not_after
    except ConfigError as error:
        yield Finding(False, "authority", str(error), _AGAIN)
    else:
        yield days_left("authority", until, "ask the centre for a new bundle: its authority ends")


def _key_mode(key: Path) -> Finding:
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        return Finding(
            False, "key's permissions", f"{mode:04o}: others can read or change it", f"chmod 600 {key}"
        )
    return Finding(True, "key's permissions", f"{mode:04o}")


def _key(root: Path) -> str:
    """Read the site's key and compare it with its public half."""
    try:
        key = load_ssh_private_key((root / "node.key").read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("node.key must be an OpenSSH key without a passphrase, got another file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("node.key must be an elliptic-curve key, got another kind")
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    if public.split() != (root / "node.pub").read_bytes().split()[:2]:
        raise ConfigError("node.pub must be the public half of node.key, got that of another")
    return f"readable, {key.curve.name}, and node.pub is its public half"


def _check_disk(folder: SiteFolder, policy: Policy) -> Iterator[Finding]:
    free = shutil.disk_usage(folder.root).free
    fine = free >= SMALLEST_FREE
    fix = f"free some space: {SMALLEST_FREE / 2**30:.0f} GiB are needed for logs and code"
    yield Finding(fine, "disk", f"{free / 2**30:.1f} GiB free", "" if fine else fix)
    ledger, audit = policy.ledger or folder.ledger, policy.audit or folder.audit
    owner = "let the user that runs the site write there"
    yield attempt("ledgers", lambda: _writable(ledger), owner)
    yield attempt("audit", lambda: _writable(audit.parent), owner)
    if audit.is_file():
        fix = "find out who changed it; keep it, and let a new one begin beside it (`audit` in site.yaml)"
        yield attempt("audit log", lambda: f"intact, {_entries(audit)}", fix)


def _entries(log: Path) -> str:
    return counted(len(verify(log).entries), "entry", "entries")


def _writable(place: Path) -> str:
    """Write to a folder, or to the one in which it would be made; nothing stays there."""
    there = next(path for path in (place, *place.parents) if path.exists())
    with tempfile.TemporaryFile(dir=there):
        return f"{place} can be written"


def _approvals(folder: SiteFolder) -> Finding:
    try:
        codes = approved(folder.root)
    except ConfigError as error:
        return Finding(False, "approved code", str(error), "correct approved.txt")
    if not codes:
        fix = "every run is refused until: fedfair site approve HASH (the centre tells the hash)"
        return Finding(None, "approved code", "none", fix)
    return Finding(True, "approved code", ", ".join(sorted(code[:12] for code in codes)))
