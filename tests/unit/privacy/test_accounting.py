"""Accounting: against dp-accounting, which shares no code with Opacus, and closed forms."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Sequence

import dp_accounting as dpa
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from fedfair.errors import ConfigError, MissingDependency
from fedfair.privacy import accounting
from fedfair.privacy.accounting import Event, calibrate, describe, epsilon, merge, opacus_module

DELTA = 1e-5
RATE = 64 / 700  # of the laboratory job: 700 records, batches of 64, 3 x 11 steps x 50 rounds
STEPS = 1650


def joint_noise(*sigmas: float) -> float:
    """Return the multiplier of releases from one sample: amplification applies once to all of them."""
    return 0.0 if 0 in sigmas else 1.0 / math.hypot(*(1.0 / sigma for sigma in sigmas))


def training(sigma: float, steps: int = STEPS) -> Event:
    return Event(sigma, RATE, steps)


def oracle_event(events: Sequence[Event]) -> dpa.DpEvent:
    composed = dpa.DpEventBuilder()
    for event in events:
        gaussian = dpa.GaussianDpEvent(event.noise_multiplier)
        sampled = (
            gaussian if event.sample_rate == 1 else dpa.PoissonSampledDpEvent(event.sample_rate, gaussian)
        )
        composed.compose(sampled, event.steps)
    return composed.build()


def oracle_accountant() -> PLDAccountant:
    return PLDAccountant(dpa.NeighboringRelation.ADD_OR_REMOVE_ONE)


def oracle(events: Sequence[Event], delta: float = DELTA) -> float:
    return float(oracle_accountant().compose(oracle_event(events)).get_epsilon(delta))


def plain_gaussian(sigma: float, delta: float) -> float:
    """Return epsilon of one Gaussian release by its exact formula (Balle and Wang 2018, theorem 8)."""

    def surplus(loss: float) -> float:
        a, b = 0.5 / sigma, loss * sigma
        return float(stats.norm.cdf(a - b) - math.exp(loss + stats.norm.logcdf(-a - b)) - delta)

    return float(optimize.brentq(surplus, 0, 1e4))


# The bound is 0.01 above its estimate on purpose, and the estimate and the oracle's pessimistic grid are
# each good to about 0.001: below the oracle by more than that, or 0.02 above, is an error.
BELOW, ABOVE = 0.002, 0.02

JOBS = {
    "sigma 1": [training(1.0)],
    "sigma 2": [training(2.0)],
    "sigma 4": [training(4.0)],
    "sigma 4, 50 statistics of 20": [training(4.0), Event(20.0, 1.0, 50)],
    "sigma 4, 50 statistics of 50": [training(4.0), Event(50.0, 1.0, 50)],
    "sigma 8, 50 statistics of 20": [training(8.0), Event(20.0, 1.0, 50)],
    "statistics alone": [Event(20.0, 1.0, 50)],
    "two kinds of steps": [Event(1.2, 0.02, 300), Event(3.0, 0.3, 20), Event(15.0, 1.0, 4)],
    "a small rate": [Event(0.8, 1e-3, 2000)],
    "a rate near 1": [Event(6.0, 0.99, 30)],
    "one step": [Event(4.0, RATE, 1)],
    "many steps": [Event(4.0, 0.01, 20_000)],
}
# dp-accounting 0.6, from the design's own run.
KNOWN = {
    "sigma 1": 31.03,
    "sigma 2": 10.01,
    "sigma 4": 4.130,
    "sigma 4, 50 statistics of 20": 4.448,
    "sigma 4, 50 statistics of 50": 4.182,
    "sigma 8, 50 statistics of 20": 2.382,
}


@pytest.mark.parametrize("job", JOBS)
def test_prv_agrees_with_pld_and_rdp_is_above(job: str) -> None:
    reference = oracle(JOBS[job])
    assert reference == pytest.approx(KNOWN.get(job, reference), abs=0.006)
    assert reference - BELOW <= epsilon(JOBS[job], DELTA) <= reference + ABOVE
    assert epsilon(JOBS[job], DELTA, "rdp") >= reference


@pytest.mark.parametrize("delta", [1e-2, 1e-7, 1e-9])
def test_other_deltas_agree_too(delta: float) -> None:
    events = [training(4.0), Event(20.0, 1.0, 50)]
    reference = oracle(events, delta)
    assert reference - BELOW <= epsilon(events, delta) <= reference + ABOVE


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0, 50.0])
def test_full_data_releases_have_the_closed_form(sigma: float) -> None:
    exact = plain_gaussian(sigma, DELTA)
    assert exact - 1e-3 <= epsilon([Event(sigma, 1.0, 1)], DELTA) <= exact + ABOVE
    # n releases of sigma sqrt(n) are one release of sigma.
    assert exact - 1e-3 <= epsilon([Event(sigma * 3.0, 1.0, 9)], DELTA) <= exact + ABOVE


# (sigma, rate, steps, booked separately, true) of the design's table on releases from one batch.
SAME_BATCH = [(1.0, RATE, STEPS, 49.56, 66.26), (4.0, RATE, STEPS, 6.18, 6.34), (1.0, 0.01, 1000, 2.59, 4.49)]


@pytest.mark.parametrize(("sigma", "rate", "steps", "apart", "together"), SAME_BATCH)
def test_two_releases_of_one_batch_are_one_event(
    sigma: float, rate: float, steps: int, apart: float, together: float
) -> None:
    separate = [Event(sigma, rate, 2 * steps)]
    joint = [Event(joint_noise(sigma, sigma), rate, steps)]
    # The published figures are rounded to .01, on top of the .02 between accountants.
    assert epsilon(separate, DELTA) == pytest.approx(apart, abs=0.025)
    assert epsilon(joint, DELTA) == pytest.approx(together, abs=0.025)


def test_joint_noise_is_the_composition_of_full_data_releases() -> None:
    assert joint_noise(3.0) == 3.0
    assert joint_noise(1.0, 2.0, 2.0) == pytest.approx((1 + 1 / 4 + 1 / 4) ** -0.5, rel=1e-12)
    assert joint_noise(5.0, 0.0) == 0.0
    apart = epsilon([Event(2.0, 1.0, 1), Event(3.0, 1.0, 1)], DELTA)
    # At rate 1 nothing is amplified, so both books agree, up to the grid's rounding.
    assert epsilon([Event(joint_noise(2.0, 3.0), 1.0, 1)], DELTA) == pytest.approx(apart, abs=2e-3)


def test_order_and_interleaving_do_not_matter() -> None:
    rounds = [Event(4.0, RATE, 33), Event(20.0, 1.0, 1)] * 50
    whole = (Event(4.0, RATE, 1650), Event(20.0, 1.0, 50))
    assert merge(rounds) == merge(reversed(rounds)) == whole
    assert epsilon(rounds, DELTA) == epsilon(reversed(whole), DELTA)
    assert merge(merge(rounds)) == whole
    assert merge([]) == ()


@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.1, 1.0]), st.integers(1, 9))))
def test_merging_keeps_every_step(parts: list[tuple[float, float, int]]) -> None:
    merged = merge(Event(*part) for part in parts)
    assert sum(event.steps for event in merged) == sum(steps for _, _, steps in parts)
    assert len({(event.noise_multiplier, event.sample_rate) for event in merged}) == len(merged)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    for accountant in ("prv", "rdp"):
        assert epsilon([], DELTA, accountant) == 0.0
        assert epsilon([training(4.0), Event(0.0, 1e-6, 1)], DELTA, accountant) == math.inf


def test_more_is_never_cheaper() -> None:
    costs = [epsilon([training(4.0, steps)], DELTA) for steps in (1, 33, 330, 1650)]
    assert costs == sorted(costs)
    assert epsilon([training(4.0), Event(1e4, 1.0, 1)], DELTA) >= costs[-1] - 1e-3
    noisier = [epsilon([training(sigma)], DELTA) for sigma in (16.0, 4.0, 1.0)]
    assert noisier == sorted(noisier)


# Where Opacus's PRV asks for up to terabytes, overflows to infinity, raises ("Discrete mean ...") or, at
# delta 1e-12, came out below PLD; and where its RDP is negative or its answer may not exist.
EXTREME = {
    "terabytes": ([Event(0.05, 0.01, 100_000)], DELTA),
    "many gigabytes": ([Event(0.2, 0.01, 100_000)], DELTA),
    "infinite": ([Event(0.2, 0.99, 50)], DELTA),
    "discrete mean": ([Event(0.02, 1.0, 1)], DELTA),
    "tiny sigma": ([Event(1e-160, 0.5, 1)], DELTA),
    "small sigma": ([Event(1e-3, 1e-12, 10**9)], DELTA),
    "tiny rate": ([Event(0.05, 1e-12, 1)], DELTA),
    "huge sigma": ([Event(1e6, 1.0, 1)], DELTA),
    "billion steps": ([Event(1e3, 1e-4, 10**9)], DELTA),
    "rate almost 1": ([Event(1.0, 1 - 1e-12, 10)], DELTA),
    "tiny delta": ([Event(1.0, 0.01, 1000)], 1e-12),
    "denormal delta": ([Event(1.0, 0.01, 1000)], 1e-320),
    "delta almost 1": ([Event(1.0, 0.01, 1000)], 1 - 1e-12),
    "negative": ([Event(30.0, 0.001, 100)], 1e-2),
}


@pytest.mark.parametrize("case", EXTREME)
def test_extremes_give_a_bound_and_no_error(case: str) -> None:
    events, delta = EXTREME[case]
    loose, tight = epsilon(events, delta, "rdp"), epsilon(events, delta)
    assert 0 <= tight <= loose
    # One full-data release with the noise of all is the most that the events can cost.
    (event,) = events
    rho = event.steps / (2 * event.noise_multiplier**2) if event.noise_multiplier > 1e-100 else math.inf
    worst = rho + 2 * math.sqrt(rho * math.log(1 / delta))
    assert tight <= 1.2 * worst + 0.2  # orders start at 1.1 and stop at 63, which costs up to 0.11 more


@pytest.mark.parametrize("case", ["infinite", "discrete mean", "tiny delta", "negative"])
def test_bounds_at_extremes_are_not_below_the_oracle(case: str) -> None:
    events, delta = EXTREME[case]
    plain = events[0].sample_rate == 1
    reference = plain_gaussian(events[0].noise_multiplier, delta) if plain else oracle(events, delta)
    assert epsilon(events, delta) >= reference - BELOW


@pytest.mark.parametrize("broken", ["raises", "nan", "garbage"])
def test_a_failing_accountant_leaves_the_next_bound(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = opacus_module("opacus.accountants")
    events = [training(4.0)]
    rdp = epsilon(events, DELTA, "rdp")

    def fail(*_: object, **__: object) -> float:
        if broken == "raises":
            raise RuntimeError("Cannot compute epsilon")
        return math.nan if broken == "nan" else 1e9

    monkeypatch.setattr(module.PRVAccountant, "get_epsilon", fail)
    assert epsilon(events, DELTA) == rdp
    assert "Opacus RDP" in str(describe(events, DELTA, "each patient"))
    if broken != "garbage":
        monkeypatch.setattr(module.RDPAccountant, "get_epsilon", fail)
        rho = STEPS / (2 * 4.0**2)
        assert epsilon(events, DELTA) == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1 / DELTA)))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_outside_the_unit_interval_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=r"`delta` must be in \(0, 1\)"):
        epsilon([], delta)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((-1.0, 0.1, 1), "noise_multiplier"),
        ((math.nan, 0.1, 1), "noise_multiplier"),
        ((math.inf, 0.1, 1), "noise_multiplier"),
        ((1.0, 0.0, 1), "sample_rate"),
        ((1.0, 1.1, 1), "sample_rate"),
        ((1.0, math.nan, 1), "sample_rate"),
        ((1.0, 0.1, 0), "steps"),
        ((1.0, 0.1, -3), "steps"),
        ((1.0, 0.1, 1.5), "steps"),
        ((1.0, 0.1, True), "steps"),
    ],
)
def test_events_outside_their_ranges_are_refused(values: tuple[float, float, int], name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        Event(*values)


# (target, others, the design's own calibration of the job).
TARGETS = [(3.0, [Event(20.0, 1.0, 50)], 6.002), (8.0, [], 2.36), (1.0, [], 14.06)]


@pytest.mark.parametrize(("target", "others", "published"), TARGETS)
def test_calibration_meets_the_target_tightly(target: float, others: list[Event], published: float) -> None:
    sigma = calibrate(target, DELTA, RATE, STEPS, others)
    assert epsilon([training(sigma), *others], DELTA) <= target
    assert epsilon([training(0.997 * sigma), *others], DELTA) > target
    # The bound's 0.01 of 1 is 1 % of sigma where PLD is the reference.
    assert sigma == pytest.approx(published, rel=0.01)


def test_calibration_agrees_with_the_oracles() -> None:
    target, others = 3.0, [Event(20.0, 1.0, 50)]
    reference = dpa.calibrate_dp_mechanism(
        oracle_accountant,
        lambda sigma: oracle_event([training(sigma), *others]),
        target - accounting._EPSILON_ERROR,
        DELTA,
        bracket_interval=dpa.ExplicitBracketInterval(5.0, 7.0),
        tol=1e-3,
    )
    # 0.1 % of the search, 0.001 of the oracle's tolerance, and .001 of epsilon, which is .05 % of sigma.
    assert calibrate(target, DELTA, RATE, STEPS, others) == pytest.approx(reference, rel=2e-3)


def test_impossible_targets_are_refused() -> None:
    statistics = [Event(20.0, 1.0, 50)]
    with pytest.raises(
        ConfigError, match=r"got 1 where the other releases alone cost 1\.3\d+ at delta 1e-05"
    ):
        calibrate(1.0, DELTA, RATE, STEPS, statistics)
    with pytest.raises(ConfigError, match="alone cost inf"):
        calibrate(1.0, DELTA, RATE, STEPS, [Event(0.0, 1.0, 1)])
    with pytest.raises(ConfigError, match="alone cost 0 "):  # below what the accountant resolves
        calibrate(0.005, DELTA, RATE, STEPS)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_targets_that_are_no_budget_are_refused(target: float) -> None:
    with pytest.raises(ConfigError, match="`target_epsilon` must be a finite number above 0"):
        calibrate(target, DELTA, RATE, STEPS)


def test_a_statement_names_all_five() -> None:
    statement = describe([training(4.0), Event(20.0, 1.0, 50)], DELTA, "each patient of site Basel")
    assert statement.epsilon == epsilon([training(4.0), Event(20.0, 1.0, 50)], DELTA)
    version = opacus_module("opacus").__version__
    assert str(statement) == (
        "epsilon 4.458 at delta 1e-05 for each patient of site Basel under add or remove one record,"
        f" by Opacus PRV {version}."
    )


def test_a_statement_takes_another_relation() -> None:
    statement = describe([], DELTA, "each site", "add or remove one site")
    assert (statement.epsilon, statement.relation) == (0.0, "add or remove one site")


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_opacus_is_imported_on_use_alone_and_leaves_logging_as_it_was() -> None:
    run(
        "import logging, sys\n"
        "from fedfair.privacy import accounting, ledger\n"
        "assert 'opacus' not in sys.modules\n"
        "level = logging.root.level\n"
        "accounting.epsilon([accounting.Event(4.0, 0.1, 10)], 1e-5)\n"
        "assert 'opacus' in sys.modules\n"
        "assert (logging.root.handlers, logging.root.level) == ([], level)\n"
        "assert logging.getLogger('opacus.utils.module_utils').level == logging.NOTSET"
    )


def test_without_opacus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'opacus'", name=name)

    monkeypatch.setattr(accounting.importlib, "import_module", missing)
    handlers = logging.root.handlers[:]
    with pytest.raises(MissingDependency, match=r"pip install 'fedfair\[privacy\]'"):
        epsilon([training(4.0)], DELTA)
    assert logging.root.handlers == handlers
