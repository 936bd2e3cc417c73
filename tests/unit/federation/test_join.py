"""Joining: what is written, what is started and with what, and what stops it."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from flwr.common.config import parse_config_args
from flwr.proto.fleet_pb2 import ActivateNodeResponse
from hypothesis import example, given
from hypothesis import strategies as st

import fedfair
from fedfair.audit import verify
from fedfair.errors import ConfigError, RunError
from fedfair.federation import join as module
from fedfair.federation.approval import approve
from fedfair.federation.doctor import Finding
from fedfair.federation.folder import SiteFolder
from fedfair.federation.join import command, environment, join, node_config, set_data, write_programs
from tests.unit.federation.sites import HASH, NAME, change, federation, own_table, unpacked

ROOT = Path(fedfair.__file__).parents[1]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return unpacked(tmp_path)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Let the checks pass and put in place of the supervisor one that only notes what it is to run."""
    runs: list[SimpleNamespace] = []

    def supervisor(command: object, environment: object, folder: Path, say: object) -> SimpleNamespace:
        del say
        runs.append(SimpleNamespace(command=command, environment=environment, folder=folder))
        return SimpleNamespace(run=lambda: 0)

    monkeypatch.setattr(module, "Supervisor", supervisor)
    monkeypatch.setattr(module, "check", lambda site: [Finding(True, "all", str(site))])
    return runs


# The whole.


def test_a_bundle_is_unpacked_beside_itself_and_started(
    tmp_path: Path, said: list[str], started: list[SimpleNamespace]
) -> None:
    bundle = federation(tmp_path) / "bundles" / "va-long-beach.tar.gz"
    moved = shutil.copy(bundle, tmp_path / "from-the-centre.tar.gz")
    data = own_table(tmp_path / "ours.csv")
    assert join(Path(moved), data, said.append) == 0
    folder = tmp_path / "heart-va-long-beach"
    assert [run.folder for run in started] == [folder]
    assert yaml.safe_load((folder / "site.yaml").read_text())["data"] == str(data)
    events = [entry["event"] for entry in verify(folder / "audit.jsonl").entries]
    assert events == ["begin", "joined", "stopped"]


def test_joining_again_keeps_what_the_hospital_has_set(
    tmp_path: Path, said: list[str], started: list[SimpleNamespace]
) -> None:
    bundle = federation(tmp_path) / "bundles" / "va-long-beach.tar.gz"
    join(bundle, own_table(tmp_path / "ours.csv"), said.append)
    change(bundle.parent / "heart-va-long-beach", max_epsilon=2.5)
    join(bundle, None, said.append)
    settings = yaml.safe_load((bundle.parent / "heart-va-long-beach" / "site.yaml").read_text())
    assert (settings["data"], settings["max-epsilon"]) == (str(tmp_path / "ours.csv"), 2.5)
    assert len(started) == 2


def test_without_approved_code_it_says_so_and_starts(
    site: Path, said: list[str], started: list[SimpleNamespace]
) -> None:
    assert join(site, None, said.append) == 0
    assert "every run will be refused until you approve its code: fedfair site approve HASH" in said
    said.clear()
    approve(site, HASH, "ada")
    join(site, None, said.append)
    assert not any("refused" in text for text in said)
    assert len(started) == 2


def test_a_failed_check_stops_it_and_says_how_to_go_on(
    site: Path, said: list[str], started: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "check", lambda _: [Finding(None, "a", "b"), Finding(False, "clock", "x", "set it")]
    )
    assert join(site, None, said.append) == 1
    assert "FAIL  clock" in said[0] and "-> set it" in said[0]
    assert said[-1] == f"not connected: mend what FAILs, then again: fedfair site join {site}"
    assert not started and not (site / "bin").exists()


def test_the_checks_are_the_doctors(site: Path, said: list[str]) -> None:
    (site / "node.key").unlink()
    assert join(site, None, said.append) == 1
    assert "lacks node.key" in said[0]


