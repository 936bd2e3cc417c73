"""A whole federation on loopback: real programs, real keys, TLS from end to end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fedfair.audit import entries, verify
from fedfair.errors import MissingDependency, RunError
from fedfair.federation.approval import approve
from fedfair.federation.bundle import open_bundle
from fedfair.federation.centre import init
from fedfair.federation.certificates import Issued, issue, make_authority
from fedfair.federation.consortium import slug
from fedfair.federation.keys import make_node_key
from fedfair.federation.proxy import nginx_command
from simulations.federation import build_code, code_hash
from simulations.federation.control import Centre
from simulations.federation.roster import read_roster
from simulations.programs import call, connection, environment, stop, tail
from tests.apps.runs import HEART, ROOT, run, same_bits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # Flower's own
]
SITES = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")
OVERRIDES = ("rounds=1", "server.min_sites=4", "report.resamples=20", "secure.enabled=true")
SECONDS = 120  # other tests run beside these


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: str, log: Path, seconds: float = SECONDS) -> str:
    """Wait for a text in a file, and return the file's whole text."""
    end = time.monotonic() + seconds
    while what not in (text := log.read_text(errors="replace") if log.is_file() else ""):
        assert time.monotonic() < end, f"{what!r} is not in {log}:\n{text[-3000:]}"
        time.sleep(0.2)
    return text


