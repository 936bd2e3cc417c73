"""Kept images spare the .npz files, and never stand for files that have changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair.data.eye import EyeAdapter, contents
from fedfair.errors import DataError
from tests.unit.data.eye.trees import OCT, SLO, fairvision, fedmed, npz
from tests.unit.data.values import values

SMALL = {"size": 2, "slices": 3}


def load(
    root: Path, site: str = "site1", profile: str = "fairvision", owner: str | None = None, **options: Any
) -> dict[str, np.ndarray]:
    records = EyeAdapter(profile, str(root), {**SMALL, **options}, 0, owner).load(site)
    return {name: values(records, name) for name in records.modalities}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list that each .npz file read for its images from now on is added to."""
    seen: list[Path] = []
    real = contents.opened

    def counting(path: Path) -> Any:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(contents, "opened", counting)
    return seen


def test_the_second_time_opens_no_file(tmp_path: Path, opened: list[Path]) -> None:
    root = fairvision(tmp_path)
    first = load(root)
    assert len(opened) == 4
    opened.clear()
    for name, own in load(root).items():
        np.testing.assert_array_equal(own, first[name])
    load(root, attributes=["sex"], split="none")
    assert opened == []
    for name, own in load(root, cache=False, workers=1).items():
        np.testing.assert_array_equal(own, first[name])
    assert len(opened) == 4


@pytest.mark.parametrize("options", [{"size": 3}, {"slices": 2}])
def test_other_options_are_other_images(tmp_path: Path, opened: list[Path], options: dict[str, int]) -> None:
    root = fairvision(tmp_path)
    load(root)
    opened.clear()
    for name, own in load(root, **options).items():
        np.testing.assert_array_equal(own, load(root, cache=False, **options)[name])
    assert len(opened) == 3 * 4


def test_one_modality_is_enough_for_one(tmp_path: Path, opened: list[Path]) -> None:
    root = fairvision(tmp_path)
    slo = load(root)["slo"]
    opened.clear()
    np.testing.assert_array_equal(load(root, modalities=["slo"])["slo"], slo)
    assert opened == []


def test_a_changed_file_is_read_again(tmp_path: Path, opened: list[Path]) -> None:
    root = fairvision(tmp_path)
    before = load(root)
    file = root / "Glaucoma" / "Test" / "data_00004.npz"
    npz(file, slo_fundus=255 - SLO, race=2, male=1, hispanic=0, language=-1, maritalstatus=4, glaucoma=0)
    os.utime(file, ns=(5, 5))
    opened.clear()
    after = load(root)
    assert len(opened) == 4
    # Half a code each, the rest is exact: 255 - x of a mean is the mean of 255 - x.
    np.testing.assert_allclose(after["slo"][0], 1 - before["slo"][0], rtol=0, atol=1.01 / 255)
    np.testing.assert_array_equal(after["slo"][1:], before["slo"][1:])
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"the \.npz file must be whole"):
        load(root)


def test_a_vanished_file_is_missed_as_ever(tmp_path: Path) -> None:
    root = fairvision(tmp_path)
    load(root)
    (root / "Glaucoma" / "Test" / "data_00004.npz").unlink()
    with pytest.raises(DataError, match=r"each row must have its \.npz file"):
        load(root)
    assert len(load(root, allow_missing=True)["slo"]) == 3


def test_sites_keep_their_own(tmp_path: Path, opened: list[Path], own_cache: Path) -> None:
    root = fedmed(tmp_path / "fairfedmed").parent
    sites = ("site1", "site2", "site3")
    for site in sites:
        load(root, site, "fairfedmed")
    opened.clear()
    for site in sites:
        load(root, site, "fairfedmed")
    assert opened == []
    assert len(list(own_cache.rglob("*.npy"))) == 2 * len(sites)


def test_an_upright_profile_has_images_of_its_own(tmp_path: Path) -> None:
    root = fairvision(tmp_path)
    swapped = load(root, modalities=["slo"])["slo"]
    upright = load(root, "site1", "fairvlmed", "site1", modalities=["slo"], split="none")["slo"]
    # Sums of float32 in another order may round to the next code.
    np.testing.assert_allclose(upright, np.swapaxes(swapped, 2, 3), rtol=0, atol=1.01 / 255)
    assert not np.allclose(upright, swapped, rtol=0, atol=2 / 255)


def test_threads_change_nothing(tmp_path: Path) -> None:
    root = fairvision(tmp_path)
    one, many = (load(root, cache=False, workers=workers) for workers in (1, 8))
    for name, own in one.items():
        np.testing.assert_array_equal(own, many[name])
    assert one["oct"].shape == (4, 3, 2, 2)
    assert OCT.shape[0] > 3
