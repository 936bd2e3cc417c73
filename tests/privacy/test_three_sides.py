"""A record is on one of three sides, and each round's figures are still one release of it.

The budget charges one release of statistics per round and one in the end. That holds for validation
records too if each record is in one part at most of whatever is released together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfair.budget import account, notices, unit
from fedfair.config import Config
from fedfair.data.schema import SiteRecords
from fedfair.errors import PrivacyError
from fedfair.site import Site
from tests.privacy.hospital import Constant, Lab, Upload, configured
from tests.privacy.people import joined, neighbours, on_side, patient, patients, sides_of
from tests.privacy.replay import jumps

CHOOSING = ("data.validation_fraction=0.4", "server.monitor=auc")
SIDES = ("train", "validation", "test")
VARIANTS = {
    "multifair": ["method.name=multifair"],
    "dual_mimo in weights": ["training.mode=weights"],
    "exact evaluation": ["privacy.evaluation=exact"],
    "no evaluation": ["privacy.evaluation=none", "server.monitor=null"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_record_of_any_side_moves_nothing_by_more_than_declared(name: str, tmp_path: Path) -> None:
    # Under exact evaluation who is not trained on is shown as he is.
    sides = SIDES[:1] if name == "exact evaluation" else SIDES
    assert list(jumps(configured(*CHOOSING, *VARIANTS[name]), tmp_path, sides=sides)) == []


def overlapping(site: Site, records: SiteRecords, config: Config) -> None:
    """Train on the validation records, too."""
    sides = sides_of(records, config)
    site._train_records = records.select(np.sort(np.concatenate([sides.train, sides.validation])))


def test_a_record_on_two_sides_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Site.__init__

    def init(self: Site, name: str, config: Config, adapter: Any) -> None:
        own(self, name, config, adapter)
        overlapping(self, adapter.load(name), config)

    monkeypatch.setattr(Site, "__init__", init)
    found = list(jumps(configured(*CHOOSING), tmp_path, sides=["validation"]))
    assert any("all statistics together move by" in what for what in found)


def moved(one: Upload, other: Upload) -> set[str]:
    return {leaf for leaf in one.arrays if not np.array_equal(one.arrays[leaf], other.arrays[leaf])}


@pytest.mark.parametrize(
    ("side", "in_a_round", "in_the_end"),
    [
        ("train", {"rows", "train"}, {"train"}),
        ("validation", {"test"}, set()),
        ("test", set(), {"test"}),
    ],
)
def test_a_record_leaves_a_trace_where_its_side_does_and_nowhere_else(
    side: str, in_a_round: set[str], in_the_end: set[str], tmp_path: Path
) -> None:
    """Noise is left out, so that what does not depend on the record has the same bits."""
    config = configured(*CHOOSING)
    lab, base = Lab(config, tmp_path), patients(24)
    more = joined(on_side(patient(), side, config), base)
    worked, assessed = (
        [answer(lab.site(records, Constant())) for records in (base, more)]
        for answer in (lab.work, lab.assess)
    )
    assert {leaf.partition("/")[0] for leaf in moved(*worked)} == in_a_round
    assert {leaf.partition("/")[0] for leaf in moved(*assessed)} == in_the_end


def test_parts_that_are_released_together_share_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of what is counted in a release is at most the records that there are."""
    seen: list[float] = []

    def release(parts: Sequence[Any], *_: Any) -> list[Any]:
        seen.append(sum(float(part.counts[0].sum()) for part in parts))
        return own(parts, *_)

    from fedfair.privacy import site as private_site

    own = private_site.release
    monkeypatch.setattr(private_site, "release", release)
    config, records = configured(*CHOOSING), patients(60)
    lab = Lab(config, tmp_path)
    lab.work(lab.site(records, Constant()))
    lab.assess(lab.site(records, Constant()))
    sides = sides_of(records, config)
    assert seen == [
        len(sides.train) + len(sides.validation),
        len(sides.train) + len(sides.test),
    ]
    assert sorted(np.concatenate(sides)) == list(range(60))


def test_a_record_that_moves_in_moves_no_other() -> None:
    config = configured(*CHOOSING)
    for pair in neighbours(config, sides=SIDES):
        new = len(pair.more) - len(pair.fewer)
        if not pair.name.startswith(("ordinary", "far out")):
            continue
        assert new == 1
        for before, after in zip(sides_of(pair.fewer, config), sides_of(pair.more, config), strict=True):
            assert set(before) == shifted(after)


def shifted(index: NDArray[np.int64]) -> set[int]:
    """Return the places before a record came to the front."""
    return {int(i) - 1 for i in index if i > 0}


def test_setting_records_aside_costs_no_more() -> None:
    """Rounds and the final evaluation are charged alike, whoever is measured in them."""
    plain, choosing = configured(), configured(*CHOOSING)
    asked = range(1, plain.rounds + 2)
    assert account(plain, plain.rounds, asked) == account(choosing, plain.rounds, asked)


@pytest.mark.parametrize("mode", ["sample", "site"])
def test_who_is_shown_exactly_is_said(mode: str) -> None:
    site = "privacy={mode: site, noise_multiplier: 2.0, target_delta: 1e-5, clipping_norm: 1, statistics: "
    exact = (
        f"{site}{{noise_multiplier: 5.0}}, evaluation: exact}}"
        if mode == "site"
        else VARIANTS["exact evaluation"][0]
    )
    for overrides, who in (((), "test"), (CHOOSING, "validation and test")):
        config = configured(*overrides, exact)
        assert re.search(rf"\({who} (patients|figures) are not protected\)", unit(config))
        assert any(said.startswith(f"{who} records are not protected") for said in notices(config, 2, 99))


def test_a_measurement_outside_of_what_is_charged_is_refused(tmp_path: Path) -> None:
    lab = Lab(configured(*CHOOSING), tmp_path)
    with pytest.raises(PrivacyError, match="must be measured in a round or at the end"):
        lab.site(patients(24)).validate(lab.bench, lab.download)
