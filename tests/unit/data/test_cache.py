"""Kept images are those that were painted, or are painted again; a file that goes wrong is never fatal."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data.cache import images, key_of, user_cache
from fedfair.data.cache_file import Wanted
from fedfair.data.pixels import Codes, Pixels
from fedfair.errors import DataError

N = 5
SLO = Wanted((1, 3, 4), False, "site/slo", key_of("slo", 1))
OCT = Wanted((3, 2, 2), True, "site/oct", key_of("oct", 1))
WANTED = {"slo": SLO, "oct": OCT}
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(1, 256, (N, 1, 3, 4)).astype(np.uint8)
VOLUMES = RNG.integers(1, 256, (N, 3, 2, 2)).astype(np.uint8)


class Painter:
    """Record 1 has no picture, record i has min(i, 3) slices; counts what it is asked."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.fails_at = fails_at

    def __call__(self, record: int, names: Collection[str]) -> Mapping[str, Codes]:
        self.asked.append((record, tuple(names)))
        if record == self.fails_at:
            raise DataError("`slo` must be readable")
        painted = {"oct": VOLUMES[record, : min(record, 3)]} if record else {}
        if record != 1:
            painted["slo"] = PICTURES[record]
        return {name: codes for name, codes in painted.items() if name in names}


def check(found: Mapping[str, Pixels]) -> None:
    assert list(found) == ["slo", "oct"]
    slo, volume = (PICTURES / np.float32(255), VOLUMES / np.float32(255))
    slo[1] = np.nan
    for record in range(3):
        volume[record, record:] = np.nan
    np.testing.assert_array_equal(found["slo"].values(), slo)
    np.testing.assert_array_equal(found["oct"].values(), volume)


def kept(folder: Path, wanted: Mapping[str, Wanted] = WANTED) -> tuple[dict[str, Pixels], Painter]:
    painter = Painter()
    return images(wanted, N, painter, 2, folder), painter


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("workers", [1, 3])
def test_in_memory(workers: int) -> None:
    painter = Painter()
    check(images(WANTED, N, painter, workers, None))
    assert sorted(painter.asked) == [(record, ("slo", "oct")) for record in range(N)]


