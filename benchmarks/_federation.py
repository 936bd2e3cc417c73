"""A federation on the loopback, of real programs: the centre's, the sites', and what memory they take."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from fedfair.federation.approval import approve
from fedfair.federation.bundle import open_bundle
from fedfair.federation.centre import init
from fedfair.federation.consortium import slug
from simulations.federation import code_hash
from simulations.programs import environment, stop

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
PROGRAMS = {
    "flwr-serverapp": "ServerApp",
    "flower-superlink": "SuperLink",
    "-m fedfair.federation.gate": "ClientApp",
    "gate import node": "SuperNode",
}
"""What stands in a command, and who that is."""


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def federation(path: Path, names: Sequence[str], *options: str) -> Iterator[Path]:
    """Yield the folder of a running federation; all its sites have synthetic records.

    Parameters
    ----------
    path : Path
        An empty folder.
    names : Sequence[str]
        The sites'.
    *options : str
        Of ``fedfair federation start``.
    """
    plain = {
        "name": "bench",
        "centre": {"host": "localhost", "port": free_port(), "inner_port": free_port()},
        "sites": [*names],
        "attributes": {"sex": ["female", "male"], "age": ["<50", "50-59", "60+"]},
    }
    (path / "consortium.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    folder = init(path / "consortium.yaml", path / "centre")
    with contextlib.ExitStack() as stack:
        log = path / "start.log"
        stack.enter_context(_program(["federation", "start", str(folder), *options], path, log))
        _until("Ctrl-C stops all", log)
        for name in names:
            site = open_bundle(folder / "bundles" / f"{slug(name)}.tar.gz", path)
            approve(site, code_hash(ROOT), "the benchmark")
            _until(f"site {slug(name)} may connect now", log)
            stack.enter_context(_program(["site", "join", str(site)], path, path / f"{slug(name)}.log"))
        yield folder


@contextlib.contextmanager
def _program(words: Sequence[str], cwd: Path, log: Path) -> Iterator[None]:
    variables = {**environment(cwd), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedfair", *words]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        stop(process)


def _until(what: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while what not in (text := log.read_text(encoding="utf-8", errors="replace")):
        if time.monotonic() > end:
            raise TimeoutError(f"{log} must say {what!r} within {START_SECONDS:.0f} s, got: {text[-500:]}")
        time.sleep(0.2)


class Watch:
    """The largest memory that the programs of a federation took, by program, in bytes.

    Only what a process owns is counted (``RssAnon``): not the files that it maps, which the system may
    drop at any time.
    """

    def __init__(self) -> None:
        self.peaks = dict.fromkeys(PROGRAMS.values(), 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        """Start to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            for program, size in _sizes():
                self.peaks[program] = max(self.peaks[program], size)


def _sizes() -> Iterator[tuple[str, int]]:
    """Yield program and memory of the processes that this one has begun."""
    for pid, command in _descendants().items():
        for program, name in PROGRAMS.items():
            if program in " ".join(command[:6]):
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
                    line = next(line for line in lines if line.startswith("RssAnon"))
                    yield name, 1024 * int(line.split()[1])


def _descendants() -> Mapping[int, list[str]]:
    """Return the command of each process that this one began, or one of those."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name in brackets may hold anything; what follows its last bracket does not.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: dict[int, list[str]] = {}
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() != pid:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return found
