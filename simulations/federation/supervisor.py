"""``fedfair federation start``: the centre's programs, kept running until they are stopped."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedfair.errors import RunError
from fedfair.federation.certificates import describe
from fedfair.federation.proxy import nginx_command
from simulations.federation.control import Centre
from simulations.federation.kept import Kept
from simulations.federation.orphans import Orphans
from simulations.federation.roster import Roster
from simulations.programs import listens

CERTIFICATES = ("link.crt", "server.crt")
NEEDED = ("ca.crt", *CERTIFICATES, "link.key", "server.key", "nginx.conf")
SOON = timedelta(days=30)
START_SECONDS, ROSTER_SECONDS = 60, 10
Say = Callable[[str], None]


def start(folder: Path, say: Say, *, proxy: bool = True) -> int:
    """Run the SuperLink and the proxy of a federation until Ctrl-C or SIGTERM; return 0.

    A program that dies is started again. Keys that are added to ``centre/nodes`` are registered, those
    taken away are turned away, without a restart. Logs are in ``centre/state``.

    Parameters
    ----------
    folder : Path
        As ``fedfair federation init`` made it.
    say : Callable[[str], None]
        Takes one line at a time.
    proxy : bool
        Whether to run nginx too; without it, another proxy must pass on ``/v1/fleet/`` alone.

    Raises
    ------
    FedfairError
        If the folder, a port or a program is not as needed, or the folder's programs run already.
    """
    centre = Centre.open(folder)
    if missing := [name for name in NEEDED if not (centre.root / name).is_file()]:
        raise RunError(
            f"{centre.root} must hold {', '.join(NEEDED)}, got no {missing[0]}; "
            f"make the folder anew with `fedfair federation init`"
        )
    _check_dates(centre, say)
    programs = [_superlink(centre), *([_proxy(centre)] if proxy else [])]
    centre.prepare()
    orphans = Orphans()
    with _only_one(centre), _asked_to_stop() as stopped:
        for program in programs:
            _require_free(program)
        try:
            _run(centre, programs, say, stopped, orphans)
        finally:
            # The proxy first, so that the SuperLink gets no new requests.
            for program in reversed(programs):
                program.stop()
            orphans.end()
        say("stopped")
    return 0


def _run(centre: Centre, programs: list[Kept], say: Say, stopped: threading.Event, orphans: Orphans) -> None:
    for program in programs:
        program.start()
        _await(program, stopped)
    if stopped.is_set():
        return
    say(f"the SuperLink listens on 127.0.0.1:{centre.port}, for this machine alone")
    if len(programs) > 1:
        say(f"sites connect to {centre.consortium.centre.address}; logs are in {centre.state}")
    say("Ctrl-C stops all")
    roster, due = None, 0.0
    while not stopped.wait(0.5):
        if any(program.ended() for program in programs):
            orphans.end([program.pid for program in programs])
        started = [program.tend(say) for program in programs]
        if any(started):
            roster = None  # a SuperLink that was started again has forgotten all keys
        if time.monotonic() >= due and listens(centre.port):
            due = time.monotonic() + ROSTER_SECONDS
            with _said(say):
                roster = roster or Roster(centre)
                roster.update(say)


@contextlib.contextmanager
def _said(say: Say) -> Iterator[None]:
    """Say what went wrong with one turn of a loop that goes on."""
    try:
        yield
    except RunError as error:
        say(str(error))


def _superlink(centre: Centre) -> Kept:
    """Return the SuperLink; its state is in memory.

    A database would be slower, would keep all that the sites have sent, and locks up near 1 GB.
    """
    root = centre.root
    command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(centre.port)]
    command += ["--ssl-ca-certfile", str(root / "ca.crt")]
    command += ["--ssl-certfile", str(root / "link.crt"), "--ssl-keyfile", str(root / "link.key")]
    command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    log = centre.state / "superlink.log"
    return Kept("SuperLink", command, centre.empty, centre.environment, log, centre.port)


def _proxy(centre: Centre) -> Kept:
    log, port = centre.state / "nginx.log", centre.consortium.centre.port
    return Kept("nginx", nginx_command(centre.root), centre.empty, centre.environment, log, port)


def _await(program: Kept, stopped: threading.Event) -> None:
    """Wait until a program that was just started listens."""
    end = time.monotonic() + START_SECONDS
    while not listens(program.port) and not stopped.wait(0.2):
        if program.ended() or time.monotonic() > end:
            raise RunError(f"{program.name} must start, it said: {program.last_words()}")


def _check_dates(centre: Centre, say: Say) -> None:
    """Refuse certificates that have ended, and say which will soon."""
    for name in CERTIFICATES:
        until = describe(centre.root / name).not_after
        left = until - datetime.now(UTC)
        text = (
            f"{name} ends on {until:%Y-%m-%d}; make a new one with: fedfair federation renew {centre.folder}"
        )
        if left < timedelta(0):
            raise RunError(text.replace("ends", "ended"))
        if left < SOON:
            say(text)


def _require_free(program: Kept) -> None:
    with socket.socket() as probe:
        # As servers do; a connection that was closed a moment ago is in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", program.port))
        except OSError as error:
            raise RunError(
                f"port {program.port} must be free for {program.name}, got: {error.strerror}; "
                "stop the program that has it (to find it: ss -ltnp)"
            ) from error


@contextlib.contextmanager
def _only_one(centre: Centre) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it however this process ends."""
    with (centre.state / "lock").open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"the programs of {centre.folder} run already; stop the other start of it first"
            ) from error
        yield


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set."""
    asked = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda *_: asked.set())
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