def test_painted_once_and_then_mapped(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    first, _ = kept(folder)
    found, painter = kept(folder)
    assert painter.asked == []
    for own in (first, found):
        check(own)
        part = own["slo"].parts[0]
        assert isinstance(part.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def test_a_file_is_the_owners_and_an_array(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        kept(tmp_path / "own")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    files = list((tmp_path / "own").iterdir())
    assert len(files) == 2
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    loaded = [np.load(file) for file in files]
    shown = PICTURES.copy()
    shown[1] = 0
    assert any(array.shape == shown.shape and (array == shown).all() for array in loaded)


def test_only_what_is_not_there_is_painted(tmp_path: Path) -> None:
    kept(tmp_path, {"slo": SLO})
    found, painter = kept(tmp_path)
    check(found)
    assert sorted(painter.asked) == [(record, ("oct",)) for record in range(N)]


def test_another_key_takes_the_place_of_the_old_one_alone(tmp_path: Path) -> None:
    kept(tmp_path)
    before = names(tmp_path)
    new = {"slo": SLO._replace(key=key_of("slo", 2)), "oct": OCT}
    found, painter = kept(tmp_path, new)
    check(found)
    assert {names for _, names in painter.asked} == {("slo",)}
    assert len(names(tmp_path)) == 2
    assert len(set(before) & set(names(tmp_path))) == 1
    elsewhere = {"slo": SLO._replace(place="other/slo"), "oct": OCT}
    check(kept(tmp_path, elsewhere)[0])
    assert len(names(tmp_path)) == 3


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[-40:]
    elif how == "longer":
        content += b"\0"
    elif how == "empty":
        content.clear()
    else:
        content[{"head": 70, "seen": -33, "seal": -1}[how]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "longer", "empty", "head", "seen", "seal", "folder"])
def test_a_damaged_file_is_built_again(tmp_path: Path, how: str) -> None:
    kept(tmp_path)
    for path in list(tmp_path.iterdir()):
        if how == "folder":
            path.unlink()
        else:
            damaged(path, how)
    found, painter = kept(tmp_path)
    check(found)
    assert len(painter.asked) == N
    assert kept(tmp_path)[1].asked == []


def test_another_number_of_records_is_another_file(tmp_path: Path) -> None:
    kept(tmp_path)
    painter = Painter()
    found = images(WANTED, N - 1, painter, 1, tmp_path)
    assert len(found["slo"]) == N - 1
    assert len(painter.asked) == N - 1


def test_no_records_need_no_file(tmp_path: Path) -> None:
    found = images(WANTED, 0, Painter(), 2, tmp_path / "new")
    assert found["slo"].shape == (0, 1, 3, 4)
    assert not (tmp_path / "new").exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be readable"):
        images(WANTED, N, Painter(fails_at=3), 2, tmp_path)
    assert names(tmp_path) == []


def test_what_a_killed_build_left_is_removed_and_a_living_one_is_not(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from fedfair.data.cache import images\n"
        "from tests.unit.data.test_cache import WANTED, N, Painter\n"
        "def paint(record, names):\n"
        "    print('painting', flush=True)\n"
        "    time.sleep(60)\n"
        "images(WANTED, N, paint, 1, Path(sys.argv[1]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "painting\n"
        partial = names(tmp_path)
        assert len(partial) == 2
        check(kept(tmp_path)[0])  # beside the living builder, which keeps its own
        assert set(partial) < set(names(tmp_path))
        assert len(names(tmp_path)) == 4
        other.kill()
    moved = {name: want._replace(key=key_of("new")) for name, want in WANTED.items()}
    check(kept(tmp_path, moved)[0])
    assert len(names(tmp_path)) == 2


def test_two_builders_at_once_do_no_harm(tmp_path: Path) -> None:
    inner: list[dict[str, Pixels]] = []

    class Interrupted(Painter):
        def __call__(self, record: int, names: Collection[str]) -> Mapping[str, Codes]:
            if record == 2:
                inner.append(kept(tmp_path)[0])
            return super().__call__(record, names)

    check(images(WANTED, N, Interrupted(), 1, tmp_path))
    check(inner[0])
    assert len(names(tmp_path)) == 2
    assert kept(tmp_path)[1].asked == []


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    for _ in range(2):
        check(kept(tmp_path, {"slo": SLO, "oct": OCT})[0])
    assert names(tmp_path) == []
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["images are not kept on the disk: No space left on device"]


def test_each_folder_and_each_cause_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "file").write_text("")
    for place in ("file", "open", "file", "open", "file/deep"):
        check(kept(tmp_path / place)[0])
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 3
    assert told[0] != told[1]


def test_a_disk_that_fills_up_at_the_end_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    check(kept(tmp_path)[0])
    assert not list(tmp_path.glob("*.npy"))
    monkeypatch.undo()
    check(kept(tmp_path)[0])
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["file", "no folder"])
def test_a_folder_that_cannot_be_written_in_is_no_error(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    check(kept(tmp_path / "file" if kind == "file" else tmp_path / "file" / "deep")[0])
    assert caplog.records
    assert str(tmp_path) not in caplog.text


def test_keys_tell_everything_apart() -> None:
    keys = [key_of(1, "a"), key_of(1, "b"), key_of("1", "a"), key_of(1, ("a",)), key_of(1), key_of(1.0, "a")]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_look_into_is_neither_read_nor_written(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "kept"
    check(kept(folder)[0])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = names(folder)
    folder.chmod(mode)
    found, painter = kept(folder, {**WANTED, "slo": SLO._replace(key=key_of("slo", 2))})
    check(found)
    assert len(painter.asked) == N and names(folder) == before
    assert "chmod 700" in caplog.text


def test_folders_on_the_way_are_the_owners_too(tmp_path: Path) -> None:
    kept(tmp_path / "fedfair" / "site")
    assert stat.S_IMODE((tmp_path / "fedfair").stat().st_mode) == 0o700


def test_a_file_that_cannot_get_its_name_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", full_disk)
    check(kept(tmp_path)[0])
    assert names(tmp_path) == []


BUILDER = """
import logging, sys
from pathlib import Path
from tests.unit.data.test_cache import SLO, kept
from fedfair.data.cache import key_of
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
for turn in range(60):
    kept(Path(sys.argv[1]), {"slo": SLO._replace(place=f"{turn % 3}", key=key_of(sys.argv[2], turn))})
"""


def test_processes_that_build_the_same_images_do_not_take_each_others_files(tmp_path: Path) -> None:
    """Each removes what is out of date, and none a file that another one paints."""
    command = [sys.executable, "-c", BUILDER, str(tmp_path)]
    builders = [subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, text=True) for k in range(3)]
    told = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert "".join(told) == ""


def test_a_relative_cache_home_is_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen in ("here", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert user_cache() == tmp_path / ".cache" / "fedfair"
    monkeypatch.setenv("XDG_CACHE_HOME", "/else")
    assert user_cache() == Path("/else/fedfair")
