"""Approvals: what may run, who said so, and that a damaged file approves nothing."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from fedfair.audit import verify
from fedfair.errors import ConfigError
from fedfair.federation.approval import approve, approved, revoke
from tests.unit.federation.sites import HASH, unpacked

OTHER = "f" * 64


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Path:
    (tmp_path / "site.yaml").write_bytes((template / "site.yaml").read_bytes())
    return tmp_path


def test_nothing_is_approved_at_first(site: Path) -> None:
    assert approved(site) == set()


def test_an_approval_says_what_when_and_who(site: Path) -> None:
    approve(site, HASH.upper(), "Dr. Ada\nLovelace")
    line = (site / "approved.txt").read_text()
    assert re.fullmatch(rf"{HASH}  \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00  Dr\. Ada Lovelace\n", line)
    assert stat.S_IMODE((site / "approved.txt").stat().st_mode) == 0o600
    assert approved(site) == {HASH}


def test_approving_twice_changes_nothing(site: Path) -> None:
    approve(site, HASH, "ada")
    before = (site / "approved.txt").read_bytes()
    approve(site, HASH, "grace")
    assert (site / "approved.txt").read_bytes() == before


def test_revoking_leaves_the_others_and_comments(site: Path) -> None:
    approve(site, HASH, "ada")
    with (site / "approved.txt").open("a") as file:
        file.write("# reviewed on paper\n\n")
    approve(site, OTHER, "ada")
    revoke(site, HASH, "grace")
    assert approved(site) == {OTHER}
    assert "# reviewed on paper\n" in (site / "approved.txt").read_text()


def test_the_audit_log_tells_of_both(site: Path) -> None:
    approve(site, HASH, "ada")
    revoke(site, HASH, "grace")
    told = [(e["event"], e["code"], e["by"]) for e in verify(site / "audit.jsonl").entries[1:]]
    assert told == [("code-approved", HASH, "ada"), ("code-revoked", HASH, "grace")]


@pytest.mark.parametrize("code", ["", "abc", HASH[:-1], HASH + "0", HASH[:-1] + "g", f"{HASH} x"])
def test_what_is_no_hash_is_refused(site: Path, code: str) -> None:
    with pytest.raises(ConfigError, match="`hash` must be 64 hexadecimal digits"):
        approve(site, code, "ada")
    assert not (site / "approved.txt").exists()


def test_somebody_must_approve(site: Path) -> None:
    with pytest.raises(ConfigError, match="`by` must name who decides"):
        approve(site, HASH, " \n")


def test_what_was_not_approved_cannot_be_revoked(site: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of the approved codes"):
        revoke(site, HASH, "ada")


@pytest.mark.parametrize("line", [HASH[:40], f"x{HASH}", f"{HASH}{OTHER}", f" {HASH}"])
def test_a_damaged_file_approves_nothing(site: Path, line: str) -> None:
    approve(site, HASH, "ada")
    with (site / "approved.txt").open("a") as file:
        file.write(line)
    with pytest.raises(ConfigError, match="line 2 of .* must begin with a hash"):
        approved(site)


def test_a_folder_that_is_no_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold a readable site\.yaml"):
        approve(tmp_path, HASH, "ada")
    assert not (tmp_path / "approved.txt").exists()
