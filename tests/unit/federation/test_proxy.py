"""The proxy's configuration in a real nginx, before a server that writes down all that reaches it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedfair.errors import MissingDependency
from fedfair.federation.centre import init
from fedfair.federation.certificates import Issued, issue, make_authority
from fedfair.federation.consortium import parse_consortium
from fedfair.federation.proxy import nginx_command, nginx_configuration
from tests.unit.federation.example import PLAIN, changed, written

CALL = "/v1/fleet/pull-messages"
NOBODY = 65534
SECONDS = 20


@dataclass
class SuperLink:
    """What stands in for the SuperLink: it answers everything, and keeps what it was asked."""

    port: int
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, digest of the body
    headers: list[dict[str, str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b"fine"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        link: SuperLink = self.server.link
        digest, left = hashlib.sha256(), int(self.headers.get("Content-Length", 0))
        while left and (part := self.rfile.read1(min(left, 65536))):
            link.begun.set()
            digest.update(part)
            left -= len(part)
        if left:
            return
        link.seen.append((self.command, self.path, digest.hexdigest()))
        link.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("Content-Length", str(len(link.answer)))
        self.end_headers()
        self.wfile.write(link.answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_PATCH = answer

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # the proxy hangs up on a wrong certificate, which is what is tested


@contextlib.contextmanager
def superlink(port: int, certificate: Path, key: Path) -> Iterator[SuperLink]:
    server = Server(("127.0.0.1", port), Handler)
    server.link = SuperLink(port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # Shaking hands is left to each thread, so that a refused one stops no other.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.link
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def command_of(centre: Path) -> list[str]:
    try:
        return nginx_command(centre)
    except MissingDependency as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def nginx(centre: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the proxy until the end of the block, as nobody where the tests run as root."""
    command = command_of(centre)
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    with (centre / "state" / "stderr").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, start_new_session=True, **user)
    try:
        end = time.monotonic() + SECONDS
        while True:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", port), 1),
            ):
                break
            said = (centre / "state" / "stderr").read_text()
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=SECONDS)


def own(folder: Path) -> None:
    """Give all to the user that the proxy runs as."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


@pytest.fixture(scope="module")
def federation() -> Iterator[tuple[Path, int, int]]:
    """Return the centre's folder and the two ports; not under pytest's folder, which is root's alone."""
    with tempfile.TemporaryDirectory(prefix="fedfair-") as scratch:
        port, inner = free_ports()
        centre = {"host": "127.0.0.1", "port": port, "inner_port": inner}
        folder = init(written(Path(scratch), changed("centre", centre)), Path(scratch) / "federation")
        own(Path(scratch))
        yield folder / "centre", port, inner


@pytest.fixture(scope="module")
def running(federation: tuple[Path, int, int]) -> Iterator[tuple[Path, int, SuperLink]]:
    centre, port, inner = federation
    with superlink(inner, centre / "link.crt", centre / "link.key") as link, nginx(centre, port):
        yield centre, port, link


@pytest.fixture
def link(running: tuple[Path, int, SuperLink]) -> SuperLink:
    found = running[2]
    found.seen.clear()
    found.headers.clear()
    found.begun.clear()
    found.answer = b"fine"
    return found


@pytest.fixture
def site(running: tuple[Path, int, SuperLink]) -> Iterator[HTTPSConnection]:
    """Return a connection as a SuperNode makes it: it trusts the consortium's authority alone."""
    centre, port, _ = running
    context = ssl.create_default_context(cafile=centre / "ca.crt")
    with contextlib.closing(
        HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=context)
    ) as connection:
        yield connection


