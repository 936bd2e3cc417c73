"""Synthetic sites: fixed by (seed, site) alone, with the signal and shares that were asked for."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedfair.data import SiteRecords, SyntheticAdapter
from fedfair.errors import ConfigError, DataError, FedfairError


def flat(records: SiteRecords) -> np.ndarray[Any, np.dtype[np.float64]]:
    columns = [*records.modalities.values(), records.labels[:, None]]
    return np.concatenate([*columns, *(v[:, None] for v in records.attributes.values())], axis=1)


def test_a_site_depends_on_seed_and_name_alone() -> None:
    small, large = SyntheticAdapter({"sites": 3}, 7), SyntheticAdapter({"sites": 1000}, 7)
    for site in large.schema.sites[900:903]:  # draws of other sites must not matter
        large.load(site)
    np.testing.assert_array_equal(flat(small.load("site-0003")), flat(large.load("site-0003")))
    np.testing.assert_array_equal(flat(small.load("site-0003")), flat(small.load("site-0003")))


def test_seeds_and_sites_differ() -> None:
    first = flat(SyntheticAdapter({}, 0).load("site-0001"))
    assert not np.array_equal(first, flat(SyntheticAdapter({}, 0).load("site-0002")), equal_nan=True)
    assert not np.array_equal(first, flat(SyntheticAdapter({}, 1).load("site-0001")), equal_nan=True)


def test_a_thousand_sites() -> None:
    adapter = SyntheticAdapter({"sites": 1000, "records": 32}, 0)
    assert len(set(adapter.schema.sites)) == 1000
    assert sum(len(adapter.load(site)) for site in adapter.schema.sites) == 32_000


def test_records_fit_the_schema() -> None:
    adapter = SyntheticAdapter({"classes": 4, "modalities": {"one": {"width": 3, "signal": [1, 2]}}}, 0)
    records = adapter.load("site-0001")
    assert adapter.schema.modalities["one"].shape == (3,)
    assert records.modalities["one"].shape == (256, 3)
    assert records.modalities["one"].dtype == np.float32
    assert set(records.labels.tolist()) == {0, 1, 2, 3}
    for name, groups in adapter.schema.attributes.items():
        assert set(records.attributes[name].tolist()) == set(range(len(groups)))


@pytest.mark.parametrize("sex", [0, 1])
def test_the_best_auc_is_what_the_signal_allows(sex: int) -> None:
    signal = [0.8, 2.0]
    options = {
        "sites": 2,
        "records": 20_000,
        "concentration": 1000,
        "modalities": {"m": {"width": 6, "signal": signal}},
    }
    adapter = SyntheticAdapter(options, 3)
    fit, check = adapter.load("site-0001"), adapter.load("site-0002")
    x, y = fit.modalities["m"], fit.labels
    # With unit noise the best score is the projection on the difference of the class means.
    direction = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    mine = check.attributes["sex"] == sex
    auc = roc_auc_score(check.labels[mine], check.modalities["m"][mine] @ direction)
    # 10,000 records: standard error below 0.005; 4 of those.
    assert auc == pytest.approx(NormalDist().cdf(signal[sex] / np.sqrt(2)), abs=0.02)


def test_missing_rate_and_no_record_without_anything() -> None:
    modalities = {
        "often": {"width": 2, "signal": [1, 1], "missing": 0.4},
        "never": {"width": 2, "signal": [1, 1]},
    }
    records = SyntheticAdapter({"records": 10_000, "modalities": modalities}, 0).load("site-0001")
    missing = np.isnan(records.modalities["often"])
    # Binomial(10,000, 0.4): standard deviation 0.005; 4 of those.
    assert missing.all(axis=1).mean() == pytest.approx(0.4, abs=0.02)
    assert (missing.any(axis=1) == missing.all(axis=1)).all()
    assert not np.isnan(records.modalities["never"]).any()
    for modality in modalities.values():
        modality["missing"] = 1
    records = SyntheticAdapter({"records": 1000, "modalities": modalities}, 0).load("site-0001")
    kept = sum((~np.isnan(raw).all(axis=1)).astype(int) for raw in records.modalities.values())
    assert (kept == 1).all()
    # Which one is kept is a fair coin: standard deviation 0.016; 5 of those.
    assert np.isnan(records.modalities["often"]).all(axis=1).mean() == pytest.approx(0.5, abs=0.08)


def test_prevalence_differs_by_site_as_asked() -> None:
    adapter = SyntheticAdapter({"sites": 200, "modalities": {"m": {"width": 1, "signal": [1, 1]}}}, 0)
    spread = np.std([adapter.load(site).labels.mean() for site in adapter.schema.sites])
    # Beta(10, 10) has standard deviation 0.109, 256 draws add 0.031: 0.113, known to 5 % from 200 sites.
    assert spread == pytest.approx(0.113, rel=0.2)
    alike = SyntheticAdapter({"sites": 200, "concentration": 1e6, "records": 1000}, 0)
    assert (
        np.std([alike.load(site).labels.mean() for site in alike.schema.sites]) < 0.025
    )  # 0.016 from the draws


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"site": 3}, ConfigError, r"`data.options.site` is not a known key; did you mean `sites`"),
        ({"sites": 0}, ConfigError, r"`data.options.sites` must be an integer of at least 1, got 0"),
        ({"records": 2.5}, ConfigError, r"`data.options.records` must be an integer"),
        ({"records": True}, ConfigError, r"`data.options.records` must be an integer"),
        ({"classes": 1}, DataError, r"two classes"),
        ({"concentration": 0}, ConfigError, r"`data.options.concentration` must be a finite number"),
        (
            {"concentration": float("inf")},
            ConfigError,
            r"`data.options.concentration` must be a finite number",
        ),
        ({"modalities": {}}, DataError, r"at least one modality"),
        ({"modalities": ["m"]}, ConfigError, r"`data.options.modalities` must be a mapping"),
        (
            {"modalities": {"m": {"width": 2}}},
            ConfigError,
            r"`data.options.modalities.m.signal` must be given",
        ),
        ({"modalities": {"m": {"width": 2, "signal": [1]}}}, ConfigError, r"m.signal` must be two numbers"),
        (
            {"modalities": {"m": {"width": 2, "signal": [1, -1]}}},
            ConfigError,
            r"m.signal` must be a finite number",
        ),
        ({"modalities": {"m": {"width": 0, "signal": [1, 1]}}}, ConfigError, r"m.width` must be an integer"),
        (
            {"modalities": {"m": {"width": 1, "signal": [1, 1], "missing": 1.1}}},
            ConfigError,
            r"m.missing` must be a finite number in \[0, 1\], got 1.1",
        ),
        (None, ConfigError, r"`data.options` must be a mapping, got None"),
    ],
)
def test_bad_options_are_refused(options: object, error: type[FedfairError], message: str) -> None:
    with pytest.raises(error, match=message):
        SyntheticAdapter(options, 0)


def test_an_unknown_site_is_refused() -> None:
    with pytest.raises(DataError, match=r"`site` must be .*got 'site-001'; did you mean"):
        SyntheticAdapter({}, 0).load("site-001")
