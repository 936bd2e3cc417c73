"""Used: a site's own record of what it has answered, beside its ledger.

A session's state is stored by Flower after the answer has left: a program or machine that dies in
between comes back with the state from before. What would then be answered again with the same
secrets stands here already. Deleting the file deletes that protection for the runs of that time.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from fedfair.errors import PrivacyError
from fedfair.files import append_line, sync_folder
from fedfair.secagg._codec import encode
from fedfair.secagg.primitives import digest


class Used:
    """The answers that a site has given, one a line.

    Parameters
    ----------
    path : Path
        The file, made by the first answer; sites and runs may share it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, session: str, site: str, round_number: int, step: str) -> None:
        """Note an answer before it is given; it is on the disk when this returns.

        Raises
        ------
        PrivacyError
            If it stands there, or the file cannot be written.
        """
        # The session is the server's to name, at any length: its hash stands for it.
        line = f"{digest('used', encode((session, site))).hex()} {round_number} {step}"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                found = file.read()
                if line.encode() in found.splitlines():
                    raise PrivacyError(
                        f"site {site} must answer `{step}` of round {round_number} once, its record has it"
                        " already; the next number is free"
                    )
                # A line that was cut off must not take this one with it.
                append_line(self._path, line if found[-1:] in (b"", b"\n") else "\n" + line)
            sync_folder(self._path.parent)
        except OSError as error:
            # The file's place is the site's own matter.
            raise PrivacyError(
                f"the record of site {site}'s secure sums must be a file that can be written, "
                f"got {error.strerror}"
            ) from error
