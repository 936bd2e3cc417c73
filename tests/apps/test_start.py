"""``fedfair federation start``: the keys that may connect, the programs that are kept running."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fedfair.errors import RunError
from fedfair.federation.centre import init
from fedfair.federation.certificates import Issued, issue
from simulations.federation import kept, start
from simulations.federation.kept import Kept
from simulations.federation.roster import Roster, read_roster


class KeyCentre:
    """Keeps keys as a SuperLink does."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        self.keys: dict[str, str] = {}
        self._made = 0
        self.state.mkdir()
        (root / "nodes").mkdir()

    def nodes(self) -> dict[str, str]:
        return dict.fromkeys(self.keys, "registered")

    def register(self, path: Path) -> str | None:
        key = path.read_text()
        if not key.startswith("ecdsa"):
            raise RunError("Invalid line format")
        if key in self.keys.values():
            return None
        self._made += 1
        self.keys[str(self._made)] = key
        return str(self._made)

    def unregister(self, node: str) -> None:
        del self.keys[node]


def test_the_keys_in_the_folder_are_the_keys_that_connect(tmp_path: Path) -> None:
    centre, said = KeyCentre(tmp_path), []
    nodes = tmp_path / "nodes"
    for name in ("a", "b"):
        (nodes / f"{name}.pub").write_text(f"ecdsa {name} comment")
    roster = Roster(centre)  # type: ignore[arg-type]
    roster.update(said.append)
    roster.update(said.append)
    assert centre.keys == {"1": "ecdsa a comment", "2": "ecdsa b comment"}
    assert said == ["site a may connect now", "site b may connect now"]
    assert {site: entry.node for site, entry in read_roster(centre.state).items()} == {"a": "1", "b": "2"}
    (nodes / "a.pub").write_text("ecdsa a2 comment")
    (nodes / "b.pub").unlink()
    (nodes / "bad.pub").write_text("nonsense")
    roster.update(said.append)
    roster.update(said.append)
    assert centre.keys == {"3": "ecdsa a2 comment"}
    refused = f"site bad cannot connect, its key {nodes / 'bad.pub'} is refused: Invalid line format"
    assert said[2:] == [
        "site a may not connect with its old key any more",
        "site b may not connect with its old key any more",
        "site a may connect now",
        refused,
    ]


def test_a_superlink_that_kept_its_keys_is_left_alone_and_one_that_did_not_is_told_them(
    tmp_path: Path,
) -> None:
    centre, said = KeyCentre(tmp_path), []
    (tmp_path / "nodes" / "a.pub").write_text("ecdsa a")
    Roster(centre).update(said.append)  # type: ignore[arg-type]
    Roster(centre).update(said.append)  # type: ignore[arg-type]
    assert said == ["site a may connect now"]
    centre.keys.clear()
    Roster(centre).update(said.append)  # type: ignore[arg-type]
    assert list(centre.keys.values()) == ["ecdsa a"]


# The programs


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    """Return what keeps a Python script running; all end with the test."""
    made: list[Kept] = []

    def make(script: str) -> Kept:
        command = [sys.executable, "-c", script]
        made.append(Kept("it", command, tmp_path, {}, tmp_path / "it.log", 1))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_program_that_dies_is_started_again_ever_later(
    keep: Callable[[str], Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "FIRST_DELAY", 0.05)
    program, said = keep("import sys; sys.exit('no such thing')"), []
    program.start()
    pauses = []
    for _ in range(4):
        until(program.ended)
        died = time.monotonic()
        until(lambda: program.tend(said.append))
        pauses.append(time.monotonic() - died)
    # Doubled each time; only the lower bounds are certain.
    assert [pause >= 0.05 * 2**k for k, pause in enumerate(pauses)] == [True] * 4
    line = f"it ended, it is started again; it said: no such thing (more in {tmp_path / 'it.log'})"
    assert said == [line] * 4


def test_a_program_that_lives_is_left_alone(keep: Callable[[str], Kept]) -> None:
    program = keep("import time; time.sleep(60)")
    program.start()
    assert not program.tend(pytest.fail)


def test_the_end_of_a_program_is_the_end_of_what_it_started(
    keep: Callable[[str], Kept], tmp_path: Path
) -> None:
    inner = "import time; print(1, flush=True); time.sleep(60)"
    outer = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {inner!r}]); "
    outer += "print(p.pid, flush=True); p.wait()"
    program = keep(outer)
    program.start()
    log = tmp_path / "it.log"
    until(lambda: log.is_file() and len(log.read_text().split()) == 2)
    child = next(int(word) for word in log.read_text().split() if word != "1")
    program.stop()

    def state() -> str:
        told = ["ps", "-o", "stat=", "-p", str(child)]
        return subprocess.run(told, capture_output=True, text=True, check=False).stdout.strip()[:1]

    until(lambda: state() in ("", "Z"))  # nobody has to reap it here


def test_a_log_does_not_grow_without_end(
    keep: Callable[[str], Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LOG_BYTES", 1000)
    program = keep("for k in range(2000): print(k)")
    program.start()
    until(program.ended)
    program.stop()
    sizes = [path.stat().st_size for path in tmp_path.glob("it.log*")]
    assert len(sizes) == kept.OLD_LOGS + 1
    assert max(sizes) <= 1000
    assert (tmp_path / "it.log").read_text().split()[-1] == "1999"


# Before anything runs


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    centre = {"host": "localhost", "port": port(), "inner_port": port()}
    plain = {"name": "a", "centre": centre, "sites": ["North"], "attributes": {"sex": ["f", "m"]}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain))
    return init(tmp_path / "a.yaml", tmp_path / "a")


def certify(folder: Path, name: str, days: int) -> None:
    centre = folder / "centre"
    authority = Issued((centre / "ca.crt").read_bytes(), (centre / "ca.key").read_bytes())
    (centre / name).write_bytes(issue(authority, ["localhost"], days).certificate)


@pytest.mark.parametrize("name", ["ca.crt", "link.key", "nginx.conf"])
def test_a_folder_that_lacks_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / "centre" / name).unlink()
    with pytest.raises(RunError, match=f"got no {name}"):
        start(folder, pytest.fail, proxy=False)


def test_a_certificate_that_has_ended_is_refused_with_the_cure(folder: Path) -> None:
    certify(folder, "link.crt", 0)
    with pytest.raises(RunError, match=rf"link\.crt ended on .*: fedfair federation renew {folder}$"):
        start(folder, pytest.fail, proxy=False)


def test_a_port_that_is_taken_is_named_and_a_certificate_that_soon_ends_is_told(folder: Path) -> None:
    certify(folder, "server.crt", 29)
    taken = yaml.safe_load((folder / "consortium.yaml").read_text())["centre"]["inner_port"]
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        with pytest.raises(
            RunError, match=f"port {taken} must be free for SuperLink, got: Address already in use"
        ):
            start(folder, said.append, proxy=False)
    assert [line.split(";")[0].rpartition(" ")[0] for line in said] == ["server.crt ends on"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert (folder / "centre" / "state").stat().st_mode & 0o777 == 0o700


def test_a_superlink_that_cannot_start_says_why(folder: Path) -> None:
    certify(folder, "link.crt", 90)  # without its key
    with pytest.raises(RunError, match=r"SuperLink must start, it said: .*KEY_VALUES_MISMATCH"):
        start(folder, pytest.fail, proxy=False)
