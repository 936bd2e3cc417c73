"""Certificates and keys, judged by openssl, ssh-keygen and Flower's own loaders."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedfair.errors import ConfigError
from fedfair.federation import certificates
from fedfair.federation.certificates import Issued, check_chain, describe, issue, make_authority
from fedfair.federation.keys import make_node_key

NAMES = ("fedfair.example.org", "10.0.0.7", "fd00::1", "localhost", "127.0.0.1")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def told(*command: str | Path) -> str:
    done = subprocess.run(
        [program(str(command[0])), *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def authority() -> Issued:
    return make_authority("heart")


@pytest.fixture
def files(authority: Issued, tmp_path: Path) -> Path:
    server = issue(authority, NAMES, 90)
    for name, content in (
        ("ca.crt", authority.certificate),
        ("server.crt", server.certificate),
        ("server.key", server.key),
    ):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_openssl_reads_an_authority_that_signs_end_certificates_only(files: Path) -> None:
    text = told("openssl", "x509", "-in", files / "ca.crt", "-noout", "-text")
    assert "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0\n" in text
    assert "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n" in text
    assert "NIST CURVE: P-384" in text
    assert "CN = fedfair heart authority" in text


def test_openssl_reads_a_server_certificate(files: Path) -> None:
    text = told("openssl", "x509", "-in", files / "server.crt", "-noout", "-text")
    assert "CA:FALSE" in text
    assert "X509v3 Key Usage: critical\n                Digital Signature\n" in text
    assert "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n" in text
    names = "DNS:fedfair.example.org, IP Address:10.0.0.7, IP Address:FD00:0:0:0:0:0:0:1, DNS:localhost"
    assert f"{names}, IP Address:127.0.0.1\n" in text


def test_openssl_verifies_each_name_and_no_other(files: Path) -> None:
    verify = ("openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", files / "ca.crt")
    for name in NAMES:
        kind = "-verify_ip" if certificates.is_address(name) else "-verify_hostname"
        told(*verify, kind, name, files / "server.crt")
    for kind, name in (("-verify_ip", "10.0.0.8"), ("-verify_hostname", "evil.example.org")):
        command = [*verify, kind, name, files / "server.crt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "mismatch" in done.stdout + done.stderr


def test_openssl_refuses_another_authority_of_the_same_name(files: Path) -> None:
    (files / "other.crt").write_bytes(make_authority("heart").certificate)
    command = [program("openssl"), "verify", "-CAfile", files / "other.crt", files / "server.crt"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    with pytest.raises(ConfigError, match="must be signed by CN=fedfair heart authority"):
        check_chain(files / "server.crt", files / "other.crt")
    check_chain(files / "server.crt", files / "ca.crt")


def test_python_shakes_hands_under_the_strictest_checks(files: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files / "server.crt", files / "server.key")
    client = ssl.create_default_context(cafile=files / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with server.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            socket.create_connection(listening.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.version() == "TLSv1.3"
            pem = ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(binary_form=True) or b"")
        thread.join()
    assert describe(pem.encode()) == describe(files / "server.crt")


def test_what_describe_says(files: Path) -> None:
    said = describe(files / "server.crt")
    assert sorted(said.names) == sorted(NAMES)
    now = datetime.now(UTC)
    # An hour's skew, and the minute that this test may take.
    assert now - timedelta(minutes=61) <= said.not_before <= now - timedelta(minutes=59)
    assert now + timedelta(days=90, minutes=-1) <= said.not_after <= now + timedelta(days=90)
    assert describe(files / "ca.crt").names == ()


def test_no_certificate_outlives_its_authority(authority: Issued, monkeypatch: pytest.MonkeyPatch) -> None:
    end = describe(authority.certificate).not_after
    assert describe(issue(authority, NAMES, 9999).certificate).not_after == end
    monkeypatch.setattr(certificates, "_now", lambda: end + timedelta(seconds=1))
    with pytest.raises(ConfigError, match="the authority must still be valid, got one that ended 20"):
        issue(authority, NAMES, 1)


@pytest.mark.parametrize(("shift", "who"), [(-2, "certificate"), (95, "certificate"), (3651, "authority")])
def test_chain_is_judged_by_the_clock(
    authority: Issued, monkeypatch: pytest.MonkeyPatch, shift: int, who: str
) -> None:
    server = issue(authority, NAMES, 9999 if who == "authority" else 90)
    now = datetime.now(UTC)
    check_chain(server.certificate, authority.certificate)
    monkeypatch.setattr(certificates, "_now", lambda: now + timedelta(days=shift))
    with pytest.raises(ConfigError, match="must be valid now, got 20"):
        check_chain(server.certificate, authority.certificate)


@pytest.mark.parametrize(
    "content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ca.crt"
    with pytest.raises(ConfigError, match="a certificate must be a readable PEM file, got"):
        describe(path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="a certificate must be a readable PEM file, got"):
        describe(path)


def test_keys_do_not_show_themselves(authority: Issued) -> None:
    node = make_node_key("heart-cleveland")
    assert "PRIVATE" not in repr(authority) + repr(node)


def test_ssh_keygen_reads_a_node_key(tmp_path: Path) -> None:
    node = make_node_key("heart-cleveland")
    private, public = tmp_path / "node.key", tmp_path / "node.pub"
    private.write_bytes(node.private)
    private.chmod(0o600)
    public.write_bytes(node.public)
    said = told("ssh-keygen", "-l", "-f", public)
    assert said.startswith("384 SHA256:")
    assert said.endswith(" heart-cleveland (ECDSA)\n")
    # -y derives the public half, and would ask for a passphrase if there were one.
    assert told("ssh-keygen", "-y", "-P", "", "-f", private).split()[:2] == node.public.decode().split()[:2]


def test_flower_reads_a_node_key(tmp_path: Path) -> None:
    register = pytest.importorskip("flwr.cli.supernode.register")
    asymmetric = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    node = make_node_key("heart-cleveland")
    (tmp_path / "node.pub").write_bytes(node.public)
    private = load_ssh_private_key(node.private, None)  # as flower-supernode reads it
    public = register.try_load_public_key(tmp_path / "node.pub")
    assert public == asymmetric.public_key_to_bytes(private.public_key())