@contextlib.contextmanager
def program(command: Sequence[str], cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own."""
    # One thread each: a dozen processes share two cores.
    variables = {**environment(cwd), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def fedfair(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedfair", *words]


@dataclass(frozen=True)
class Federation:
    """A running one: its folder, the sites' folders, its log, ``federation start`` and each ``site join``."""

    folder: Path
    sites: Mapping[str, Path]
    log: Path
    starter: subprocess.Popen[bytes]
    joined: Mapping[str, subprocess.Popen[bytes]]

    @property
    def centre(self) -> Centre:
        return Centre.open(self.folder)

    @property
    def address(self) -> str:
        return self.centre.consortium.centre.address


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    try:
        nginx_command(Path())
    except MissingDependency as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("federation")
    ports = {"port": free_port(), "inner_port": free_port()}
    plain = {
        "name": "heart",
        "centre": {"host": "localhost", **ports},
        "sites": [*SITES],
        "attributes": {"sex": ["female", "male"], "age": ["<50", "50-59", "60+"]},
        "data": {"name": "heart"},
    }
    (path / "consortium.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    folder = init(path / "consortium.yaml", path / "centre")
    code = code_hash(ROOT)
    with contextlib.ExitStack() as stack:
        log = path / "start.log"
        starter = stack.enter_context(program(fedfair("federation", "start", str(folder)), path, log))
        until("Ctrl-C stops all", log)
        sites, joined = {}, {}
        for site in SITES:
            sites[site] = open_bundle(folder / "bundles" / f"{slug(site)}.tar.gz", path)
            approve(sites[site], code, "the test")
            until(f"site {slug(site)} may connect now", log)
            command = fedfair("site", "join", str(sites[site]))
            joined[site] = stack.enter_context(program(command, path, path / f"{slug(site)}.log"))
        yield Federation(folder, sites, log, starter, joined)


def refused(path: Path, *options: str) -> str:
    """Start a SuperNode that must end by itself, and return what it said."""
    own = ["--node-config", 'site="Cleveland"', "--port", str(free_port())]
    # To a file: what it leaves behind for a moment would hold a pipe open.
    with program(["flower-supernode", *options, *own], path, path / "node.log") as process:
        assert process.wait(timeout=SECONDS) != 0
    return (path / "node.log").read_text()


def secure(authority: Path, address: str, key: Path) -> list[str]:
    trust = ["--root-certificates", str(authority), "--superlink", address]
    return [*trust, "--auth-supernode-private-key", str(key)]


def serverapps(port: int) -> list[int]:
    """Return the processes of ServerApps that talk to the SuperLink on this port."""
    commands = processes("-e").items()
    return [
        own for own, command in commands if "flwr-serverapp" in command and f"127.0.0.1:{port}" in command
    ]


def superexecs(port: int) -> set[int]:
    """Return the programs that start the runs of the SuperLink on this port."""
    commands = processes("-e").items()
    return {own for own, text in commands if "flower-superexec" in text and f"127.0.0.1:{port}" in text}


def children(parent: subprocess.Popen[bytes]) -> dict[int, str]:
    """Return the processes that another one has started, with their commands."""
    return processes("--ppid", str(parent.pid))


def processes(*which: str) -> dict[int, str]:
    # Wide: else a narrow COLUMNS cuts the commands.
    # Its status is 1 if there are none.
    told = subprocess.run(["ps", "-wwo", "pid=,args=", *which], capture_output=True, text=True, check=False)
    pairs = (line.split(maxsplit=1) for line in told.stdout.splitlines())
    return {int(own): command for own, command in pairs}


@pytest.mark.timeout(600)
def test_a_secure_run_whose_server_was_killed_goes_on_to_the_same_bits(
    federation: Federation, tmp_path: Path
) -> None:
    """Killed when the round is committed and the final evaluation is not; test_guides.py runs in the open."""
    changes = [part for text in OVERRIDES for part in ("--set", text)]
    output = ["--output", str(tmp_path / "out")]
    command = fedfair("submit", str(HEART), "--federation", str(federation.folder), *changes, *output)
    arm = tmp_path / "out" / "seed-0" / "dual_mimo"
    with program(command, tmp_path, tmp_path / "submit.log") as submitted:
        until('"round": 0', arm / "rounds.jsonl", 2 * SECONDS)
        for process in serverapps(federation.centre.port):
            os.kill(process, signal.SIGKILL)
        # Flower takes a minute to notice; nobody has to wait for that.
        submitted.send_signal(signal.SIGINT)
        assert submitted.wait(timeout=SECONDS) == 130
    assert not (arm / "model.pt").exists()
    variables = {**environment(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = call([*command, "--resume"], tmp_path, variables)
    assert done.returncode == 0, tail(done)
    assert same_bits(run(tmp_path / "here", OVERRIDES), arm)
    for folder in federation.sites.values():
        told = verify(folder / "audit.jsonl", [federation.centre.state / "audit.jsonl"])
        assert told.witnessed > 0
    kinds = {e["event"] for e in entries(federation.centre.state / "audit.jsonl")}
    assert {"run-started", "asked", "answered", "run-ended"} <= kinds


@pytest.mark.timeout(600)
def test_a_run_outlives_a_site_that_hangs_and_a_superlink_that_dies(
    federation: Federation, tmp_path: Path
) -> None:
    changes = ["rounds=4", "server.min_sites=3", "server.round_timeout=30", "report.resamples=20"]
    output = ["--output", str(tmp_path / "out")]
    command = fedfair("submit", str(HEART), "--federation", str(federation.folder), *output)
    command += [part for text in changes for part in ("--set", text)]
    rounds = tmp_path / "out" / "seed-0" / "dual_mimo" / "rounds.jsonl"
    with program(command, tmp_path, tmp_path / "submit.log") as submitted:
        until('"round": 0', rounds, 2 * SECONDS)
        (node,) = children(federation.joined["Switzerland"])
        os.kill(node, signal.SIGSTOP)
        try:
            until('"Switzerland": "no answer before', rounds)
        finally:
            os.kill(node, signal.SIGCONT)
        (link,) = [own for own, text in children(federation.starter).items() if "flower-superlink" in text]
        os.kill(link, signal.SIGKILL)
        assert submitted.wait(timeout=SECONDS) == 1
    assert "the SuperLink was started again" in (tmp_path / "submit.log").read_text()
    variables = {**environment(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = call([*command, "--resume"], tmp_path, variables)
    assert done.returncode == 0, tail(done)
    records = [json.loads(line) for line in rounds.read_text().splitlines()]
    assert [record["round"] for record in records] == [0, 1, 2, 3, 4]
    assert all(len(record["sites"]) >= 3 for record in records[1:])


class TestRefused:
    def test_a_centre_of_another_authority(self, federation: Federation, tmp_path: Path) -> None:
        other = tmp_path / "other.crt"
        other.write_bytes(make_authority("other").certificate)
        key = federation.sites["Cleveland"] / "node.key"
        said = refused(tmp_path, *secure(other, federation.address, key))
        assert "certificate verify failed" in said

    def test_a_centre_whose_certificate_has_expired(self, federation: Federation, tmp_path: Path) -> None:
        centre = federation.centre
        copy = Path(shutil.copytree(centre.root, tmp_path / "centre", ignore=shutil.ignore_patterns("state")))
        (copy / "state").mkdir()
        authority = Issued((copy / "ca.crt").read_bytes(), (copy / "ca.key").read_bytes())
        expired = issue(authority, ["localhost"], days=0)
        (copy / "server.crt").write_bytes(expired.certificate)
        (copy / "server.key").write_bytes(expired.key)
        text, port = (copy / "nginx.conf").read_text(), free_port()
        public = f":{centre.consortium.centre.port} ssl"
        assert text.count(public) == 1
        (copy / "nginx.conf").write_text(text.replace(public, f":{port} ssl"))
        key = federation.sites["Cleveland"] / "node.key"
        with program(nginx_command(copy), tmp_path, tmp_path / "nginx.log"):
            said = refused(tmp_path, *secure(copy / "ca.crt", f"localhost:{port}", key))
        assert "certificate has expired" in said

    def test_a_key_that_the_centre_does_not_know(self, federation: Federation, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_bytes(make_node_key("unknown").private)
        authority = federation.folder / "centre" / "ca.crt"
        said = refused(tmp_path, *secure(authority, federation.address, key))
        assert "[code: 2004] Failed to activate SuperNode" in said

    def test_a_site_without_a_key(self, federation: Federation, tmp_path: Path) -> None:
        authority = str(federation.folder / "centre" / "ca.crt")
        trust = ["--root-certificates", authority, "--superlink", federation.address]
        assert "[code: 2001] SuperNode authentication is enabled" in refused(tmp_path, *trust)

    def test_plain_text(self, federation: Federation, tmp_path: Path) -> None:
        said = refused(tmp_path, "--insecure", "--superlink", federation.address)
        assert "400 Bad Request" in said

    @pytest.mark.parametrize(
        "words", [("list",), ("run", "APP"), ("supernode", "list"), ("supernode", "register", "KEY")]
    )
    def test_a_site_that_would_be_the_centre(
        self, federation: Federation, tmp_path: Path, words: Sequence[str]
    ) -> None:
        """The SuperLink asks its users for no password; only the proxy keeps a site from being one."""
        site = federation.sites["Cleveland"]
        (tmp_path / "config.toml").write_text(connection("centre", federation.address, site / "ca.crt"))
        (tmp_path / "k.pub").write_bytes(make_node_key("another").public)
        places = {"APP": str(build_code(ROOT, tmp_path)), "KEY": str(tmp_path / "k.pub")}
        nodes = federation.centre.nodes()
        command = ["flwr", *(places.get(word, word) for word in words), "centre"]
        done = call(command, tmp_path, environment(tmp_path))
        assert done.returncode != 0
        assert "404 Not Found" in tail(done)
        assert federation.centre.nodes().keys() == nodes.keys()


class TestRunning:
    """Last in the file: these disturb the programs."""

    def test_a_second_start_is_refused(self, federation: Federation, tmp_path: Path) -> None:
        command = fedfair("federation", "start", str(federation.folder))
        done = call(command, tmp_path, {**environment(tmp_path), "PYTHONPATH": str(ROOT)})
        assert done.returncode == 1
        assert done.stderr.startswith(f"fedfair: the programs of {federation.folder} run already")

    def test_keys_come_and_go_without_a_restart(self, federation: Federation) -> None:
        key = federation.folder / "centre" / "nodes" / "geneva.pub"
        key.write_bytes(make_node_key("geneva").public)
        until("site geneva may connect now", federation.log)
        node = read_roster(federation.centre.state)["geneva"].node
        assert node in federation.centre.nodes()
        key.unlink()
        until("site geneva may not connect with its old key any more", federation.log)
        assert node not in federation.centre.nodes()

    def test_programs_that_die_are_started_again_and_sites_come_back(self, federation: Federation) -> None:
        starter_of_runs = superexecs(federation.centre.port)
        for child, command in children(federation.starter).items():
            if "flower-superlink" in command or "nginx" in command:
                os.kill(child, signal.SIGKILL)
        until("SuperLink ended, it is started again", federation.log)
        until("nginx ended, it is started again", federation.log)
        end = time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(RunError):
                statuses = list(federation.centre.nodes().values())
                if statuses == ["online"] * len(SITES):
                    break
            assert time.monotonic() < end
            time.sleep(1)
        # What the dead SuperLink left behind would start runs of the new one a second time.
        assert not starter_of_runs & superexecs(federation.centre.port)

    def test_sigterm_stops_all_in_order(self, federation: Federation) -> None:
        federation.starter.send_signal(signal.SIGTERM)
        assert federation.starter.wait(timeout=SECONDS) == 0
        assert federation.log.read_text().endswith("stopped\n")
        for port in (federation.centre.port, federation.centre.consortium.centre.port):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert not superexecs(federation.centre.port)
