"""Keep a program running until told to stop: a site is to come back by itself after any fault."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import IO

from fedfair.federation.signs import UNSIGNED, Life

FLOWER_ENVIRONMENT = {
    # Without it a SuperLink would install torch's CUDA build for every run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What each program of Flower's is started with: no installer, and no call to its makers."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_POLL = 0.2
_LONGEST_LINE = 8192


@dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes
    ----------
    after_kill : float
        Before a restart when a signal ended the program: until then Flower counts it as online.
    first, longest : float
        Before any other restart: the first, doubled each time, up to the longest.
    patience : float
        For how long a refusal that may pass is tried again.
    settled : float
        Connected for so long, the next restart counts as the first.
    grace : float
        To end after a signal, before it is ended by force.
    """

    after_kill: float = 75.0
    first: float = 5.0
    longest: float = 300.0
    patience: float = 180.0
    settled: float = 60.0
    grace: float = 20.0


class Supervisor:
    """Run a program until SIGTERM or SIGINT, or until a refusal that no restart cures.

    Parameters
    ----------
    command : Callable[[], Sequence[str]]
        Gives the program and its arguments, anew for each start.
    environment : Mapping[str, str]
        Its whole environment.
    folder : Path
        Where it runs, and where its output goes: ``supernode.log``, in five pieces of 5 MiB at most.
    say : Callable[[str], None]
        Told what a person wants to know.
    timing : Timing
        How long to wait for what.
    clock, sleep : Callable
        Of the waiting between two starts.
    """

    def __init__(  # noqa: PLR0913, the last three are for tests
        self,
        command: Callable[[], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        say: Callable[[str], None],
        timing: Timing = Timing(),  # noqa: B008, frozen
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._command, self._environment, self._folder = command, environment, folder
        self._say, self._timing, self._clock, self._sleep = say, timing, clock, sleep
        self._signal: int | None = None
        self._delay = timing.first
        self._refused_since: float | None = None
        self._was_connected = False

    def run(self) -> int:
        """Return 0 when told to stop, 1 when refused for good."""
        with self._signals(), _log_file(self._folder / "supernode.log") as log:
            while self._signal is None:
                life = Life(self._say, self._clock())
                status = self._live(life, log)
                if self._signal is not None:
                    break
                if final := self._refused(life, status):
                    self._say(f"stopped for good: {final}")
                    return 1
                self._pause(status, life)
        self._say("stopped")
        return 0

    def _live(self, life: Life, log: logging.Handler) -> int:
        """Run the program once and return its exit status."""
        with subprocess.Popen(
            self._command(),
            cwd=self._folder,
            env=dict(self._environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child:
            self._say(f"started (process {child.pid})")
            reader = threading.Thread(target=_read, args=(child.stdout, life, log), daemon=True)
            reader.start()
            status = self._wait(child)
            # What the program started must not go on without it, nor hold its output open.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            reader.join()
        self._was_connected |= life.connected
        return status

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        told: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(_POLL)
            if self._signal is not None and told is None:
                told = time.monotonic()
                child.send_signal(self._signal)
            elif told is not None and time.monotonic() - told > self._timing.grace:
                child.kill()

    def _refused(self, life: Life, status: int) -> str | None:
        """Return what to do about a refusal that is final, or None."""
        refusal = life.refusal or (UNSIGNED if status == 0 else None)
        if life.connected or refusal is None:
            self._refused_since = None
            return None
        if self._refused_since is None:
            self._refused_since = life.began
        # Who was connected before may be refused for a while by a fault of the network or the centre.
        patient = refusal.passes or self._was_connected
        if patient and self._clock() - self._refused_since < self._timing.patience:
            return None
        return refusal.advice

    def _pause(self, status: int, life: Life) -> None:
        if life.connected and self._clock() - life.began >= self._timing.settled:
            self._delay = self._timing.first
        seconds = self._timing.after_kill if status < 0 else self._delay
        if status >= 0:
            self._delay = min(2 * self._delay, self._timing.longest)
        ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._say(f"{ended}; starting again in {seconds:.0f} s (its output is in supernode.log)")
        until = self._clock() + seconds
        while self._signal is None and (left := until - self._clock()) > 0:
            self._sleep(min(_POLL, left))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as the word to stop; only a main thread hears them."""

        def told(number: int, frame: FrameType | None) -> None:
            del frame
            self._signal = number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _PrivateLog(RotatingFileHandler):
    """A rotating log that others cannot read: a traceback may tell of a record."""

    def _open(self) -> IO[str]:  # type: ignore[override]
        return open(  # noqa: PTH123, `opener` sets the mode from the first byte
            self.baseFilename,
            self.mode,
            encoding="utf-8",
            errors="replace",
            opener=lambda path, flags: os.open(path, flags, 0o600),
        )


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[logging.Handler]:
    handler = _PrivateLog(path, maxBytes=5 * 2**20, backupCount=4)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    try:
        yield handler
    finally:
        handler.close()


def _read(output: IO[bytes], life: Life, log: logging.Handler) -> None:
    """Write each line to the log, without what would steer a terminal."""
    for raw in iter(lambda: output.readline(_LONGEST_LINE), b""):
        text = _ANSI.sub("", raw.decode("utf-8", "replace")).rstrip()
        line = "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
        log.emit(logging.makeLogRecord({"msg": line}))
        life.hear(line)
