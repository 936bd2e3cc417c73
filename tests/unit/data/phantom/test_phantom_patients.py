"""The drawn patients agree with the published figures, and each is fixed by (seed, site, index) alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from fedfair.data.phantom import PhantomSpec
from fedfair.data.phantom.anatomy import cup_to_disc, mean_thickness, physiologic_cdr, vertical_diameter
from fedfair.data.phantom.patients import BLOCK, Patients, draw_patients, join

ASIAN, BLACK, WHITE = range(3)


def assert_equal(one: Patients, other: Patients) -> None:
    for field in dataclasses.fields(Patients):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


def test_race_sex_and_unknown_rates_are_fairvlmeds(many: Patients) -> None:
    # Binomial with n = 60,000: SE at most 0.002; four of those.
    shares = np.bincount(many.race, minlength=3) / len(many)
    np.testing.assert_allclose(shares, [0.082, 0.149, 0.769], atol=0.008)
    assert many.group("sex").mean() == pytest.approx(0.437, abs=0.008)
    for attribute, group, share in (
        ("ethnicity", 1, 0.040),
        ("ethnicity", -1, 0.054),
        ("language", 1, 0.017),
        ("language", 2, 0.008),
        ("language", -1, 0.050),
    ):
        # SE at most 0.00093; four of those.
        assert (many.group(attribute) == group).mean() == pytest.approx(share, abs=0.0038)
    np.testing.assert_array_equal(many.group("race"), many.race)


def test_ages_are_normal_within_their_range(many: Patients) -> None:
    # Clipping at 10 and 97.9 moves mean and SD by less than 0.2; SE of the mean is 0.07, of the SD 0.05.
    assert many.age.mean() == pytest.approx(60.9, abs=0.4)
    assert many.age.std() == pytest.approx(16.2, abs=0.4)
    assert (many.age.min(), many.age.max()) == (10, 97.9)


@pytest.mark.parametrize(("race", "prevalence"), [(ASIAN, 0.487), (BLACK, 0.649), (WHITE, 0.479)])
def test_prevalence_by_race_and_by_age(many: Patients, race: int, prevalence: float) -> None:
    own = many.race == race
    # At least 4,800 patients: SE 0.0072; four of those, and 0.004 by which spread ages move it towards 1/2.
    assert many.label[own].mean() == pytest.approx(prevalence, abs=0.033)
    old, young = (many.label[own & side].mean() for side in (many.age > 70, many.age < 50))
    # Mean ages differ by some 40 years: 0.15 in the middle of the logistic curve; SE below 0.02.
    assert 0.07 < old - young < 0.23


def test_severity_mix_is_fairvisions(many: Patients) -> None:
    md = many.md[many.label == 1]
    mix = [(md > -6).mean(), ((md <= -6) & (md > -12)).mean(), (md <= -12).mean()]
    # 30,000 cases: SE 0.003; four of those beside 0.003 of the fit.
    np.testing.assert_allclose(mix, [0.458, 0.314, 0.228], atol=0.015)
    assert md.max() <= -3
    assert md.min() >= -32.5
    assert many.md[many.label == 0].min() >= -1


def test_suspects_and_structure_against_function(many: Patients) -> None:
    healthy, cases = many.label == 0, many.label == 1
    # 30,000 healthy: SE 0.003; of the mean of 12,000 exponentials 0.027.
    assert (many.damage[healthy] > 0).mean() == pytest.approx(0.40, abs=0.012)
    assert many.damage[healthy & (many.damage > 0)].mean() == pytest.approx(3.0, abs=0.11)
    ratio = np.log(many.damage[cases] / -many.md[cases])
    # 30,000 cases: SE of mean and SD 0.004 and 0.003.
    assert ratio.mean() == pytest.approx(0, abs=0.016)
    assert ratio.std() == pytest.approx(0.70, abs=0.012)


def test_discs_and_cups_are_largest_in_black_and_smallest_in_white_eyes(many: Patients) -> None:
    areas = [many.disc_area[many.race == race] for race in range(3)]
    # SD 0.42, at least 4,800 eyes: SE 0.006; four of those.
    np.testing.assert_allclose([a.mean() for a in areas], [2.38, 2.55, 2.15], atol=0.024)
    cups = [many.cdr[many.race == race].mean() for race in range(3)]
    assert cups[WHITE] + 0.02 < cups[ASIAN] < cups[BLACK] - 0.02  # SE 0.002


def test_cups_grow_with_the_disc_as_published() -> None:
    # Garway-Heath 1998: cup diameter 1.194 DD - 1.31 mm.
    area = np.array([1.5, 2.2, 3.2])
    diameter = vertical_diameter(area)
    np.testing.assert_allclose(physiologic_cdr(area, 0.0) * diameter, 1.194 * diameter - 1.31)
    np.testing.assert_allclose(diameter, 1.04 * np.sqrt(4 * area / np.pi))
    assert physiologic_cdr(np.array([0.8]), 0.0) == 0.05


def test_thickness_by_age_race_and_disc_is_budenz(many: Patients, spec: PhantomSpec) -> None:
    own = np.eye(3)[many.race]
    area = many.disc_area - np.array(spec.disc_area)[many.race]
    design = np.column_stack([own, many.age - 46, area])
    found, *_ = np.linalg.lstsq(design, many.rnfl, rcond=None)
    # Residual SD 9.5: SE 0.13 for the rarest race, 0.0024 a year (-2 um a decade), 0.09 per mm^2; four each.
    np.testing.assert_allclose(found[:3], [105.8, 101.5, 98.1], atol=0.55)
    assert found[3] == pytest.approx(-0.20, abs=0.01)
    assert found[4] == pytest.approx(3.3, abs=0.37)


def test_loss_laws() -> None:
    # 10 dB leave a tenth of what can be lost; none leave all.
    np.testing.assert_allclose(
        mean_thickness(np.array([100.0]), np.array([0.0, 10, 20]), 50), [100, 55, 50.5]
    )
    np.testing.assert_allclose(cup_to_disc(0.4, np.array([0.0, 10])), [0.4, 1 - 0.6 * 10**-0.6])


def test_what_a_modality_shows_is_the_damage_unless_it_fails() -> None:
    sure = {f"{knob}_{m}": [0, 0, 0] for knob in ("sigma", "fail") for m in ("slo", "oct", "note")}
    patients = draw_patients(PhantomSpec.from_options(sure), 0, "site-1")
    np.testing.assert_array_equal(patients.seen, patients.damage[:, None].repeat(3, axis=1))
    failing = PhantomSpec.from_options({**sure, "fail_oct": [0, 1, 0.3]})
    other = draw_patients(failing, 0, "site-1", range(20_000))
    wrong = other.seen[:, 1] != other.damage
    assert not wrong[other.race == ASIAN].any()
    # Two undamaged patients look alike, so not all failures show. SE 0.004 and 0.006; four of those and more.
    both_none = (0.53 * 0.6) ** 2
    assert wrong[other.race == WHITE].mean() == pytest.approx(0.3 * (1 - both_none), abs=0.016)
    assert wrong[other.race == BLACK].mean() == pytest.approx(1 - both_none, abs=0.06)
    np.testing.assert_array_equal(other.seen[:, 0], other.damage)


def test_errors_of_a_modality_have_the_declared_size() -> None:
    options = {"fail_slo": [0, 0, 0], "sigma_slo": [0.5, 1.0, 1.5], "suspects": 0}
    patients = draw_patients(PhantomSpec.from_options(options), 0, "site-1", range(30_000))
    for race, sigma in enumerate((0.5, 1.0, 1.5)):
        own = patients.race == race
        floor = patients.seen[own & (patients.label == 0), 0]
        # What is shown without damage is 0.8 sigma |e|: 1,200 patients or more, SE 2 %; four of those.
        assert floor.mean() == pytest.approx(0.8 * sigma * np.sqrt(2 / np.pi), rel=0.09)
        cases = own & (patients.label == 1)
        ratio = np.log(np.maximum(patients.seen[cases, 0] - 0.64 * sigma, 1e-9) / patients.damage[cases])
        # Half of the cases are shown with less than their damage: SE of the median 2.5 % of sigma.
        assert np.median(ratio) == pytest.approx(0, abs=0.12 * sigma)
        high, low = np.quantile(ratio, [0.84, 0.16])
        assert 0.8 * sigma < high < 1.25 * sigma
        assert low < -0.7 * sigma


def test_a_patient_does_not_depend_on_which_others_are_drawn(spec: PhantomSpec) -> None:
    all_of_them = draw_patients(spec, 3, "site-2")
    for index in ([5], [999, 0, 70], [BLOCK - 1, BLOCK], list(range(100, 40, -1))):
        assert_equal(draw_patients(spec, 3, "site-2", index), all_of_them.take(np.array(index)))
    fewer = draw_patients(spec.with_patients(70), 3, "site-2")
    assert_equal(fewer, all_of_them.take(np.arange(70)))


def test_seeds_and_sites_differ_and_patients_do_not_repeat(spec: PhantomSpec) -> None:
    draws = [draw_patients(spec, seed, site) for seed in (0, 1) for site in ("site-1", "site-2")]
    for one, other in itertools.combinations(draws, 2):
        assert not np.isin(one.age[one.age < 97], other.age).any()
    inner = join(draws).age
    inner = inner[(inner > 10) & (inner < 97.9)]
    assert len(np.unique(inner)) == len(inner)


def test_a_knob_changes_nothing_before_it() -> None:
    plain = draw_patients(PhantomSpec.from_options({}), 0, "site-1")
    other = draw_patients(PhantomSpec.from_options({"sigma_oct": [1, 2, 3], "leak": 1}), 0, "site-1")
    for name in ("race", "age", "label", "damage", "disc_area", "rnfl", "arcade", "missing"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
    np.testing.assert_array_equal(plain.seen[:, [0, 2]], other.seen[:, [0, 2]])
    assert (plain.seen[:, 1] != other.seen[:, 1]).all()


def test_label_noise_is_in_the_stored_label_alone() -> None:
    site = {"label_noise": [0.0, 0.3, 0.1]}
    noisy = draw_patients(PhantomSpec.from_options({"sites": {"a": site}}), 0, "a", range(20_000))
    clean = draw_patients(PhantomSpec.from_options({"sites": {"a": {}}}), 0, "a", range(20_000))
    for name in ("label", "md", "damage", "seen", "named"):
        np.testing.assert_array_equal(getattr(noisy, name), getattr(clean, name))
    flipped = noisy.stored != noisy.label
    np.testing.assert_array_equal(clean.stored, clean.label)
    rates = [flipped[noisy.race == race].mean() for race in range(3)]
    # SE 0.0084 for 2,980 Black patients; four of those.
    assert rates[ASIAN] == 0
    np.testing.assert_allclose(rates[1:], [0.3, 0.1], atol=0.034)


def test_missing_rates_and_nobody_without_anything() -> None:
    spec = PhantomSpec.from_options({"sites": {"a": {"missing": [0.1, 0.5, 0.2], "unknown": 0.1}}})
    patients = draw_patients(spec, 0, "a", range(20_000))
    # One in a hundred would lack all and keeps one of three; SE at most 0.0036, four of those and 0.003.
    np.testing.assert_allclose(patients.missing.mean(axis=0), [0.1, 0.5, 0.2], atol=0.017)
    assert not patients.missing.all(axis=1).any()
    # SE 0.002.
    assert (patients.group("race") == -1).mean() == pytest.approx(0.1, abs=0.009)
    assert (patients.race >= 0).all()
    nothing = PhantomSpec.from_options({"sites": {"a": {"missing": [1, 1, 1]}}})
    assert (draw_patients(nothing, 0, "a").missing.sum(axis=1) == 2).all()


def test_sites_of_fairfedmed3_have_their_counts() -> None:
    spec = PhantomSpec.from_options({"preset": "fairfedmed3"})
    for site, counts, male in (
        ("site-1", (404, 758, 3892), 0.70),
        ("site-2", (606, 1011, 3437), 0.55),
        ("site-3", (268, 462, 4327), 0.36),
    ):
        patients = draw_patients(spec, 0, site, range(20_000))
        shares = np.bincount(patients.race, minlength=3) / len(patients)
        # SE at most 0.0035; four of those.
        np.testing.assert_allclose(shares, np.array(counts) / sum(counts), atol=0.014)
        assert patients.group("sex").mean() == pytest.approx(male, abs=0.014)


def test_severity_age_and_prevalence_of_a_site() -> None:
    spec = PhantomSpec.from_options({"sites": {"mild": {"severity": 0.7}, "old": {"age_shift": 10}}})
    mild, old = (draw_patients(spec, 0, site, range(20_000)) for site in spec.sites)
    # Weibull: mean -3 - scale * Gamma(1 + 1/0.8) = -3 - 0.7 * 5.5 * 1.133 before the cap; SE 0.05.
    assert mild.md[mild.label == 1].mean() == pytest.approx(-7.3, abs=0.25)
    assert old.age.mean() == pytest.approx(70.2, abs=0.6)  # the cap at 97.9 takes 0.7; SE 0.11
    assert old.label.mean() > mild.label.mean() + 0.02
