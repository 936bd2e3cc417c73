"""Virtual sites: every record is dealt out once, and the shares are those of a Dirichlet distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedfair.data import open_dataset
from fedfair.data.partition import Partition, Partitioned, _deal
from fedfair.data.schema import SiteRecords
from fedfair.errors import ConfigError

BASE = open_dataset("synthetic", None, {"sites": 3, "records": 400}, 7)


def dealt(seed: int = 0, **options: Any) -> Partitioned:
    return Partitioned(BASE, Partition.from_options(options), seed)


def loaded(adapter: Partitioned) -> list[SiteRecords]:
    return [adapter.load(site) for site in adapter.schema.sites]


def fingerprints(parts: list[SiteRecords]) -> Counter[bytes]:
    return Counter(
        b"".join([p.modalities[m][i].tobytes() for m in p.modalities]) + bytes([p.labels[i]])
        for p in parts
        for i in range(len(p))
    )


@pytest.mark.parametrize("over", [[], "label", ["label", "sex"], "age"])
def test_every_record_is_at_one_site_whatever_the_categories(over: Any) -> None:
    adapter = dealt(sites=5, over=over, concentration=0.5)
    assert adapter.schema.sites == tuple(f"site-{k:04d}" for k in range(1, 6))
    original = [BASE.load(site) for site in BASE.schema.sites]
    assert fingerprints(loaded(adapter)) == fingerprints(original)


def test_the_same_seed_deals_alike_and_another_does_not() -> None:
    one, same, other = (dealt(seed, sites=4, over="label").load("site-0002") for seed in (1, 1, 2))
    assert np.array_equal(one.labels, same.labels)
    assert fingerprints([one]) != fingerprints([other])


def test_a_large_concentration_makes_sites_alike_and_a_small_one_unlike() -> None:
    def spread(concentration: float) -> float:
        parts = loaded(dealt(sites=4, over="label", concentration=concentration))
        return float(np.ptp([part.labels.mean() for part in parts if len(part)]))

    assert spread(1e4) < 0.1
    assert spread(0.1) > 0.4


def test_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    """Mean 1/K, variance (K - 1) / (K^2 (K a + 1)) for concentration a.

    4000 draws: the mean's standard error is sqrt(variance / 4000) < 0.004; that of the variance is
    below 5 % (a bounded variable with kurtosis below 6: sqrt(5 / 4000) = 3.5 %). Both at 4 errors.
    """
    rng, sites, a = np.random.default_rng(0), 4, 0.5
    category = np.zeros(1000, np.int64)
    shares = [np.bincount(_deal(category, sites, a, rng), minlength=sites)[0] / 1000 for _ in range(4000)]
    variance = (sites - 1) / (sites**2 * (sites * a + 1))
    assert np.mean(shares) == pytest.approx(1 / sites, abs=4 * np.sqrt(variance / 4000))
    assert np.var(shares) == pytest.approx(variance, rel=0.2)


def test_no_site_has_fewer_records_than_asked_for() -> None:
    assert min(map(len, loaded(dealt(sites=6, over="label", concentration=0.2, smallest=60)))) >= 60
    with pytest.raises(ConfigError, match=r"`data.partition.smallest` must be what 6 sites of 1200 records"):
        dealt(sites=6, smallest=500).load("site-0001")


def test_modalities_go_missing_at_their_rates_and_no_record_loses_all() -> None:
    adapter = dealt(missing={"image": 0.3, "table": 1.0}, missing_at={"site-0002": {"image": 1.0}})
    assert adapter.schema.sites == BASE.schema.sites
    first, second = adapter.load("site-0001"), adapter.load("site-0002")
    before = {name: ~np.isnan(raw).all(1) for name, raw in BASE.load("site-0001").modalities.items()}
    after = {name: ~np.isnan(raw).all(1) for name, raw in first.modalities.items()}
    assert all((after[name] <= before[name]).all() for name in before)
    assert (after["image"] | after["table"]).all()
    # Where a record has both, the table goes always, and the image only by chance (which keeps a table).
    both = before["image"] & before["table"]
    # 400 records at rate 0.3, of which half keep the table instead: 0.3 / 2 may lack the image, error 0.018.
    assert (~after["image"][both]).mean() == pytest.approx(0.15, abs=0.06)
    assert (after["image"] ^ after["table"])[both].all()
    lost = np.isnan(second.modalities["image"]).all(1)
    assert 0.4 < lost.mean() < 0.7  # all would go, so each keeps one of the two at random


def test_the_data_of_others_stay_as_they_were() -> None:
    before = BASE.load("site-0001").modalities["image"].copy()
    dealt(missing={"image": 0.9}).load("site-0001")
    assert np.array_equal(BASE.load("site-0001").modalities["image"], before, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sties": 3}, "did you mean `sites`"),
        ({"sites": -1}, "`data.partition.sites` must be an integer of at least 0"),
        ({"sites": 2, "over": "lable"}, "did you mean `label`"),
        ({"sites": 2, "concentration": 0}, "`data.partition.concentration` must be a finite number"),
        ({"missing": {"imag": 0.5}}, "did you mean `image`"),
        ({"missing": {"image": 2}}, r"`data.partition.missing.image` must be a finite number in \[0, 1\]"),
        (
            {"sites": 2, "missing_at": {"site-0009": {"image": 1}}},
            "`data.partition.missing_at` must name one of .*got 'site-0009'",
        ),
        (
            {"missing_at": {"site-0002": {"imag": 1}}},
            "`data.partition.missing_at.site-0002` must name one of .*got 'imag'; did you mean `image`",
        ),
        (
            {"missing_at": {"site-0002": {"image": 2}}},
            r"`data.partition.missing_at.site-0002.image` must be a finite number in \[0, 1\], got 2",
        ),
        ({"missing_at": {"site-0002": 1}}, "`data.partition.missing_at.site-0002` must be a mapping, got 1"),
        ({"missing_at": {7: {"image": 1}}}, "`data.partition.missing_at` must have names as keys, got 7"),
        ({"missing_at": 0}, "`data.partition.missing_at` must be a mapping, got 0"),
        ({"missing": False}, "`data.partition.missing` must be a mapping, got False"),
        ({"missing": {"imag": 1}}, "`data.partition.missing` must name one of .*got 'imag'"),
        ({"over": 0}, "`data.partition.over` must be a list with at least one item, got 0"),
        ({"sites": 2, "smallest": 0}, "`data.partition.smallest` must be an integer of at least 1, got 0"),
    ],
)
def test_a_wrong_partition_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        dealt(**options)


def test_a_site_with_its_own_records_is_not_dealt_out() -> None:
    with pytest.raises(ConfigError, match="`data.partition` must be left out where a site has its own"):
        open_dataset("csv", None, OPTIONS, 0, "a", {"sites": 2})


OPTIONS = {
    "sites": ["a"],
    "label": {"column": "y", "values": {"no": ["0"], "yes": ["1"]}},
    "modalities": {"m": {"numeric": ["x"]}},
    "attributes": {"sex": {"column": "s", "values": {"f": ["f"], "m": ["m"]}}},
}


def test_more_sites_than_records_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfair.data.partition._deal", None)  # not a single draw
    with pytest.raises(ConfigError, match="fewer sites"):
        dealt(sites=1201).load("site-0001")
