"""Options become knobs, and what is wrong with them is said in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from fedfair.data.phantom import PRESETS, PhantomSpec, SiteSpec
from fedfair.data.phantom.spec import drawn_sites
from fedfair.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_read(preset: str) -> None:
    spec = PhantomSpec.from_options({"preset": preset})
    assert spec.preset == preset
    assert len(spec.sites) == 3
    for knob, value in PRESETS[preset].items():
        if knob != "sites":
            assert np.array_equal(getattr(spec, knob), np.array(value))


def test_a_knob_wins_over_its_preset() -> None:
    spec = PhantomSpec.from_options({"preset": "imbalanced", "suspects": 0.3, "filler": [1, 2]})
    assert (spec.suspects, spec.filler, spec.discordance) == (0.3, (1.0, 2.0), 0.4)


def test_sites_by_name() -> None:
    options = {"sites": {"North": None, "South": {"race": [1, 1, 2], "device": "B", "patients": 5}}}
    sites = PhantomSpec.from_options(options).sites
    assert sites == {"North": SiteSpec(), "South": SiteSpec(race=(1, 1, 2), device="B", patients=5)}
    assert {s.patients for s in PhantomSpec.from_options(options).with_patients(7).sites.values()} == {7}


def test_drawn_sites_differ_by_the_spread() -> None:
    alike = PhantomSpec.from_options({"sites": 4, "spread": 0}).sites
    assert set(alike.values()) == {SiteSpec()}
    sites = list(drawn_sites(300, 1, 0).values())
    assert drawn_sites(2, 1, 0) == dict(list(drawn_sites(300, 1, 0).items())[:2])
    assert drawn_sites(2, 1, 0) != drawn_sites(2, 1, 1)
    assert {site.device for site in sites[:3]} == {"A", "B", "C"}
    # 300 sites: SE of a mean share 0.005, of the SD of the log size 4 %; four of those.
    np.testing.assert_allclose(np.mean([s.race for s in sites], axis=0), [0.082, 0.149, 0.769], atol=0.022)
    assert np.log([s.patients for s in sites]).std() == pytest.approx(0.6, rel=0.17)
    for name, low, high in (("severity", 0.7, 1.4), ("age_shift", -5, 5)):
        values = [getattr(site, name) for site in sites]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high >= max(values) > high - 0.1 * (high - low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prest": "iid"}, r"`data.options.prest` is not a known key; did you mean `preset`"),
        ({"preset": "iidd"}, r"`data.options.preset` must be one of .*got 'iidd'; did you mean `iid`"),
        ({"leak": 1.5}, r"`data.options.leak` must be a finite number in \[0, 1\], got 1.5"),
        ({"fail_oct": [0, 0]}, r"`data.options.fail_oct` must be a list of 3 numbers, got \[0, 0\]"),
        ({"fail_oct": [0, 0, 2]}, r"`data.options.fail_oct` must be a finite number in \[0, 1\], got 2"),
        ({"fail_oct": 0.1}, r"`data.options.fail_oct` must be a list of 3 numbers, got 0.1"),
        ({"sites": {"a": {"missing": 0.3}}}, r"`data.options.sites.a.missing` must be a list of 3 numbers"),
        ({"filler": [5, 2]}, r"`data.options.filler` must be the least and the most, got \[5.0, 2.0\]"),
        ({"sites": 0}, r"`data.options.sites` must be an integer of at least 1"),
        ({"sites": {}}, r"`data.options.sites` must name at least one site"),
        ({"sites": {"a": {"devise": "A"}}}, r"`data.options.sites.a.devise` is not .* `device`"),
        (
            {"sites": {"a": {"device": "D"}}},
            r"`data.options.sites.a.device` must be one of \['A', 'B', 'C'\], got 'D'",
        ),
        ({"sites": {"a": {"device": "A1"}}}, r"got 'A1'; did you mean `A`"),
        (
            {"sites": {"a": {"race": [0, 0, 0]}}},
            r"`data.options.sites.a.race` must hold a positive share, got",
        ),
        (
            {"sites": {"a": {"patients": 0}}},
            r"`data.options.sites.a.patients` must be an integer of at least 1",
        ),
        ({"sites": {"a": {"patients": 2.5}}}, r"patients` must be an integer"),
        ({"spread": 2}, r"`data.options.spread` must be a finite number in \[0, 1\]"),
        (None, r"`data.options` must be a mapping"),
    ],
)
def test_bad_options_are_refused(options: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhantomSpec.from_options(options)