def call(site: HTTPSConnection, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """Return the status; the path is sent as it is given."""
    site.putrequest(method, path, skip_accept_encoding=True)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        site.putheader(name.replace("_", "-"), value)
    site.endheaders(body)
    response = site.getresponse()
    response.read()
    if response.will_close:
        site.close()
    return response.status


def test_a_sites_call_passes_as_it_is(site: HTTPSConnection, link: SuperLink) -> None:
    body = bytes(range(256)) * 10
    assert call(site, "POST", CALL, body, flwr_signature="c2ln", X_Forwarded_For="6.6.6.6") == 200
    assert link.seen == [("POST", CALL, hashlib.sha256(body).hexdigest())]
    assert link.headers[0]["flwr-signature"] == "c2ln"
    assert link.headers[0]["x-forwarded-for"] == "127.0.0.1"


NO_CALL = [
    *("/", "", "/v1", "/v1/", "/v1/fleet", "/v1/fleet/", "/docs", "/openapi.json", "/health", "/nginx.conf"),
    *("/v1/control/run", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/responses"),
    "/v1/fleet/../control/run",
    "/v1/control/../fleet/get-run",
    "/v1/fleet/./get-run",
    "/v1/fleet/get-run/..",
    "/v1/fleet/../../v1/control/run",
    "/v1/fleet/%2e%2e/control/run",
    "/v1/fleet/%2E%2E/control/run",
    "/v1/fleet/.%2e/control/run",
    "/v1/fleet/%252e%252e/control/run",
    "/v1/fleet/..%2fcontrol/run",
    "/v1/fleet/..%5ccontrol%5crun",
    "/v1/fleet/..\\control\\run",
    "/v1/control/x/..%2f..%2ffleet/get-run",
    "/v1/control/%2e%2e/fleet/get-run",
    "//v1/fleet/get-run",
    "/v1//fleet/get-run",
    "/v1/fleet//get-run",
    "/v1/fleet//../control/run",
    "/v1/fleet/get-run/",
    "/v1/fleet/a/b",
    "/v1/fleet/get-run?x=/v1/control/run",
    "/v1/fleet/get-run#x",
    "/v1/fleet/get-run;x",
    "/v1/fleet/get%2drun",
    "/v1/fleet/get-run%00",
    "/v1/fleet/get-run%0d%0ax",
    "/v1%2ffleet/get-run",
    "/%76%31/fleet/get-run",
    "/V1/FLEET/get-run",
    "/v1/fleet/GET-RUN",
    "/v1/fleetx/get-run",
    "/v1/fleet/get_run",
    "https://127.0.0.1/v1/control/run",
    "https://127.0.0.1/v1/fleet/../control/run",
]


@pytest.mark.parametrize("path", NO_CALL)
def test_all_else_is_not_found_and_reaches_nothing(path: str, running, link: SuperLink) -> None:
    for method in ("POST", "GET"):
        # 400: nginx itself refuses what is no path, such as one with a zero byte.
        assert raw(running, f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") in (404, 400)
    assert link.seen == []


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", "POSTS", "TRACE"]
)
def test_sites_only_post(method: str, running, link: SuperLink) -> None:
    assert raw(running, f"{method} {CALL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") in (
        404,
        400,
        405,
    )
    assert link.seen == []


def test_a_request_hidden_behind_another_is_judged_by_itself(running, link: SuperLink) -> None:
    hidden = "POST /v1/control/run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    both = f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
    assert raw(running, f"POST {CALL} HTTP/1.1\r\nHost: x\r\n{both}") in (400, 200)
    plain = f"POST {CALL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n{hidden}"
    assert raw(running, plain) == 200
    assert {path for _, path, _ in link.seen} == {CALL}


def raw(running: tuple[Path, int, SuperLink], request: str) -> int:
    """Return the status of a request that is sent to the byte, over TLS."""
    centre, port, _ = running
    context = ssl.create_default_context(cafile=centre / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        wrapped.sendall(request.encode())
        return int(wrapped.recv(4096).split()[1])


def test_large_bodies_pass_and_larger_ones_do_not(site: HTTPSConnection, link: SuperLink) -> None:
    large = b"fedfair!" * (5 * 1024**2)  # 40 MB; Flower's pieces have 5 MB
    assert call(site, "POST", "/v1/fleet/push-object", large) == 200
    assert link.seen == [("POST", "/v1/fleet/push-object", hashlib.sha256(large).hexdigest())]
    # The length alone decides: nothing of the body is waited for.
    site.putrequest("POST", "/v1/fleet/push-object")
    site.putheader("Content-Length", str(64 * 1024**2 + 1))
    site.endheaders()
    assert site.getresponse().status == 413
    assert len(link.seen) == 1


def test_large_answers_pass(site: HTTPSConnection, link: SuperLink) -> None:
    link.answer = b"fedfair!" * (5 * 1024**2)
    site.request("POST", CALL)
    assert site.getresponse().read() == link.answer


def test_a_body_is_passed_on_while_it_comes(site: HTTPSConnection, link: SuperLink) -> None:
    site.putrequest("POST", CALL)
    site.putheader("Content-Length", "200000")
    site.endheaders(b"x" * 100000)
    # The rest is not even sent: what has come is with the SuperLink, not gathered on the proxy's disk.
    assert link.begun.wait(SECONDS)
    site.send(b"x" * 100000)
    assert site.getresponse().status == 200
    assert link.seen == [("POST", CALL, hashlib.sha256(b"x" * 200000).hexdigest())]


def test_a_connection_is_kept(site: HTTPSConnection, link: SuperLink) -> None:
    assert call(site, "POST", CALL) == 200
    first = site.sock
    assert call(site, "POST", CALL) == 200
    assert site.sock is first
    assert len(link.seen) == 2


def test_the_log_holds_what_was_refused_and_no_secret(site: HTTPSConnection, running) -> None:
    path = "/v1/control/log-me-"
    secret = {"body": b"what-a-site-sends", "flwr_signature": "whose-site-it-is"}
    assert call(site, "POST", "/v1/fleet/not-me-", **secret) == 200
    assert call(site, "POST", path, **secret) == 404
    state = running[0] / "state"
    end = time.monotonic() + SECONDS
    while path not in (state / "proxy.log").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    (line,) = [line for line in (state / "proxy.log").read_text().splitlines() if path in line]
    assert f' 127.0.0.1 "POST {path}" 404 ' in line
    # Every site calls every three seconds: what went well would fill the disk.
    assert "not-me-" not in (state / "proxy.log").read_text()
    for file in state.rglob("*"):
        text = file.read_bytes() if file.is_file() else b""
        assert b"what-a-site-sends" not in text
        assert b"whose-site-it-is" not in text


def test_it_does_not_tell_its_version(site: HTTPSConnection) -> None:
    for path in ("/", CALL):
        site.request("POST", path)
        response = site.getresponse()
        shown = response.read() + str(response.headers).encode()
        assert b"nginx/" not in shown


def test_without_tls_nothing_passes(running, link: SuperLink) -> None:
    with socket.create_connection(("127.0.0.1", running[1]), SECONDS) as plain:
        plain.sendall(f"POST {CALL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert plain.recv(4096).split()[1] == b"400"
    assert link.seen == []


@pytest.mark.parametrize(("version", "works"), [("tls1_1", False), ("tls1_2", True), ("tls1_3", True)])
def test_tls_versions(version: str, works: bool, running) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    centre, port, _ = running
    # Security level 0: or openssl itself would not offer the old one.
    command = [openssl, "s_client", f"-{version}", "-cipher", "DEFAULT@SECLEVEL=0", "-verify_return_error"]
    command += ["-connect", f"127.0.0.1:{port}", "-CAfile", centre / "ca.crt"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is works, done.stdout + done.stderr
    assert ("Cipher is ECDHE-ECDSA" in done.stdout or "Cipher is TLS_AES" in done.stdout) is works
    assert ("alert protocol version" in done.stderr) is not works


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start it as another user")
def test_it_runs_without_root(running) -> None:
    pid = int((running[0] / "state" / "nginx.pid").read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status


@pytest.fixture
def alone(federation: tuple[Path, int, int]) -> Iterator[tuple[Path, int, int]]:
    """Return a centre like the running one, on its own ports."""
    with tempfile.TemporaryDirectory(prefix="fedfair-") as scratch:
        port, inner = free_ports()
        centre = Path(shutil.copytree(federation[0], Path(scratch) / "centre", symlinks=True))
        shutil.rmtree(centre / "state")
        (centre / "state").mkdir()
        plain = {"host": "127.0.0.1", "port": port, "inner_port": inner}
        text = nginx_configuration(parse_consortium(changed("centre", plain)))
        (centre / "nginx.conf").write_text(text)
        own(Path(scratch))
        yield centre, port, inner


def stranger(_: Path) -> Issued:
    return issue(make_authority("heart"), ("localhost", "127.0.0.1"), 9)


def wrong_name(centre: Path) -> Issued:
    authority = Issued((centre / "ca.crt").read_bytes(), (centre / "ca.key").read_bytes())
    return issue(authority, ("fedfair.example.org",), 9)


@pytest.mark.parametrize("impostor", [stranger, wrong_name])
def test_only_the_superlink_itself_is_spoken_to(
    impostor, alone: tuple[Path, int, int], tmp_path: Path
) -> None:
    centre, port, inner = alone
    made = impostor(centre)
    certificate, key = tmp_path / "crt", tmp_path / "key"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    with superlink(inner, certificate, key) as link, nginx(centre, port):
        assert (
            raw((centre, port, link), f"POST {CALL} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") == 502
        )
        assert link.seen == []
    assert "SSL" in (centre / "state" / "proxy-error.log").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_it_stays_in_the_foreground_and_ends_when_told(
    how: signal.Signals, alone: tuple[Path, int, int]
) -> None:
    centre, port, inner = alone
    with nginx(centre, port) as process:
        # No SuperLink: the proxy stays, and says so.
        assert raw((centre, port, SuperLink(inner)), f"POST {CALL} HTTP/1.1\r\nHost: x\r\n\r\n") == 502
        assert process.poll() is None
        process.send_signal(how)
        assert process.wait(timeout=SECONDS) == 0
    assert not (centre / "state" / "nginx.pid").exists()
    written_elsewhere = {path.name for path in centre.iterdir()}
    assert written_elsewhere == {"state", "nodes"} | {
        *("nginx.conf", "start.sh", "compose.yaml", "Dockerfile", "fedfair-centre.service"),
        *(f"{stem}.{end}" for stem in ("ca", "server", "link") for end in ("crt", "key")),
    }


def test_nginx_accepts_what_a_real_centre_gets(alone: tuple[Path, int, int]) -> None:
    centre, port, inner = alone
    plain = {"host": "fedfair.example.org", "port": port, "inner_port": inner}
    (centre / "nginx.conf").write_text(nginx_configuration(parse_consortium(changed("centre", plain))))
    done = subprocess.run([*command_of(centre), "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "emerg" not in done.stderr


@pytest.mark.parametrize(
    ("host", "listen"),
    [
        ("fedfair.example.org", "0.0.0.0:8443"),
        ("10.0.0.7", "0.0.0.0:8443"),
        ("fd00::1", "[::]:8443"),
        ("localhost", "127.0.0.1:8443"),
        ("127.0.0.2", "127.0.0.2:8443"),
        ("::1", "[::1]:8443"),
    ],
)
def test_a_rehearsal_is_not_seen_from_outside(host: str, listen: str) -> None:
    text = nginx_configuration(parse_consortium(changed("centre.host", host)))
    assert text.count("listen ") == 1
    assert f"        listen {listen} ssl;\n" in text
    assert "proxy_pass https://127.0.0.1:9443;" in text


def test_without_nginx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingDependency, match="install your system's package nginx"):
        nginx_command(tmp_path)


def test_the_configuration_depends_on_the_ports_alone() -> None:
    text = nginx_configuration(parse_consortium(PLAIN))
    assert "@" not in text
    other = changed("sites", ["Hungary"])
    assert nginx_configuration(parse_consortium(other)) == text
