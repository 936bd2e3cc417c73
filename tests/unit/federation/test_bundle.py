"""A bundle: what is packed is unpacked, and what is damaged or hostile leaves nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedfair.errors import ConfigError, RunError
from fedfair.federation import units
from fedfair.federation.bundle import MODES, SUMS, open_bundle, pack
from fedfair.federation.certificates import make_authority
from fedfair.federation.consortium import parse_consortium
from fedfair.federation.keys import make_node_key, roster_text
from fedfair.federation.settings import write_settings
from tests.unit.federation.example import PLAIN

CONSORTIUM = parse_consortium(PLAIN)
SITE = "VA Long Beach"
FOLDER = "heart-va-long-beach"
KEY = make_node_key(FOLDER)
AUTHORITY = make_authority("heart").certificate
ROSTER = roster_text({"north": KEY.public})
PACKED = pack(CONSORTIUM, SITE, KEY, AUTHORITY, ROSTER)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "va-long-beach.tar.gz"
    path.write_bytes(PACKED)
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "hospital"
    folder.mkdir()
    return folder


def test_what_is_packed_is_unpacked(bundle: Path, into: Path) -> None:
    folder = open_bundle(bundle, into)
    assert folder == into / FOLDER
    assert list(into.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == MODES
    assert (folder / "node.key").read_bytes() == KEY.private
    assert (folder / "node.pub").read_bytes() == KEY.public
    assert (folder / "ca.crt").read_bytes() == AUTHORITY
    assert (folder / "site.yaml").read_text(encoding="utf-8") == write_settings(CONSORTIUM, SITE)


def test_tar_and_sha256sum_agree(bundle: Path, into: Path) -> None:
    if shutil.which("tar") is None or shutil.which("sha256sum") is None:
        pytest.skip("tar or sha256sum is not installed")
    subprocess.run(["tar", "xzf", bundle, "-C", into], check=True)
    folder = into / FOLDER
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == MODES
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK\n") == len(MODES) - 1


def test_the_same_input_gives_the_same_bytes() -> None:
    assert pack(CONSORTIUM, SITE, KEY, AUTHORITY, ROSTER) == PACKED


def test_opening_again_keeps_what_the_hospital_wrote(bundle: Path, into: Path) -> None:
    folder = open_bundle(bundle, into)
    (folder / "site.yaml").write_text("site: ours\n")
    (folder / "approved.txt").write_text("mine")
    assert open_bundle(bundle, into) == folder
    assert (folder / "site.yaml").read_text() == "site: ours\n"
    assert (folder / "approved.txt").read_text() == "mine"


def test_a_folder_of_another_key_is_left_alone(bundle: Path, into: Path, tmp_path: Path) -> None:
    folder = open_bundle(bundle, into)
    other = tmp_path / "other.tar.gz"
    other.write_bytes(pack(CONSORTIUM, SITE, make_node_key("x"), AUTHORITY, ROSTER))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match="must be a folder that does not exist yet"):
        open_bundle(other, into)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(into.iterdir()) == [folder]


def test_a_folder_that_is_no_site_is_left_alone(bundle: Path, into: Path) -> None:
    (into / FOLDER).mkdir()
    with pytest.raises(RunError, match="must be a folder that does not exist yet"):
        open_bundle(bundle, into)
    assert not list((into / FOLDER).iterdir())
    with pytest.raises(RunError, match="must lie in a folder that can be written to"):
        open_bundle(bundle, into / "none")


Change = Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]


def repacked(change: Change, sums: bool = True) -> bytes:
    """Return the bundle with its members changed, and with sums that agree unless told otherwise."""
    with tarfile.open(fileobj=io.BytesIO(PACKED)) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    change(members)
    if sums:
        lines = [
            f"{hashlib.sha256(content).hexdigest()}  {member.name.partition('/')[2]}\n"
            for member, content in members
            if not member.name.endswith(SUMS)
        ]
        members = [(m, "".join(lines).encode() if m.name.endswith(SUMS) else c) for m, c in members]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue())


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, 0o4777
    return made


def add(made: tarfile.TarInfo, content: bytes = b"") -> Change:
    return lambda members: members.append((made, content))


def put(name: str, made: tarfile.TarInfo) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        (at,) = (i for i, (old, _) in enumerate(members) if old.name == f"{FOLDER}/{name}")
        members[at] = (made, b"")

    return change


def drop(name: str) -> Change:
    return lambda members: members.remove(next(m for m in members if m[0].name == f"{FOLDER}/{name}"))


def move_all(top: str) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for entry, _ in members:
            entry.name = f"{top}/{entry.name.partition('/')[2]}"

    return change


def move_first(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[0][0].name = "other-site/" + members[0][0].name.partition("/")[2]


HOSTILE = {
    "extra file": add(member(f"{FOLDER}/.bashrc")),
    "file in a subfolder": add(member(f"{FOLDER}/bin/flwr")),
    "path upwards": add(member(f"{FOLDER}/../evil")),
    "top folder upwards": move_all(".."),
    "top folder here": move_all("."),
    "absolute": move_all("/tmp"),
    "no top folder": add(member("site.yaml")),
    "two top folders": move_first,
    "the same file twice": add(member(f"{FOLDER}/start.sh"), b"evil"),
    "symbolic link": put("start.sh", member(f"{FOLDER}/start.sh", tarfile.SYMTYPE, "/bin/sh")),
    "hard link": put("start.sh", member(f"{FOLDER}/start.sh", tarfile.LNKTYPE, f"{FOLDER}/node.key")),
    "link for the folder": lambda members: members.insert(0, (member(FOLDER, tarfile.SYMTYPE, "/tmp"), b"")),
    "device": put("start.sh", member(f"{FOLDER}/start.sh", tarfile.CHRTYPE)),
    "pipe": put("start.sh", member(f"{FOLDER}/start.sh", tarfile.FIFOTYPE)),
    "folder": put("start.sh", member(f"{FOLDER}/start.sh", tarfile.DIRTYPE)),
    "missing file": drop("start.sh"),
    "missing sums": drop(SUMS),
}


def refused(content: bytes, tmp_path: Path, into: Path) -> str:
    """Return what is said, having seen that nothing was written, here or beside."""
    path = tmp_path / "hostile.tar.gz"
    path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        open_bundle(path, into)
    assert sorted(tmp_path.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_no_bundle_holds_is_refused(change: Change, tmp_path: Path, into: Path) -> None:
    assert " must hold " in refused(repacked(change), tmp_path, into)


def test_repacking_alone_is_harmless(tmp_path: Path, into: Path) -> None:
    # Or the tests above and below would refuse for another reason than they say.
    path = tmp_path / "same.tar.gz"
    path.write_bytes(repacked(lambda _: None))
    assert open_bundle(path, into).is_dir()


def test_modes_of_the_archive_do_not_count(tmp_path: Path, into: Path) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for entry, _ in members:
            entry.mode = 0o6777

    path = tmp_path / "open.tar.gz"
    path.write_bytes(repacked(change))
    folder = open_bundle(path, into)
    assert {file.name: file.stat().st_mode & 0o7777 for file in folder.iterdir()} == MODES


def edited(name: str) -> Change:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        at = next(i for i, (entry, _) in enumerate(members) if entry.name.endswith(name))
        members[at] = (members[at][0], members[at][1] + b"#")

    return change


@pytest.mark.parametrize("name", MODES)
def test_a_changed_file_is_found_by_its_sum(name: str, tmp_path: Path, into: Path) -> None:
    said = refused(repacked(edited(name), sums=False), tmp_path, into)
    assert f"must match its {SUMS}" in said
    assert name in said or name == SUMS


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9999])
def test_a_cut_archive_is_refused(share: float, tmp_path: Path, into: Path) -> None:
    refused(PACKED[: int(share * len(PACKED))], tmp_path, into)


def test_any_flipped_bit_is_found(tmp_path: Path, into: Path) -> None:
    plain = gzip.decompress(PACKED)
    found = 0
    # Behind the 10 bytes of gzip's header, which its sum does not cover; every 29th is enough.
    for at in range(10, len(PACKED), 29):
        flipped = PACKED[:at] + bytes([PACKED[at] ^ 1]) + PACKED[at + 1 :]
        with contextlib.suppress(OSError, EOFError, zlib.error):
            # Some bits only choose between two codes of the same content.
            if gzip.decompress(flipped) == plain:
                continue
        refused(flipped, tmp_path, into)
        found += 1
    assert found > 100


def test_what_is_no_archive_is_refused(tmp_path: Path, into: Path) -> None:
    for content in (b"no archive", gzip.compress(b"no tar"), gzip.compress(b"\0" * 10240)):
        refused(content, tmp_path, into)
    with pytest.raises(ConfigError, match="must be the .tar.gz that the centre handed over, got"):
        open_bundle(tmp_path / "none.tar.gz", into)


def test_an_archive_that_swells_is_refused(tmp_path: Path, into: Path) -> None:
    said = refused(gzip.compress(b"\0" * 50_000_000), tmp_path, into)
    assert "must unpack to a bundle's size" in said


PROGRAMS = {
    **{("site", name): text for name, text in units.site_files(CONSORTIUM, SITE).items()},
    **{("centre", name): text for name, text in units.centre_files(CONSORTIUM).items()},
}


@pytest.mark.parametrize("of", ["site", "centre"])
def test_shell_reads_start_sh(of: str, tmp_path: Path) -> None:
    script = tmp_path / "it is" / "start.sh"
    script.parent.mkdir()
    script.write_text(PROGRAMS[of, "start.sh"])
    fedfair = tmp_path / "fedfair"
    fedfair.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    for path in (script, fedfair):
        path.chmod(0o755)
    subprocess.run(["bash", "-n", script], check=True)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    here = script.parent
    wanted = {"site": f"site|join|{here}|", "centre": f"federation|start|{here}/..|"}
    assert done.stdout == wanted[of]


@pytest.mark.parametrize("of", ["site", "centre"])
def test_compose_files_are_closed(of: str) -> None:
    compose = yaml.safe_load(PROGRAMS[of, "compose.yaml"])
    (service,) = compose["services"].values()
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert ("ports" in service) is (of == "centre")
    assert service.get("ports", ["8443:8443"]) == ["8443:8443"]
    assert re.fullmatch("[a-z0-9][a-z0-9_-]*", compose["name"])
    if of == "site":
        assert [v for v in service["volumes"] if "FEDFAIR_DATA" in v][0].endswith(":ro")


@pytest.mark.parametrize("of", ["site", "centre"])
def test_docker_files_copy_no_key(of: str) -> None:
    lines = PROGRAMS[of, "Dockerfile"].splitlines()
    words = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert words <= {"FROM", "RUN", "ARG", "COPY", "ENV", "WORKDIR"}
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    assert copied
    for sources in copied:
        assert sources[0] == "--from=checkout" or sources == ["Dockerfile", "*.whl"]
        assert "." not in sources


@pytest.mark.parametrize("of", ["site", "centre"])
def test_systemd_accepts_the_unit(of: str, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    text = PROGRAMS[of, f"fedfair-{of}.service"]
    folders = re.findall(r"^ExecStart=(.*)/start\.sh$", text, flags=re.MULTILINE)
    assert folders
    script = tmp_path / "start.sh"
    script.write_text(PROGRAMS[of, "start.sh"])
    script.chmod(0o755)
    unit = tmp_path / f"fedfair-{of}.service"
    unit.write_text(text.replace(folders[0], str(tmp_path)))
    done = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr  # an unknown directive is a warning alone


def test_a_killed_site_waits_out_the_centres_minute() -> None:
    seconds = re.search(r"^RestartSec=(\d+)$", PROGRAMS["site", "fedfair-site.service"], flags=re.MULTILINE)
    assert seconds is not None
    assert int(seconds[1]) > 60


@pytest.mark.parametrize(("port", "needs"), [(443, True), (8443, False)])
def test_a_low_port_brings_its_one_capability(port: int, needs: bool) -> None:
    centre = {**PLAIN["centre"], "port": port}
    text = units.centre_files(parse_consortium({**PLAIN, "centre": centre}))["fedfair-centre.service"]
    assert ("\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in text) is needs
    assert ("\nCapabilityBoundingSet=\n" in text) is not needs


def test_the_page_for_it_is_one_page_and_names_what_is_needed() -> None:
    text = PROGRAMS["site", "README.txt"]
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 110
    for needed in (
        "fedfair.example.org:8443",
        "va-long-beach.tar.gz --data",
        "fedfair site approve",
        "./start.sh",
    ):
        assert needed in text
