"""The centre's folder: made whole or not at all, secrets only where they belong, others untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from fedfair.errors import ConfigError, RunError
from fedfair.federation import centre, units
from fedfair.federation.bundle import open_bundle
from fedfair.federation.centre import add_site, init, rekey, renew
from fedfair.federation.certificates import check_chain, describe
from fedfair.federation.consortium import load_consortium
from fedfair.federation.consortium import slug as slug_of
from fedfair.federation.keys import read_roster
from tests.unit.federation.example import PLAIN, changed, written

SLUGS = ("cleveland", "hungary", "va-long-beach")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return init(written(tmp_path), tmp_path / "federation")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_init_makes(folder: Path) -> None:
    assert set(contents(folder)) == {
        "consortium.yaml",
        *(f"bundles/{slug}.tar.gz" for slug in SLUGS),
        *(f"centre/nodes/{slug}.pub" for slug in SLUGS),
        *(f"centre/{stem}.{end}" for stem in ("ca", "server", "link") for end in ("crt", "key")),
        *(f"centre/{name}" for name in ("nginx.conf", "start.sh", "compose.yaml", "Dockerfile")),
        "centre/fedfair-centre.service",
    }
    assert not list((folder / "centre" / "state").iterdir())
    assert load_consortium(folder / "consortium.yaml") == load_consortium(folder.parent / "consortium.yaml")
    modes = {path.relative_to(folder): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    for path, mode in modes.items():
        if (folder / path).is_dir():
            assert mode == 0o700
        elif path.suffix in (".key", ".gz"):
            assert mode == 0o600
        else:
            assert mode == (0o755 if path.name == "start.sh" else 0o644)


def test_secrets_are_never_readable_by_others_not_even_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, int] = {}
    real = os.open

    def watching(path, flags, mode=0o777, **options):
        if flags & os.O_CREAT:
            opened[Path(path).name] = mode
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", watching)
    made = init(written(tmp_path), tmp_path / "federation")
    open_bundle(made / "bundles" / "hungary.tar.gz", tmp_path)
    secret = {name: mode for name, mode in opened.items() if ".key" in name or ".gz" in name}
    assert len(secret) == 3 + 3 + 1  # authority, server, link; three bundles; the node's own
    assert set(secret.values()) == {0o600}


def test_certificates_stand_for_their_machines(folder: Path) -> None:
    names = {"server": {"fedfair.example.org", "10.0.0.7"}, "link": {"localhost", "127.0.0.1", "::1"}}
    for stem, wanted in names.items():
        certificate = folder / "centre" / f"{stem}.crt"
        assert set(describe(certificate).names) == wanted
        check_chain(certificate, folder / "centre" / "ca.crt")


def test_a_sites_private_key_is_in_its_bundle_alone(folder: Path, tmp_path: Path) -> None:
    sites = {slug: open_bundle(folder / "bundles" / f"{slug}.tar.gz", tmp_path) for slug in SLUGS}
    bodies = {}
    for slug, site in sites.items():
        lines = (site / "node.key").read_text().splitlines()
        assert lines[0] == "-----BEGIN OPENSSH PRIVATE KEY-----"
        # The last full line of the body holds the secret number; the lines before it the public half.
        bodies[slug] = lines[-3].encode()
        assert (folder / "centre" / "nodes" / f"{slug}.pub").read_bytes() == (site / "node.pub").read_bytes()
    assert len(set(bodies.values())) == len(SLUGS)
    unpacked = {
        f"{slug}/{name}": text for slug, site in sites.items() for name, text in contents(site).items()
    }
    for name, text in {**contents(folder), **unpacked}.items():
        holds = {slug for slug, body in bodies.items() if body in text}
        assert holds == ({name.partition("/")[0]} if name.endswith("node.key") else set())
        assert b"PRIVATE KEY" not in text or name.endswith(".key")


def test_the_default_folder_is_named_after_the_consortium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert init(written(tmp_path)) == Path("heart-federation")
    assert (tmp_path / "heart-federation" / "centre" / "ca.key").is_file()


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("old", "dangling"):
        with pytest.raises(
            RunError, match="^`--output` must be a folder that does not exist yet, got .*; name"
        ):
            init(written(tmp_path), tmp_path / name)
    with pytest.raises(RunError, match="^`--output` must lie in a folder that can be written to"):
        init(written(tmp_path), tmp_path / "none" / "federation")
    assert not list((tmp_path / "old").iterdir())


def test_a_wrong_consortium_makes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, changed("centre.port", 0))
    with pytest.raises(ConfigError):
        init(path, tmp_path / "federation")
    assert list(tmp_path.iterdir()) == [path]


class Crash(BaseException):
    """As if the process ended there."""


def test_a_crash_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    calls = []

    def crashing(consortium, site):
        calls.append(site)
        if len(calls) == 2:
            raise Crash
        return real(consortium, site)

    real = units.site_files
    monkeypatch.setattr(units, "site_files", crashing)
    with pytest.raises(Crash):
        init(path, tmp_path / "federation")
    assert calls == ["Cleveland", "Hungary"]
    assert list(tmp_path.iterdir()) == [path]
    init(path, tmp_path / "federation")


def test_a_folder_appears_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = written(tmp_path), tmp_path / "federation"

    def crashing(self: Path, to: Path) -> None:
        assert (self / "bundles" / "va-long-beach.tar.gz").is_file()
        assert to == target
        raise Crash

    monkeypatch.setattr(Path, "rename", crashing)
    with pytest.raises(Crash):
        init(path, target)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_key_depends_on_the_consortium_alone(tmp_path: Path) -> None:
    made = [contents(init(written(tmp_path), tmp_path / name)) for name in ("a", "b")]
    random = {name for name in made[0] if made[0][name] != made[1][name]}
    assert made[0].keys() == made[1].keys()
    assert all(name.endswith((".key", ".crt", ".pub", ".tar.gz")) for name in random)
    sites = [open_bundle(tmp_path / name / "bundles/hungary.tar.gz", tmp_path / name) for name in ("a", "b")]
    first, second = map(contents, sites)
    differ = {name for name in first if first[name] != second[name]}
    assert differ == {"ca.crt", "node.key", "node.pub", "roster.txt", "SHA256SUMS"}


def test_a_site_is_added_and_others_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    bundle = add_site(folder, "Switzerland")
    after = contents(folder)
    assert bundle == folder / "bundles" / "switzerland.tar.gz"
    changed_files = {name for name in after if after[name] != before.get(name)}
    assert changed_files == {
        "consortium.yaml",
        "bundles/switzerland.tar.gz",
        "centre/nodes/switzerland.pub",
    }
    assert before.keys() <= after.keys()
    plain = yaml.safe_load(after["consortium.yaml"])
    assert plain == {**PLAIN, "sites": [*PLAIN["sites"], "Switzerland"]}
    site = open_bundle(bundle, tmp_path)
    assert yaml.safe_load((site / "site.yaml").read_text())["site"] == "Switzerland"
    assert (site / "ca.crt").read_bytes() == before["centre/ca.crt"]
    assert after["centre/nodes/switzerland.pub"] == (site / "node.pub").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("va long-beach", "`name` must be a new site's, got 'va long-beach' beside 'VA Long Beach'"),
        ("Boston", "`sites` must be sites of `data`, "),
        ('"', "`sites` must be names with a letter or digit"),
    ],
)
def test_a_wrong_or_taken_name_changes_nothing(folder: Path, name: str, message: str) -> None:
    before = contents(folder)
    with pytest.raises(ConfigError, match=f"^{message}"):
        add_site(folder, name)
    assert contents(folder) == before


def test_a_new_key_replaces_the_old_one_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    before, name = contents(folder), PLAIN["sites"][0]
    bundle = rekey(folder, name)
    after = contents(folder)
    assert {file for file in after if after[file] != before.get(file)} == {
        f"bundles/{bundle.name}",
        f"centre/nodes/{slug_of(name)}.pub",
    }
    site = open_bundle(bundle, tmp_path)
    assert (site / "node.pub").read_bytes() == after[f"centre/nodes/{slug_of(name)}.pub"]
    assert (site / "node.pub").read_text().split()[1] in (site / "roster.txt").read_text()
    with pytest.raises(ConfigError, match="`site` must be one of"):
        rekey(folder, "Nowhere")


def test_adding_after_a_crash_completes_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = centre.replace

    def crashing(path: Path, *rest: object) -> None:
        if path.name == "consortium.yaml":
            raise Crash
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(centre, "replace", crashing)
        with pytest.raises(Crash):
            add_site(folder, "Switzerland")
    assert list(load_consortium(folder / "consortium.yaml").sites) == PLAIN["sites"]
    site = open_bundle(add_site(folder, "Switzerland"), tmp_path)
    public = folder / "centre" / "nodes" / "switzerland.pub"
    assert public.read_bytes() == (site / "node.pub").read_bytes()


def test_renewing_touches_the_two_certificates_alone(folder: Path) -> None:
    before = contents(folder)
    (folder / "consortium.yaml").write_text(yaml.safe_dump(changed("centre.names", ["new.example.org"])))
    kept = contents(folder)["consortium.yaml"]
    renew(folder)
    after = contents(folder)
    new = {name for name in after if after[name] != {**before, "consortium.yaml": kept}[name]}
    assert new == {f"centre/{stem}.{end}" for stem in ("server", "link") for end in ("crt", "key")}
    assert after.keys() == before.keys()
    for stem in ("server", "link"):
        check_chain(folder / "centre" / f"{stem}.crt", folder / "centre" / "ca.crt")
        assert (folder / "centre" / f"{stem}.key").stat().st_mode & 0o777 == 0o600
    assert set(describe(folder / "centre" / "server.crt").names) == {"fedfair.example.org", "new.example.org"}


def test_a_folder_that_is_no_federation_is_refused(tmp_path: Path, folder: Path) -> None:
    for call in (lambda: renew(tmp_path / "none"), lambda: add_site(tmp_path / "none", "X")):
        with pytest.raises(ConfigError, match="must be a readable YAML file"):
            call()
    (folder / "centre" / "ca.key").unlink()
    with pytest.raises(RunError, match=r"^`folder` must hold centre/ca.crt and centre/ca.key"):
        renew(folder)


def test_every_bundle_holds_the_public_keys_of_all(folder: Path, tmp_path: Path) -> None:
    publics = {path.stem: path.read_bytes().split()[:2] for path in (folder / "centre/nodes").glob("*.pub")}
    for bundle in (folder / "bundles").iterdir():
        site = open_bundle(bundle, tmp_path)
        found = read_roster((site / "roster.txt").read_bytes())
        assert {name: key.split() for name, key in found.items()} == publics


@pytest.mark.parametrize("line", [b"north", b"north ecdsa-sha2-nistp384", b"hungary ecdsa AAAA"])
def test_a_roster_with_another_line_is_refused(folder: Path, tmp_path: Path, line: bytes) -> None:
    site = open_bundle(folder / "bundles" / "hungary.tar.gz", tmp_path)
    with pytest.raises(ConfigError, match=r"line \d+ of the roster"):
        read_roster((site / "roster.txt").read_bytes() + line + b"\n")
