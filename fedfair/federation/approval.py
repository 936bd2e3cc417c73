"""What code a site lets run: the hashes that its administrator has approved, one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedfair.audit import AuditLog
from fedfair.errors import ConfigError
from fedfair.federation.files import PRIVATE, replace
from fedfair.federation.folder import SiteFolder

FILE = "approved.txt"
_HASH = re.compile(r"[0-9a-f]{64}")


def approve(site: Path, code_hash: str, by: str) -> None:
    """Let code run at a site, from its next message on; to approve it again changes nothing.

    The file holds one line per approval: hash, time (UTC), who.

    Parameters
    ----------
    site : Path
        The site's folder.
    code_hash : str
        SHA-256 of the app's bundle, 64 hexadecimal digits.
    by : str
        Who takes the responsibility.

    Raises
    ------
    ConfigError
        If `code_hash` is none, `by` is empty, or `site` is not a site's folder.
    """
    folder, code, who = SiteFolder.read(site), _checked(code_hash), _person(by)
    if code in approved(site):
        return
    # The trace first: code that runs without one would be worse than one of code that does not run.
    AuditLog(folder.audit).append("code-approved", code=code, by=who)
    line = f"{code}  {datetime.now(UTC).isoformat(timespec='seconds')}  {who}\n"
    with os.fdopen(os.open(_file(site), os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE), "a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def revoke(site: Path, code_hash: str, by: str) -> None:
    """Take an approval back: the code is refused from the site's next message on.

    Raises
    ------
    ConfigError
        If `code_hash` is no hash or was not approved, or `by` is empty.
    """
    folder, code, who = SiteFolder.read(site), _checked(code_hash), _person(by)
    if code not in approved(site):
        raise ConfigError(f"`hash` must be one of the approved codes of {folder.name}, got {code}")
    left = [line for found, line in _lines(site) if found != code]
    replace(_file(site), "".join(f"{line}\n" for line in left).encode(), PRIVATE)
    AuditLog(folder.audit).append("code-revoked", code=code, by=who)


def approved(site: Path) -> set[str]:
    """Return the hashes that may run at a site; without a file, none.

    Raises
    ------
    ConfigError
        If a line does not begin with a hash: a damaged file approves nothing.
    """
    return {code for code, _ in _lines(site) if code}


def _lines(site: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with its hash; blank lines and comments have none."""
    try:
        lines = _file(site).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE} must be a readable text file, got {error}") from error
    for number, line in enumerate(lines, start=1):
        code = line.partition(" ")[0]
        if line.strip() and not line.startswith("#"):
            if not _HASH.fullmatch(code):
                raise ConfigError(
                    f"line {number} of {_file(site)} must begin with a hash; correct or delete it"
                )
            yield code, line
        else:
            yield "", line


def _checked(code_hash: str) -> str:
    code = code_hash.strip().lower()
    if not _HASH.fullmatch(code):
        raise ConfigError(
            f"`hash` must be 64 hexadecimal digits, got {code_hash!r}; the centre tells it, "
            "and so does the site's log when it has refused the code"
        )
    return code


def _person(by: str) -> str:
    if not (who := " ".join(by.split())):
        raise ConfigError(f"`by` must name who decides, got {by!r}")
    return who


def _file(site: Path) -> Path:
    return site / FILE
