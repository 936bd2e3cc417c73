"""One record moves what leaves by no more than declared, and is not seen in the scale of the noise.

The broken variants are what the two replays are for: each must be found.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfair import wire
from fedfair.data.schema import SiteRecords
from fedfair.data.split import hashed_split, train_test_split
from fedfair.local import SiteUpdate
from fedfair.privacy import sample_level
from fedfair.privacy import site as private_site
from fedfair.privacy.edge import Public
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout
from fedfair.privacy.site import PrivateSite
from fedfair.signals import Signals
from fedfair.site import Site
from tests.privacy.hospital import OPACUS, Constant, Lab, configured
from tests.privacy.people import SITE, joined, patient, patients
from tests.privacy.replay import jumps, largest_jump

EVERYTHING = {
    "fedavg": ["method.name=fedavg", "training.momentum=0.5"],
    "mimo": ["method.name=mimo", "privacy.noise_units=isotropic"],
    "multifair": ["method.name=multifair", "privacy.statistics.gradient_norm=0.5"],
    "multifair in weights": ["method.name=multifair", "training.mode=weights", "privacy.clipping=flat"],
    "dual_mimo": ["training.group_rows=[fusion, encoder/scan]", "privacy.noise_units=proportional"],
    "dual_mimo in weights": ["training.mode=weights", "training.chunk_size=7"],
    "single precision": ["training.dtype=float32", "training.mode=weights"],
    "flat": ["privacy.clipping=flat", "model.options.fusion=concat"],
    "opacus": [*OPACUS],
    "exact evaluation": ["privacy.evaluation=exact"],
    "no evaluation": ["privacy.evaluation=none", "training.mode=weights"],
}
BY_BLOCK = (
    "privacy.max_grad_norm={fusion: 0.5, encoder/labs: 1, encoder/scan: 2, encoder/notes: 0.1, "
    "head/labs: 1, head/scan: 0.3, head/notes: 0.7}"
)


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_record_moves_every_leaf_by_at_most_what_is_declared(name: str, tmp_path: Path) -> None:
    sides = ("train",) if name == "exact evaluation" else ("train", "test")
    assert list(jumps(configured(*EVERYTHING[name]), tmp_path, sides=sides)) == []


def test_bounds_by_block_and_three_classes(tmp_path: Path) -> None:
    config = configured(BY_BLOCK, "training.mode=weights", "method.name=multifair")
    assert list(jumps(config, tmp_path, classes=3)) == []


def test_test_records_under_exact_evaluation_move_their_public_figures_alone(tmp_path: Path) -> None:
    found = list(jumps(configured("privacy.evaluation=exact"), tmp_path, sides=("test",)))
    assert found
    assert all("public `test/" in what for what in found)


def test_one_record_moves_every_released_leaf(tmp_path: Path) -> None:
    """Some records at least, so the replay is not one of leaves that never move."""
    lab = Lab(configured(), tmp_path)
    one, other = (lab.work(lab.site(patients(n), Constant())) for n in (24, 12))
    assert set(one.arrays) == set(other.arrays) == set(one.declared)
    still = {leaf for leaf in one.arrays if np.array_equal(one.arrays[leaf], other.arrays[leaf])}
    assert still <= {
        "train/variance",
        "test/variance",
        "rows/encoder/notes:fused",
        "rows/head/notes:unimodal",
    }


def test_all_of_the_sensitivity_is_used(tmp_path: Path) -> None:
    """By a record clipped in all blocks, of the group of the largest weights: no noise is wasted."""
    config = configured("training.mode=weights", "privacy.max_grad_norm=1e-3", "model.options.fusion=concat")
    assert largest_jump(config, tmp_path) == pytest.approx(1.0, abs=1e-6)


def test_a_new_record_moves_no_other_to_the_other_side() -> None:
    config, base, new = configured(), patients(40), patient()
    train, test = hashed_split(base, config.data.test_fraction, config.seed, SITE)
    longer, tested = hashed_split(joined(new, base), config.data.test_fraction, config.seed, SITE)
    assert set(longer - 1) - {-1} == set(train)
    assert set(tested - 1) - {-1} == set(test)
    strata, _ = train_test_split(joined(new, base), config.data.test_fraction, config.seed, SITE)
    assert set(strata - 1) - {-1} != set(
        train_test_split(base, config.data.test_fraction, config.seed, SITE)[0]
    )


# --- what the first replay must find ---------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sample_level, "_clip", lambda gradients, _: gradients)


def half_the_noise_of_a_block(patch: pytest.MonkeyPatch) -> None:
    own = sample_level.noise_units

    def units(*given: Any) -> dict[str, float]:
        right = own(*given)
        return right | {"encoder/scan": right["encoder/scan"] / 2}

    patch.setattr(sample_level, "noise_units", units)


def noise_for_coefficients_of_one(patch: pytest.MonkeyPatch) -> None:
    """Weights act on the clipped gradient, and the noise is that of no weights."""
    own = sample_level._noise
    patch.setattr(
        sample_level, "_noise", lambda privacy, sizes, _: own(privacy, sizes, dict.fromkeys(sizes, 1.0))
    )


def records_counted(patch: pytest.MonkeyPatch) -> None:
    own = wire.pack_update
    count = {"train/num_examples": np.array([24.0])}
    patch.setattr(wire, "pack_update", lambda update: own(update) | count)


def records_counted_and_called_public(patch: pytest.MonkeyPatch) -> None:
    """The declaration says public, and the value is not."""
    own = Lab._passed

    def passed(site: PrivateSite, arrays: wire.Arrays) -> Any:
        site._declared["train/num_examples"] = Public("who would mind")
        return own(site, arrays | {"train/num_examples": np.array([float(len(site._train_records))])})

    patch.setattr(Lab, "_passed", staticmethod(passed))


def strata(patch: pytest.MonkeyPatch) -> None:
    def split(records: SiteRecords, *given: Any) -> Any:
        return train_test_split(records, *given) if len(records) else hashed_split(records, *given)

    patch.setattr("fedfair.site.hashed_split", split)


def losses_without_a_bound(patch: pytest.MonkeyPatch) -> None:
    own = Site._measure_train
    patch.setattr(PrivateSite, "_measure_train", lambda self, bench, batch, _=None: own(self, bench, batch))


def noise_for_training_records_alone(patch: pytest.MonkeyPatch) -> None:
    own = private_site.release

    def release(parts: Sequence[Signals], layout: Layout, sigma: float, noise: Noise) -> list[Signals]:
        exact = [dataclasses.replace(part, variance=layout.units().variance(sigma)) for part in parts[1:]]
        return own(parts[:1], layout, sigma, noise) + exact

    patch.setattr(private_site, "release", release)


def rows_of_groups_that_are_there(patch: pytest.MonkeyPatch) -> None:
    own = PrivateSite.work

    def work(self: PrivateSite, *given: Any) -> SiteUpdate:
        update = own(self, *given)
        there = len(np.unique(self._train_records.attributes["sex"]))
        return dataclasses.replace(update, rows={key: value[:there] for key, value in update.rows.items()})

    patch.setattr(PrivateSite, "work", work)


JUMPING: Mapping[str, tuple[Patch, str]] = {
    "no clipping": (no_clipping, "moves by"),
    "half the noise of a block": (half_the_noise_of_a_block, "all rows together"),
    "noise for coefficients of one": (noise_for_coefficients_of_one, "moves by"),
    "records counted": (records_counted, "`train/num_examples`|got 1 that do not match"),
    "records counted and called public": (records_counted_and_called_public, "public `train/num_examples`"),
    "strata": (strata, "moves by"),
    "losses without a bound": (losses_without_a_bound, "train/losses"),
    "noise for training records alone": (noise_for_training_records_alone, "statistics together"),
    "rows of groups that are there": (rows_of_groups_that_are_there, "public shape"),
}


@pytest.mark.parametrize("name", JUMPING)
def test_the_first_replay_finds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, words = JUMPING[name]
    broken(monkeypatch)
    config = configured("training.mode=weights" if "coefficients" in name else "training.mode=update")
    assert any(re.search(words, what) for what in jumps(config, tmp_path))