def test_one_site_is_joined_once(site: Path, said: list[str], started: list[SimpleNamespace]) -> None:
    with (site / "join.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        with pytest.raises(RunError, match=f"site {NAME} must be joined once, got process 4711"):
            join(site, None, said.append)
    assert not started
    assert join(site, None, said.append) == 0


def test_a_folder_that_is_no_site_is_refused(tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"must hold a readable site\.yaml"):
        join(tmp_path, None, said.append)


# The path of the records.


def test_the_path_changes_one_line_and_no_comment(site: Path, tmp_path: Path) -> None:
    file = site / "site.yaml"
    before = file.read_text().splitlines()
    (data := tmp_path / 'our "new" records\\2026 #1.csv').touch()
    set_data(file, data)
    after = file.read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [a for a, _ in changed] == ["data: null"]
    assert yaml.safe_load(file.read_text())["data"] == str(data)
    (other := tmp_path / "other.csv").touch()
    set_data(file, other)  # over a quoted value with a # in it
    assert yaml.safe_load(file.read_text())["data"] == str(other)
    assert file.read_text().splitlines()[: before.index("data: null")] == before[: before.index("data: null")]


@pytest.mark.parametrize("value", [" null", "  'a''b # c'", ' "a\\"b"', " /plain/path with spaces"])
def test_a_comment_behind_the_path_stays(tmp_path: Path, value: str) -> None:
    file, data = tmp_path / "site.yaml", tmp_path / "x.csv"
    file.write_text(f"site: A\ndata:{value}  # ours\ndataset: null\n")
    data.touch()
    set_data(file, data)
    assert file.read_text() == f'site: A\ndata: "{data}"  # ours\ndataset: null\n'


def test_a_relative_path_is_made_absolute(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").touch()
    monkeypatch.chdir(tmp_path)
    set_data(site / "site.yaml", Path("x.csv"))
    assert yaml.safe_load((site / "site.yaml").read_text())["data"] == str(tmp_path / "x.csv")


def test_a_path_without_records_is_refused(site: Path, tmp_path: Path) -> None:
    before = (site / "site.yaml").read_text()
    with pytest.raises(ConfigError, match="`--data` must be the path of the records"):
        set_data(site / "site.yaml", tmp_path / "none.csv")
    assert (site / "site.yaml").read_text() == before


@pytest.mark.parametrize(
    "text", ["site: A\n", "site: A\ndata: >\n  folded\n  text\n", "{site: A, data: null}\n"]
)
def test_a_file_that_cannot_be_edited_by_line_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="write there by hand: data: "):
        set_data(file, tmp_path)
    assert file.read_text() == text


# What is started.


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
)
@example("VA Long Beach", "/srv/my site/site.yaml")
@example('Sant\'Orsola "Nord"', "C:\\x\\")
@example('a" settings="other.yaml', "x=1 y='2'")
@example("one\ntwo", "ends.toml")
def test_names_survive_flowers_own_parser(site: str, settings: str) -> None:
    values = {"site": site, "settings": settings}
    assert parse_config_args([node_config(values)]) == values


def test_the_supernode_gets_its_own_key_and_our_authority(site: Path) -> None:
    words = command(SiteFolder.read(site))
    options = dict(zip(words[1::2], words[2::2], strict=True))
    port = int(options.pop("--port"))
    assert 1024 < port < 65536
    assert words[0] == str(site / "bin" / "flower-supernode")
    assert parse_config_args([options.pop("--node-config")]) == {
        "site": NAME,
        "settings": str(site / "site.yaml"),
    }
    assert options == {
        "--superlink": "localhost:8443",
        "--root-certificates": "ca.crt",
        "--auth-supernode-private-key": "node.key",
        "--host": "127.0.0.1",
    }


