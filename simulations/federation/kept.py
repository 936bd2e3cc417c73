"""A program that is started again when it dies, its output in files that do not grow without end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from simulations.programs import TAIL, reason, stop

LOG_BYTES, OLD_LOGS = 10_000_000, 4
FIRST_DELAY, LAST_DELAY = 1.0, 60.0


class Kept:
    """One program of the centre's.

    Parameters
    ----------
    name : str
        For people.
    command : Sequence[str]
        It stays in the foreground.
    cwd, environment
        Where and with what it starts.
    log : Path
        For what it says.
    port : int
        Where it listens.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        log: Path,
        port: int,
    ) -> None:
        self.name, self.log, self.port = name, log, port
        self._command, self._cwd, self._environment = command, cwd, environment
        self._process: subprocess.Popen[str] | None = None
        self._copier: threading.Thread | None = None
        self._delay, self._due, self._since = FIRST_DELAY, 0.0, 0.0

    def start(self) -> None:
        """Start the program, in a session of its own: Ctrl-C is this process's to pass on."""
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._since = time.monotonic()
        self._copier = threading.Thread(target=_copy, args=(self._process.stdout, self.log), daemon=True)
        self._copier.start()

    @property
    def pid(self) -> int | None:
        """Of the program; None before its start and after its stop."""
        return None if self._process is None else self._process.pid

    def ended(self) -> bool:
        """Return whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def tend(self, say: Callable[[str], None]) -> bool:
        """Start the program again if it died; return whether it was started.

        One that dies at once is given longer and longer, up to a minute.
        """
        if not self.ended():
            return False
        now = time.monotonic()
        if not self._due:
            self._delay = FIRST_DELAY if now - self._since > LAST_DELAY else self._delay
            self._due = now + self._delay
            say(f"{self.name} ended, it is started again; it said: {self.last_words()}")
            self._delay = min(2 * self._delay, LAST_DELAY)
        if now < self._due:
            return False
        self._due = 0.0
        self._end_group()
        self.start()
        return True

    def stop(self) -> None:
        """End the program and what it started."""
        if self._process is not None:
            stop(self._process)
            self._end_group()
            self._process = None

    def last_words(self) -> str:
        """Return why it ended, as far as it said so."""
        if self._copier is not None and self.ended():
            self._copier.join(timeout=5)
        text = self.log.read_text(encoding="utf-8") if self.log.is_file() else ""
        return f"{reason(text[-TAIL:])} (more in {self.log})"

    def _end_group(self) -> None:
        """End what an ended program left behind in its session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
        if self._copier is not None:
            self._copier.join(timeout=5)


def _copy(stream: IO[str], log: Path) -> None:
    """Write what comes to a file of at most `LOG_BYTES`, the ones before it beside it."""
    handler = RotatingFileHandler(log, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    with contextlib.closing(handler), stream:
        for line in stream:
            handler.emit(logging.makeLogRecord({"msg": line.rstrip("\n")}))
