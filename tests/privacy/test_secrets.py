"""What a site draws cannot be drawn again, by another process, site, round or purpose of the same seed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfair.data.schema import Schema
from fedfair.models import ConcatFusion, Head, MultimodalModel
from fedfair.privacy.noise import Noise
from fedfair.privacy.site import PrivateSite
from tests.privacy.hospital import SIGMA, STATISTICS_SIGMA, Constant, Lab, configured
from tests.privacy.people import SITE, patients

ROOT = Path(__file__).parents[2]
Draws = dict[str, NDArray[np.float64]]
SECRET = "training.mode=weights"
FIXED = "privacy.noise_seed=5"


def noises(*overrides: str, folder: Path, site: str = SITE, number: int = 1) -> Draws:
    """Return the standard normal values behind a round's upload of the same records: {purpose: values}."""
    lab = Lab(configured(SECRET, *overrides), folder)
    records = patients(20)
    out = lab.work(lab.site(records, name=site), number)
    off, on = (lab.work(lab.site(records, Constant(value), site), number) for value in (0.0, 1.0))
    parts: dict[str, list[NDArray[np.float64]]] = {"training": [], "statistics": []}
    for leaf in sorted(out.declared):
        if leaf.startswith("rows/") or leaf.endswith(("/losses", "/histograms")):
            # The noise of one, times the multiplier, is the unit; the sign is that of the step.
            values = (out.arrays[leaf] - off.arrays[leaf]) / (on.arrays[leaf] - off.arrays[leaf])
            parts["training" if leaf.startswith("rows/") else "statistics"].append(values.ravel())
    return {purpose: np.concatenate(values) for purpose, values in parts.items()}


def alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of two draws in units of its deviation."""
    n = min(len(one), len(other))
    return float(abs(one[:n] @ other[:n]) / np.sqrt(n))


# Of hundreds of independent products; the sum is normal to within a percent.
APART = 5.0


def from_torch(self: PrivateSite, *_: object) -> Noise:
    """Noise from torch's generator, seeded as a run is."""
    torch.manual_seed(self.config.seed)
    return TorchNoise()  # type: ignore[return-value]


class TorchNoise(Constant):
    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape).to(like)

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return torch.randn(shape).double().numpy()


def without_labels(self: PrivateSite, *_: object) -> Noise:
    """The same noise for each site, round and purpose."""
    return Noise.fixed(self.config.seed)


def for_the_site_alone(self: PrivateSite, *_: object) -> Noise:
    """The same noise in each round, and for training and statistics."""
    return Noise.fixed(self.config.seed, self.name)


def in_another_process(folder: Path, variant: str) -> Draws:
    script = (
        f"from pathlib import Path; from {__name__} import tell; tell(Path({str(folder)!r}), {variant!r})"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    with np.load(folder / "noise.npz") as stored:
        return dict(stored)


def tell(folder: Path, variant: str) -> None:
    """Write this process's noise; what the other process runs."""
    torch.set_num_threads(1)
    if variant == "torch":
        PrivateSite._noise = from_torch  # type: ignore[method-assign]
    np.savez(folder / "noise.npz", **noises(*([FIXED] if variant == "fixed" else []), folder=folder))


def test_noise_is_standard_normal_in_the_declared_units(tmp_path: Path) -> None:
    """Of the deviation that was declared, in every leaf; 4 sd of a variance of so many values."""
    assert SIGMA != STATISTICS_SIGMA
    for values in noises(folder=tmp_path).values():
        assert values.var() == pytest.approx(1.0, abs=4 * np.sqrt(2 / len(values)))
        assert abs(values.mean()) < 4 / np.sqrt(len(values))


def test_processes_of_one_seed_draw_other_noise(tmp_path: Path) -> None:
    here, there = noises(folder=tmp_path), in_another_process(tmp_path, "secret")
    for purpose, values in here.items():
        assert alike(values, there[purpose]) < APART


def test_torchs_generator_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrivateSite, "_noise", from_torch)
    here, there = noises(folder=tmp_path), in_another_process(tmp_path, "torch")
    assert all(alike(here[purpose], there[purpose]) > APART for purpose in here)