def test_the_environment_has_no_installer_no_telemetry_and_no_proxy_for_itself(tmp_path: Path) -> None:
    given = {
        "PATH": "/opt/x",
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": "intranet",
        "FLWR_HOME": "/elsewhere",
    }
    around = environment(tmp_path, given)
    assert around["HTTPS_PROXY"] == "http://proxy:3128"
    assert around["NO_PROXY"] == around["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert around["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert around["FLWR_TELEMETRY_ENABLED"] == "0"
    assert (around["FLWR_HOME"], around["FEDFAIR_SITE"]) == (str(tmp_path / "flwr"), str(tmp_path))
    first, second = around["PATH"].split(os.pathsep)[:2]
    assert (first, second) == (str(tmp_path / "bin"), str(Path(sys.executable).parent))


def test_programs_are_made_anew_and_can_be_run(site: Path) -> None:
    write_programs(site)
    (site / "bin" / "flwr-clientapp").write_text("#!/bin/sh\nexit 0\n")
    write_programs(site)
    assert "fedfair.federation.gate" in (site / "bin" / "flwr-clientapp").read_text()
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o111 for path in (site / "bin").iterdir())
    for name in module.REFUSED:
        done = subprocess.run(
            [site / "bin" / name, "--token", "x"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, f"fedfair: this site does not run {name}\n")


def test_the_gate_without_a_site_starts_nothing(site: Path) -> None:
    write_programs(site)
    around = {key: value for key, value in os.environ.items() if key != "FEDFAIR_SITE"} | {
        "PYTHONPATH": str(ROOT)
    }
    program = [site / "bin" / "flwr-clientapp", "--token", "x", "--insecure"]
    done = subprocess.run(program, env=around, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 78
    assert done.stderr.startswith("fedfair: FEDFAIR_SITE must name the site's folder")


# Flower's own SuperNode against a centre that takes the key and then breaks.


class _Breaks(http.server.BaseHTTPRequestHandler):
    heartbeats = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        fine = self.path.endswith("/activate-node")
        body = ActivateNodeResponse(node_id=7).SerializeToString() if fine else b""
        self.send_response(200 if fine else self.status)  # type: ignore[attr-defined]
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def broken(federated: Path, status: int) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federated / "centre" / "server.crt", federated / "centre" / "server.key")
    handler = type("Breaks", (_Breaks,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def supernode(site: Path, port: int) -> list[str]:
    change(site, centre=f"localhost:{port}")
    write_programs(site)
    return [*command(SiteFolder.read(site))]


def surroundings(site: Path) -> dict[str, str]:
    return {**environment(site, os.environ), "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_supernode_that_gives_up_ends(tmp_path: Path) -> None:
    # Flower's own program would stay, deaf, and nobody would start it again.
    federated = federation(tmp_path)
    site = module.open_bundle(federated / "bundles" / "va-long-beach.tar.gz", tmp_path)
    with broken(federated, 500) as port:
        words = supernode(site, port)
        with (log := tmp_path / "log").open("w") as file:
            process = subprocess.Popen(
                words, cwd=site, env=surroundings(site), stdout=file, stderr=file, start_new_session=True
            )
            status = process.wait(90)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    text = log.read_text()
    assert "SuperNode ID: 7" in text
    assert "fedfair: the SuperNode has given up its connection\n" in text
    assert status == 1


@pytest.mark.slow
def test_a_supernode_ends_with_who_started_it(tmp_path: Path) -> None:
    federated = federation(tmp_path)
    site = module.open_bundle(federated / "bundles" / "va-long-beach.tar.gz", tmp_path)
    with broken(federated, 503) as port:  # which Flower tries again for ever
        words = supernode(site, port)
        script = f"import subprocess as s; p = s.Popen({words!r}); print(p.pid, flush=True); p.wait()"
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=site,
            env=surroundings(site),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            time.sleep(8)  # up and connected
            assert Path(f"/proc/{child}").exists()
            parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while (state := Path(f"/proc/{child}/stat")).exists() and ") Z" not in state.read_text():
        assert time.monotonic() < end
        time.sleep(0.2)
