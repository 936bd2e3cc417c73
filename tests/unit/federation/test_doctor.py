"""The doctor: each fault that a hospital may have is found, and named with what to do about it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedfair.data.heart import heart_table
from fedfair.errors import DataError
from fedfair.federation import certificates, doctor, reach
from fedfair.federation.approval import approve
from fedfair.federation.bundle import open_bundle
from fedfair.federation.doctor import Finding, check, render
from fedfair.federation.keys import make_node_key
from fedfair.federation.reach import days_left, skew
from tests.unit.federation.sites import HASH, NAME, change, federation, own_table, served

ROWS = [row for row in heart_table()[0] if row["site"] == NAME]


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def site(centre: Path, tmp_path: Path) -> Path:
    """Return a site in good health, with its own table, code approved, and the centre not called."""
    made = open_bundle(centre / "bundles" / "va-long-beach.tar.gz", tmp_path)
    change(made, data=str(own_table(tmp_path / "ours.csv")))
    approve(made, HASH, "ada")
    return made


def named(findings: list[Finding], name: str) -> Finding:
    """Return the one finding of this name."""
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def offline(site: Path, name: str) -> Finding:
    return named(check(site, online=False), name)


@pytest.fixture
def calls(site: Path, centre: Path) -> Iterator[list[Finding]]:
    with served(centre / "centre" / "server.crt", centre / "centre" / "server.key") as port:
        change(site, centre=f"localhost:{port}")
        yield check(site)


def test_a_healthy_site_has_nothing_to_mend(calls: list[Finding]) -> None:
    assert [finding for finding in calls if finding.ok is not True] == []
    names = {finding.name for finding in calls}
    assert {"python", "packages", "settings", "bundle", "key's permissions", "key", "authority"} <= names
    assert {"name of the centre", "port", "certificate", "certificate's time", "clock"} <= names
    assert {"records", "vocabulary", "groups of sex", "disk", "ledgers", "audit", "audit log"} <= names
    assert {"GPU", "approved code", "Flower's programs"} <= names


def test_offline_calls_nobody(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    monkeypatch.setattr(socket, "create_connection", None)
    assert all(finding.ok is not False for finding in check(site, online=False))


def test_nothing_in_the_folder_changes(site: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}

    before = files()
    check(site, online=False)
    assert files() == before


# Packages and files.


def test_a_package_of_another_version_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.39.0" if name == "flwr" else real(name))
    found = [finding for finding in check(site, online=False) if finding.name == "packages"]
    (wrong,) = [finding for finding in found if finding.ok is False]
    asked = next(text for text in metadata.requires("fedfair") or [] if text.startswith("flwr"))
    assert wrong.found == f"flwr 1.39.0, where {asked.removeprefix('flwr')} is asked for"
    assert wrong.fix == f"pip install '{asked}'"


def test_an_old_python_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.18")
    found = offline(site, "python")
    assert (found.ok, found.fix) == (False, "install Python >=3.11")


def test_without_flowers_programs_nothing_would_start(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "programs_path", lambda: str(site))
    assert offline(site, "Flower's programs").ok is False


@pytest.mark.parametrize("name", ["ca.crt", "node.key", "node.pub"])
def test_a_missing_file_is_named(site: Path, name: str) -> None:
    (site / name).unlink()
    found = offline(site, "bundle")
    assert (found.ok, found.found) == (False, f"lacks {name}")


def test_a_key_that_others_can_read_is_refused(site: Path) -> None:
    (site / "node.key").chmod(0o640)
    found = offline(site, "key's permissions")
    assert (found.ok, found.fix) == (False, f"chmod 600 {site / 'node.key'}")


def test_a_public_half_of_another_key_is_found(site: Path) -> None:
    (site / "node.pub").write_bytes(make_node_key("heart-other").public)
    found = offline(site, "key")
    assert not found.ok and "node.pub must be the public half of node.key" in found.found


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_found_and_not_shown(site: Path, content: bytes) -> None:
    (site / "node.key").write_bytes(content)
    found = offline(site, "key")
    assert not found.ok and "AAAA" not in render([found])


def test_a_damaged_authority_is_found(site: Path) -> None:
    (site / "ca.crt").write_text("no certificate")
    assert offline(site, "authority").ok is False


def test_settings_that_bind_nothing_by_a_slip_are_found(site: Path) -> None:
    change(site, max_epsilom=1.0)
    found = offline(site, "settings")
    assert not found.ok and "max-epsilon" in found.found


def test_a_folder_that_is_no_site_is_found(tmp_path: Path) -> None:
    assert offline(tmp_path, "settings").ok is False


@pytest.mark.parametrize("address", ["fedfair.example.org", "host:none", ":8443", "host:99999"])
def test_an_address_without_a_port_is_found(site: Path, address: str) -> None:
    change(site, centre=address)
    assert "`centre` must be host:port" in offline(site, "settings").found


def test_a_full_disk_is_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    found = offline(site, "disk")
    assert (found.ok, found.found) == (False, "1.0 GiB free")


def test_a_place_that_cannot_be_written_is_found(site: Path) -> None:
    (site / "a-file").touch()
    change(site, ledger="a-file/ledgers")
    assert offline(site, "ledgers").ok is False


def test_a_changed_audit_log_is_found(site: Path) -> None:
    log = site / "audit.jsonl"
    log.write_text(log.read_text().replace('"by":"ada"', '"by":"eve"'))
    assert offline(site, "audit log").ok is False


def test_without_approved_code_there_is_a_note(site: Path) -> None:
    (site / "approved.txt").unlink()
    found = offline(site, "approved code")
    assert found.ok is None and "fedfair site approve HASH" in found.fix


def test_a_damaged_list_of_approvals_is_found(site: Path) -> None:
    (site / "approved.txt").write_text("yes\n")
    assert offline(site, "approved code").ok is False


def test_the_gpu_is_told(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Accelerator 9000")
    assert offline(site, "GPU").found == "Accelerator 9000"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert offline(site, "GPU").ok is True


# Records.


def test_records_are_counted_by_group(site: Path) -> None:
    findings = check(site, online=False)
    assert named(findings, "records").found == str(len(ROWS))
    ages = Counter(
        "<50" if float(row["age"]) < 50 else "50-59" if float(row["age"]) < 60 else "60+" for row in ROWS
    )
    assert named(findings, "groups of age").found == ", ".join(
        f"{g} {ages[g]}" for g in ("<50", "50-59", "60+")
    )
    # 6 women: neither their number, nor that of the men, from which it would follow.
    assert named(findings, "groups of sex").found == "female <10, male 10 or more"
    assert str(Counter(row["sex"] for row in ROWS)["male"]) not in render(findings)


def test_too_few_records_are_found(site: Path) -> None:
    change(site, min_records=len(ROWS) + 1)
    found = offline(site, "records")
    assert (found.ok, found.found) == (False, f"{len(ROWS)}, where `min-records` asks for {len(ROWS) + 1}")


def test_a_handful_of_records_is_not_counted(site: Path, tmp_path: Path) -> None:
    lines = (tmp_path / "ours.csv").read_text().splitlines(keepends=True)
    (tmp_path / "ours.csv").write_text("".join(lines[:6]))
    findings = check(site, online=False)
    assert named(findings, "records").found == "fewer than 10"
    assert named(findings, "groups of sex").found == "female withheld, male withheld"


def test_groups_beside_the_vocabulary_are_found(site: Path) -> None:
    change(site, attributes={"sex": ["female", "male"]})
    found = offline(site, "vocabulary")
    assert not found.ok and "`age`" in found.found


def test_a_file_that_is_not_there_is_found(site: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.csv").unlink()
    found = offline(site, "records")
    assert not found.ok and "fedfair site join FOLDER --data PATH" in found.fix


def test_without_a_format_the_records_are_not_judged(site: Path) -> None:
    change(site, schema=None)
    assert offline(site, "records").ok is None


def test_a_reader_that_is_not_allowed_is_not_imported(site: Path) -> None:
    change(site, schema={"name": "this:d"})  # a module of Python's own that nobody imports in earnest
    found = offline(site, "records")
    assert not found.ok and "listed in `allow`" in found.found
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "error, shown",
    [
        (ValueError("SECRET"), "the reader of ward:opened failed (ValueError)"),
        (DataError("`age` must be a number, got SECRET"), "`age` must be a number"),
        (DataError("`age` must be a column; did you mean `SECRET`?"), "`age` must be a column"),
    ],
)
def test_what_another_reader_says_is_not_shown(
    site: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, shown: str
) -> None:
    def opened(path: str, options: object, seed: int) -> object:
        del path, options, seed
        raise error

    monkeypatch.setitem(sys.modules, "ward", SimpleNamespace(opened=opened))
    change(site, schema={"name": "ward:opened"}, allow=["ward:opened"])
    found = offline(site, "records")
    assert (found.ok, found.found) == (False, shown)


@pytest.mark.parametrize("broken", ["cell", "header", "site", "cells"])
def test_no_value_of_a_record_is_shown(site: Path, tmp_path: Path, broken: str) -> None:
    file = tmp_path / "ours.csv"
    header, *lines = file.read_text().splitlines(keepends=True)
    secret = "agee-SECRET-7"
    match broken:
        case "cell":
            lines[3] = lines[3].replace("male", secret, 1)
        case "header":  # the first record where the names should be
            header = lines[0] = ",".join([secret, "agge", *lines[0].split(",")[2:]])
        case "site":
            lines[3] = lines[3].replace(NAME, secret)
        case "cells":
            lines[3] = f"{secret},{lines[3]}"
    file.write_text("".join([header, *lines]))
    findings = check(site, online=False)
    assert named(findings, "records").ok is False
    assert "SECRET" not in render(findings) and "agge" not in render(findings)


# The way to the centre.


@contextmanager
def tunnel(port: int | None, asked: list[str]) -> Iterator[int]:
    """Serve a proxy that connects whatever it is asked for to `port`, or refuses; yield its own port."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            asked.append(connection.recv(65536).decode())
            if port is None:
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as further:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(further, connection))
                back.start()
                pump(connection, further)
                further.shutdown(socket.SHUT_RDWR)
                back.join()

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def reached(site: Path, port: int, host: str = "localhost") -> list[Finding]:
    change(site, centre=f"{host}:{port}")
    return [
        f
        for f in check(site)
        if f.name in ("name of the centre", "port", "certificate", "certificate's time", "clock")
    ]