def test_a_fixed_seed_repeats_in_another_process_and_says_so(tmp_path: Path) -> None:
    here, there = noises(FIXED, folder=tmp_path), in_another_process(tmp_path, "fixed")
    for purpose, values in here.items():
        np.testing.assert_array_equal(values, there[purpose])
    assert "noise_seed" in str(configured(FIXED).privacy.not_private)


def places(folder: Path, *overrides: str) -> list[NDArray[np.float64]]:
    """Return draws that must all differ: of two sites, two rounds, and both purposes of each."""
    return [
        values
        for site, number in ((SITE, 1), ("south", 1), (SITE, 2))
        for values in noises(*overrides, folder=folder, site=site, number=number).values()
    ]


def repeats(draws: list[NDArray[np.float64]]) -> int:
    return sum(alike(one, other) > APART for one, other in itertools.combinations(draws, 2))


@pytest.mark.parametrize("overrides", [(), (FIXED,)], ids=["secret", "fixed"])
def test_sites_rounds_and_purposes_draw_other_noise(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert repeats(places(tmp_path, *overrides)) == 0


@pytest.mark.parametrize("broken", [from_torch, without_labels, for_the_site_alone])
def test_repeated_noise_is_found(
    broken: Callable[..., Noise], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrivateSite, "_noise", broken)
    assert repeats(places(tmp_path)) > 0


def keys(folder: Path, patch: pytest.MonkeyPatch, *overrides: str) -> list[bytes]:
    """Return the keys of all noise of two sites' rounds and final evaluations."""
    own, used = Noise.__init__, []

    def spy(self: Noise, key: bytes) -> None:
        used.append(key)
        own(self, key)

    patch.setattr(Noise, "__init__", spy)
    lab = Lab(configured(SECRET, *overrides), folder)
    for name in (SITE, "south"):
        site = lab.site(patients(9), name=name)
        lab.work(site, 1)
        lab.work(site, 2)
        lab.assess(site)
    return used


@pytest.mark.parametrize("overrides", [(), (FIXED,)], ids=["secret", "fixed"])
def test_each_purpose_has_a_key_of_its_own(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of other sizes under one key look unlike each other, and can be computed from each other."""
    used = keys(tmp_path, monkeypatch, *overrides)
    # Training and statistics in each of two rounds, statistics once more, at two sites.
    assert len(used) == len(set(used)) == 10


def test_a_key_for_two_purposes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PrivateSite, "_noise", lambda self, number, _: Noise.fixed(self.config.seed, self.name, number)
    )
    assert len(set(keys(tmp_path, monkeypatch))) < 10


# --- dropout -----------------------------------------------------------------------------------------


def dropping(schema: Schema) -> MultimodalModel:
    """Return a model with dropout."""
    widths = {name: spec.shape[0] for name, spec in schema.modalities.items()}
    encoders = {name: nn.Sequential(nn.Dropout(0.5), nn.Linear(width, 6)) for name, width in widths.items()}
    heads = {name: Head(nn.Identity(), nn.Linear(6, 2)) for name in widths}
    return MultimodalModel(encoders, heads, ConcatFusion(len(widths), 6, 6, 2))


def without_noise(lab: Lab, patch: pytest.MonkeyPatch) -> NDArray[np.float64]:
    """Return a round's rows, the normals zero and everything else as the site draws it."""
    patch.setattr(Noise, "gaussian", lambda _, shape: np.zeros(shape))
    arrays = lab.work(lab.site(patients(20))).arrays
    return np.concatenate([arrays[leaf].ravel() for leaf in sorted(arrays) if leaf.startswith("rows/")])


def test_dropout_masks_are_secret_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record more moves all others' masks by one place.

    Who knows the masks sees that: the sum changes by more than one record's part. Only masks drawn by the
    site alone are as if each record had its own.
    """
    model = f"model={{name: '{__name__}:dropping', options: {{}}}}"
    lab = Lab(configured(SECRET, model), tmp_path)
    one, other = (without_noise(lab, monkeypatch) for _ in range(2))
    assert not np.array_equal(one, other)
    repeated = Lab(configured(SECRET, FIXED, model), tmp_path)
    one, other = (without_noise(repeated, monkeypatch) for _ in range(2))
    np.testing.assert_array_equal(one, other)
