"""What a program left behind that was killed: Flower's starter of runs, and the runs that it had started.

They are in sessions of their own, so that nobody ends them with the program. On Linux a process can ask
to become the parent of such orphans (`PR_SET_CHILD_SUBREAPER`, see prctl(2)); elsewhere they stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

_SUBREAPER = 36
_PROCESSES = Path("/proc")


class Orphans:
    """From its making on, this process is the parent of what its children leave behind.

    Children that it has by then are none of these.
    """

    def __init__(self) -> None:
        self._others = frozenset(_children())
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    def end(self, own: Collection[int | None] = ()) -> None:
        """End every later child of this process but its own programs, and what those have started."""
        known = self._others | set(own)
        # Whoever dies hands its children on to this process, so look again until there are none.
        while orphans := [child for child in _children() if child not in known]:
            for orphan in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(orphan, 0)


def _children() -> Iterator[int]:
    if not _PROCESSES.is_dir():
        return
    for entry in _PROCESSES.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # Behind the last bracket: the name in brackets may hold anything.
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == os.getpid():
                    yield int(entry.name)