def issued(
    folder: Path, authority: certificates.Issued, names: list[str], days: int = 90
) -> tuple[Path, Path]:
    made = certificates.issue(authority, names, days)
    (folder / "x.crt").write_bytes(made.certificate)
    (folder / "x.key").write_bytes(made.key)
    return folder / "x.crt", folder / "x.key"


@pytest.fixture
def ours(centre: Path) -> certificates.Issued:
    return certificates.Issued(*((centre / "centre" / f"ca.{end}").read_bytes() for end in ("crt", "key")))


def test_a_name_that_does_not_exist_is_found(site: Path) -> None:
    (found,) = reached(site, 8443, "centre.invalid")
    assert not found.ok and "centre.invalid is not found" in found.found


def test_a_closed_port_is_found(site: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        *_, found = reached(site, probe.getsockname()[1])
    assert (found.name, found.ok) == ("port", False)
    assert "ask the centre whether it is running" in found.fix


def test_a_wrong_authority_is_named(site: Path, tmp_path: Path) -> None:
    other = certificates.make_authority("inspection by the hospital")
    with served(*issued(tmp_path, other, ["localhost"])) as port:
        *_, found = reached(site, port)
    assert (found.name, found.ok) == ("certificate", False)
    assert "wrong authority: it is signed by 'CN=fedfair inspection by the hospital authority'" in found.found


def test_a_certificate_for_another_name_is_found(
    site: Path, tmp_path: Path, ours: certificates.Issued
) -> None:
    with served(*issued(tmp_path, ours, ["other.example.org"])) as port:
        *_, found = reached(site, port)
    assert (found.name, found.ok) == ("certificate", False)
    assert "it is not for localhost" in found.found and "ask the centre to certify localhost" in found.fix


def test_an_expired_certificate_is_found(
    site: Path, tmp_path: Path, ours: certificates.Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = datetime.now(UTC) - timedelta(days=200)
    monkeypatch.setattr(certificates, "_now", lambda: then)
    with served(*issued(tmp_path, ours, ["localhost"], days=90)) as port:
        *_, found = reached(site, port)
    assert (found.name, found.ok) == ("certificate", False)
    assert "has expired" in found.found and "ask the centre to renew" in found.fix


def test_a_certificate_that_ends_soon_is_noted(site: Path, tmp_path: Path, ours: certificates.Issued) -> None:
    with served(*issued(tmp_path, ours, ["localhost"], days=20)) as port:
        found = named(reached(site, port), "certificate's time")
    assert found.ok is None
    assert "19 days" in found.found and "renew" in found.fix


def test_a_port_without_tls_is_found(site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        *_, found = reached(site, server.getsockname()[1])
        thread.join()
    assert (found.name, found.ok) == ("certificate", False)
    assert "no TLS connection" in found.found


@pytest.mark.parametrize(
    "ahead, fine", [(0, True), (3, True), (9, False), (-45, True), (-80, False), (86400, False)]
)
def test_a_clock_that_is_wrong_is_found(site: Path, centre: Path, ahead: int, fine: bool) -> None:
    pair = (centre / "centre" / "server.crt", centre / "centre" / "server.key")
    with served(*pair, date=formatdate(time.time() - ahead, usegmt=True)) as port:
        found = named(reached(site, port), "clock")
    assert found.ok is fine
    assert ("NTP" in found.fix) is not fine


def test_the_limits_of_the_clock_are_flowers() -> None:
    # Flower takes a signature that is at most 5 s from its future; a date header hides up to a second.
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert reach.AHEAD <= SYSTEM_TIME_TOLERANCE
    assert reach.BEHIND < TIMESTAMP_TOLERANCE
    assert skew("Thu, 01 Jan 1970 00:16:40 GMT", 1004.0, 1006.0).ok is True  # 4.5 s ahead
    assert skew("Thu, 01 Jan 1970 00:16:40 GMT", 1006.0, 1006.0).ok is False
    assert skew("Thu, 01 Jan 1970 00:16:40 GMT", 939.0, 940.0).ok is False


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_centre_without_a_clock_is_no_failure(date: str | None) -> None:
    assert skew(date, 0.0, 0.0).ok is None


@pytest.mark.parametrize("days, ok", [(-1, False), (0.5, None), (29, None), (31, True)])
def test_dates(days: float, ok: bool | None) -> None:
    found = days_left("it", datetime.now(UTC) + timedelta(days=days), "renew it")
    assert (found.ok, found.fix) == (ok, "" if ok else "renew it")


def test_the_hospitals_proxy_is_the_way(site: Path, centre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = (centre / "centre" / "server.crt", centre / "centre" / "server.key")
    asked: list[str] = []
    with served(*pair) as port, tunnel(port, asked) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ward:p%40ss@127.0.0.1:{proxy}")
        monkeypatch.setenv("NO_PROXY", "")
        # Port 443 of this machine serves nothing: the tunnel alone leads to the centre.
        findings = reached(site, 443, "localhost")
        assert all(finding.ok for finding in findings), render(findings)
        assert "looked up by the proxy 127.0.0.1" in findings[0].found
        monkeypatch.setenv("NO_PROXY", "localhost")
        assert all(finding.ok for finding in reached(site, port))
    (request,) = asked
    assert request.startswith("CONNECT localhost:443 HTTP/1.")
    assert "Proxy-Authorization: Basic d2FyZDpwQHNz" in request  # ward:p@ss


def test_a_proxy_that_refuses_is_named(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tunnel(None, []) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        monkeypatch.setenv("NO_PROXY", "")
        *_, found = reached(site, 443)
    assert (found.name, found.ok) == ("port", False)
    assert "through the proxy 127.0.0.1" in found.found and "403" in found.found


# How it reads.


def test_it_reads_as_plain_text() -> None:
    text = render(
        [
            Finding(True, "python", "3.11.9"),
            Finding(False, "clock", "9 s ahead\nof the centre's", "set it by NTP"),
            Finding(None, "approved code", "none " * 40, "approve it"),
        ]
    )
    lines = text.splitlines()
    assert lines[0] == "ok    python               3.11.9"
    assert lines[1] == "FAIL  clock                9 s ahead of the centre's"
    assert lines[2] == "                        -> set it by NTP"
    assert lines[-1] == "1 ok, 1 to mend, 1 to note"
    assert text.isascii() and max(map(len, lines)) <= 100
