"""The index: no image is read for it, a cache saves it, and a cache is never trusted blindly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fedfair.data.eye import EyeAdapter, index
from fedfair.data.eye.index import CACHE, default_cache, facts_of, facts_of_file
from fedfair.data.eye.layout import scan
from fedfair.errors import DataError
from tests.unit.data.eye.trees import fairvision, npz


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list that each .npz file indexed from now on is added to."""
    seen: list[Path] = []
    real = facts_of_file

    def counting(path: Path) -> index.Facts:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(index, "facts_of_file", counting)
    return seen


def test_facts_are_the_small_members_and_the_shapes(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", race="Asian", male=1, glaucoma=0, md=-3.5, tds=np.zeros(52), note="seen", other=3)
    facts = facts_of_file(tmp_path / "a.npz")
    assert facts.values == {"race": "Asian", "male": "1", "glaucoma": "0"}
    assert facts.shapes == {"slo_fundus": [4, 6], "oct_bscans": [6, 4, 4]}
    assert facts.noted == ["md", "tds", "note"]
    assert facts.problem == ""


def test_no_image_is_read_to_index(tmp_path: Path) -> None:
    root = fairvision(tmp_path)
    victim = root / "Glaucoma" / "Training" / "data_00002.npz"
    large = np.full((40, 40, 40), 77, np.uint8)  # beyond what zipfile reads at once
    npz(victim, oct_bscans=large, race=1, male=1, glaucoma=1)
    content = bytearray(victim.read_bytes())
    content[bytes(content).index(large.tobytes()) + 50_000] ^= 255
    victim.write_bytes(bytes(content))
    adapter = EyeAdapter("fairvision", str(root), {"size": 2, "slices": 2}, 0)
    assert adapter.left_out("site1") == {}
    assert adapter.official_split("site1") is not None
    with pytest.raises(DataError, match=r"`oct_bscans` must be whole .*data_00002\.npz") as caught:
        adapter.load("site1")
    assert "\n" not in str(caught.value)
    slo = EyeAdapter("fairvision", str(root), {"size": 2, "modalities": ["slo"]}, 0)
    assert len(slo.load("site1")) == 4


def test_second_time_reads_no_file(tmp_path: Path, opened_files: list[Path]) -> None:
    root = fairvision(tmp_path / "set")
    first = facts_of(root, scan(root).files, tmp_path / "cache")
    assert len(opened_files) == 4
    opened_files.clear()
    assert facts_of(root, scan(root).files, tmp_path / "cache") == first
    assert opened_files == []


def test_changed_and_new_files_are_read_again(tmp_path: Path, opened_files: list[Path]) -> None:
    root = fairvision(tmp_path / "set")
    facts_of(root, scan(root).files, tmp_path / "cache")
    opened_files.clear()
    changed = npz(root / "Glaucoma" / "Test" / "data_00004.npz", race=1, male=0, glaucoma=1)
    os.utime(changed, ns=(1, 1))
    new = npz(root / "Glaucoma" / "Test" / "data_00005.npz", race=0)
    facts = facts_of(root, scan(root).files, tmp_path / "cache")
    assert sorted(opened_files) == [changed, new]
    assert facts["Glaucoma/Test/data_00004.npz"].values["race"] == "1"
    kept = json.loads((tmp_path / "cache" / CACHE).read_bytes())["files"]
    assert len(kept) == 5  # what the changed file said before is gone


def test_same_size_other_time_is_read_again(tmp_path: Path, opened_files: list[Path]) -> None:
    root = fairvision(tmp_path / "set")
    facts_of(root, scan(root).files, tmp_path / "cache")
    opened_files.clear()
    file = root / "Glaucoma" / "Test" / "data_00004.npz"
    size = file.stat().st_size
    npz(file, race=0, male=1, hispanic=0, language=-1, maritalstatus=4, glaucoma=0)
    os.utime(file, ns=(5, 5))
    assert file.stat().st_size == size
    assert (
        facts_of(root, scan(root).files, tmp_path / "cache")["Glaucoma/Test/data_00004.npz"].values["race"]
        == "0"
    )


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version": 0, "files": {}}',
        b'{"version": 1, "files": 3}',
        b'{"version": 1, "files": {"1 2 a": [1]}}',
        b'{"version": 1, "files": {"1 2 a": [{"race": 1}, {}, [], ""]}}',
        b'{"version": 1, "files": {"1 2 a": [{}, {"oct_bscans": [1.5]}, [], ""]}}',
    ],
)
def test_damaged_cache_is_rebuilt(tmp_path: Path, opened_files: list[Path], damage: bytes) -> None:
    root = fairvision(tmp_path / "set")
    first = facts_of(root, scan(root).files, tmp_path / "cache")
    opened_files.clear()
    (tmp_path / "cache" / CACHE).write_bytes(damage)
    assert facts_of(root, scan(root).files, tmp_path / "cache") == first
    assert len(opened_files) == 4
    opened_files.clear()
    facts_of(root, scan(root).files, tmp_path / "cache")
    assert opened_files == []


def test_cache_that_cannot_be_written_is_left(tmp_path: Path) -> None:
    root = fairvision(tmp_path / "set")
    (tmp_path / "file").write_text("")
    assert len(facts_of(root, scan(root).files, tmp_path / "file" / "cache")) == 4


def test_cache_is_the_users_own_and_not_in_the_data(tmp_path: Path, own_cache: Path) -> None:
    root = fairvision(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    for folder in (root, root / "Glaucoma", root / "Glaucoma" / "Test"):
        folder.chmod(0o500)
    EyeAdapter("fairvision", str(root), {}, 0).left_out("site1")
    for folder in (root, root / "Glaucoma", root / "Glaucoma" / "Test"):
        folder.chmod(0o700)
    assert sorted(tmp_path.rglob("*")) == before
    folder = default_cache(root)
    assert folder is not None
    assert folder.is_relative_to(own_cache)
    assert (folder / CACHE).is_file()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_cache_can_be_declined(tmp_path: Path, own_cache: Path) -> None:
    EyeAdapter("fairvision", str(fairvision(tmp_path)), {"cache": False}, 0).left_out("site1")
    assert list(own_cache.iterdir()) == []
