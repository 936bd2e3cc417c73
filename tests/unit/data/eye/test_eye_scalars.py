"""Members of .npz files: only what is asked for is read, and no pickle is ever run."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedfair.data.eye.index import facts_of_file
from fedfair.data.eye.scalars import array_of, keys_of, opened, scalar_of, shape_of
from fedfair.errors import DataError
from tests.unit.data.eye.trees import OCT, npz


def read(path: Path, key: str) -> str:
    with opened(path) as archive:
        return scalar_of(archive, key)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.array("Asian", dtype=object), "Asian"),
        (np.array(["White or Caucasian"], dtype=object), "White or Caucasian"),
        (np.array("no.dr.diagnosis"), "no.dr.diagnosis"),
        (np.array(b"wet"), "wet"),
        (np.array(-1), "-1"),
        (np.array([2], np.uint8), "2"),
        (np.array(63.5), "63.5"),
        (np.array(True), "1"),
    ],
)
def test_scalars_as_text(tmp_path: Path, value: np.ndarray, told: str) -> None:
    assert read(npz(tmp_path / "a.npz", x=value), "x") == told


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickled_text_of_old_and_new_numpy(tmp_path: Path, protocol: int, module: bytes) -> None:
    body = pickle.dumps(np.array("Black or African American", dtype=object), protocol)
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    for name in names:
        if name in body and name != module:
            # Protocol 4 writes a name's length before it.
            body = body.replace(bytes([len(name)]) + name, bytes([len(module)]) + module).replace(
                name, module
            )
    start = b"\x93NUMPY\x01\x00"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("race.npy", start + len(header).to_bytes(2, "little") + header + body)
    assert read(tmp_path / "a.npz", "race") == "Black or African American"


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("key", ["race", "slo_fundus"])
def test_no_pickle_is_run(tmp_path: Path, key: str) -> None:
    target = tmp_path / "ran"
    file = npz(tmp_path / "a.npz", **{key: np.array(Hostile(target), dtype=object)})
    with pytest.raises(DataError, match=f"`{key}` must be a"), opened(file) as archive:
        (scalar_of if key == "race" else array_of)(archive, key)
    assert f"`{key}` must be" in facts_of_file(file).problem
    assert not target.exists()
    # The same file does run when it is unpickled, so the test would see it.
    with np.load(file, allow_pickle=True) as loaded:
        loaded[key]
    assert target.read_text() == "ran"


@pytest.mark.parametrize("value", [3, ("a", "b"), None, 2.5, b"x"])
def test_other_pickled_objects_are_refused(tmp_path: Path, value: object) -> None:
    holder = np.empty((), dtype=object)
    holder[()] = value
    with pytest.raises(DataError, match="`x` must be a number or a text"):
        read(npz(tmp_path / "a.npz", x=holder), "x")


@pytest.mark.parametrize("name", [b"_reconstruct", b"ndarray", b"multiarray"])
def test_a_pickle_like_that_of_a_text_is_none(tmp_path: Path, name: bytes) -> None:
    path = npz(tmp_path / "a.npz", oct_bscans=None, slo_fundus=None, x=np.array("Asian", dtype=object))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("x.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content.replace(name, name[:-1] + b"_"))
    with pytest.raises(DataError, match="`x` must be a number or a text"):
        read(path, "x")


def test_cut_pickle_is_refused(tmp_path: Path) -> None:
    start = b"\x93NUMPY\x01\x00"
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    body = pickle.dumps(np.array("Asian", dtype=object), 4)[:-5]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("race.npy", start + len(header).to_bytes(2, "little") + header + body)
    with pytest.raises(DataError, match="`race` must be whole"):
        read(tmp_path / "a.npz", "race")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [OCT, np.asfortranarray(OCT.astype(float)), np.zeros((0, 3), np.float32)])
def test_arrays_and_their_shapes(tmp_path: Path, save: object, array: np.ndarray) -> None:
    save(tmp_path / "a.npz", oct_bscans=array, race=1)  # type: ignore[operator]
    with opened(tmp_path / "a.npz") as archive:
        assert keys_of(archive) == ("oct_bscans", "race")
        assert shape_of(archive, "oct_bscans") == array.shape
        found = array_of(archive, "oct_bscans")
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_more_than_one_value_is_no_scalar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`x` must be one value"):
        read(npz(tmp_path / "a.npz", x=np.array([1, 2])), "x")


def test_texts_are_no_array_of_numbers(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", slo_fundus=np.array([["a"]]))
    assert "`slo_fundus` must be an array of" in facts_of_file(path).problem


def test_damage_anywhere_is_told_and_nothing_else_is_raised(tmp_path: Path) -> None:
    text = np.array("Asian", dtype=object)
    path = npz(tmp_path / "a.npz", race=text, male=1, glaucoma=np.array("no"), empty=np.array(""))
    whole, sound = path.read_bytes(), facts_of_file(path)
    rng = np.random.default_rng(3)
    told = 0
    for place in rng.integers(0, len(whole), 600):
        damaged = bytearray(whole)
        damaged[place : place + int(rng.integers(1, 6))] = rng.bytes(int(rng.integers(0, 6)))
        path.write_bytes(bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's and NumPy's own, on odd names and headers
            facts = facts_of_file(path)
        told += facts.problem != ""
        # A key damaged in both its places is another key; what is read is never another value.
        assert facts.problem or facts.values.items() <= sound.values.items()
    assert told > 300


@pytest.mark.parametrize("member", ["race", "race.txt"])
def test_members_that_are_no_arrays_are_left(tmp_path: Path, member: str) -> None:
    path = npz(tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "x")
    assert facts_of_file(path) == facts_of_file(npz(tmp_path / "b.npz"))


UNENDED = b"\x93NUMPY\x01\x00\x22\x00" + b"{'descr': '<i8', 'shape': (1L, ((\n".ljust(34)
HEADLESS = [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00" + b"x" * 20, UNENDED]


@pytest.mark.parametrize("content", HEADLESS)
def test_members_without_a_header(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("race.npy", content)
    assert facts_of_file(tmp_path / "a.npz").problem == "`race` must be whole and readable"


@pytest.mark.parametrize("value", [np.array((1, 2.0), dtype="i4,f4"), np.datetime64("2020-01-01"), 1j])
def test_other_kinds_are_no_scalars(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="`x` must be one value"):
        read(npz(tmp_path / "a.npz", x=value), "x")


def test_cut_file_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-30])
    assert facts_of_file(path).problem == "the .npz file must be whole and readable"
    (tmp_path / "text.npz").write_text("hello")
    assert facts_of_file(tmp_path / "text.npz").problem == "the .npz file must be whole and readable"


def test_array_shorter_than_its_header_is_seen_without_reading_it(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", OCT)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("oct_bscans.npy", (tmp_path / "whole.npy").read_bytes()[:-1])
    assert facts_of_file(tmp_path / "a.npz").problem == "`oct_bscans` must be whole and readable"
