from __future__ import annotations

import time
from dataclasses import astuple, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfair import bootstrap as module
from fedfair import metrics
from fedfair.assessment import assess, summary
from fedfair.bootstrap import bootstrap, deviation_interval, metric_intervals
from fedfair.errors import ShapeError
from fedfair.signals import Signals, Variance

Array = NDArray[np.float64]


def population(rng: np.random.Generator, n: int, shift: tuple[float, ...], bins: int = 32) -> Array:
    """Return histograms [G, 2, Q] of n records; group g's classes are `shift[g]` apart."""
    group, label = rng.integers(0, len(shift), n), (rng.random(n) < 0.4).astype(int)
    score = 1 / (1 + np.exp(0.5 - rng.normal(size=n) - np.array(shift)[group] * label))
    counts = np.zeros((len(shift), 2, bins))
    np.add.at(counts, (group, label, (score * bins).astype(int)), 1)
    return counts


def as_signals(histograms: Array) -> Signals:
    """Return the signals of one fused head from [G, 2, Q] or [G, T, 2, Q]."""
    by_class = histograms[:, None] if histograms.ndim == 3 else histograms
    members = by_class[:, :, 1].sum(-1)
    counts = by_class[:, 0].sum(-1) if by_class.shape[1] == 1 else members
    return Signals(counts[None], np.zeros((1, len(histograms))), by_class[None])


def equity_scaled(histograms: Array) -> Array:
    return metrics.es_auc(metrics.auc(histograms.sum(-3)), metrics.auc(histograms))


def test_resamples_are_those_of_records_drawn_with_replacement() -> None:
    histograms = population(np.random.default_rng(0), 150, (0.7, 1.4))
    records = np.repeat(np.arange(histograms.size), histograms.ravel().astype(int))
    rng = np.random.default_rng(1)
    by_record = np.stack(
        [np.bincount(rng.choice(records, len(records)), minlength=histograms.size) for _ in range(4000)]
    ).reshape(-1, *histograms.shape)
    slow = equity_scaled(by_record.astype(float))
    fast = bootstrap(histograms, equity_scaled, 4000, np.random.default_rng(2))
    # Two samples of 4000: means differ by sd * sqrt(2 / 4000) and log standard deviations by sqrt(1 / 4000)
    # (1 sd, for near normal values); four of these.
    assert fast.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() * np.sqrt(2 / 4000))
    assert np.log(fast.std() / slow.std()) == pytest.approx(0, abs=4 * np.sqrt(1 / 4000))


def test_a_resample_has_the_moments_of_a_multinomial() -> None:
    counts = np.array([[0.0, 30.0], [50.0, 20.0]])
    drawn = bootstrap(counts, lambda h: h, 20_000, np.random.default_rng(0))
    assert (drawn.sum((1, 2)) == 100).all()
    assert (drawn[:, 0, 0] == 0).all()
    share = counts / 100
    # sd of a mean: sqrt(100 p (1 - p) / 20000) <= 0.036; relative sd of a variance: sqrt(2 / 20000) = 1 %.
    np.testing.assert_allclose(drawn.mean(0), counts, atol=4 * 0.036)
    np.testing.assert_allclose(drawn.var(0), 100 * share * (1 - share), rtol=0.04, atol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    histograms = population(np.random.default_rng(0), 100, (1.0, 1.0))
    whole = bootstrap(histograms, equity_scaled, 10, np.random.default_rng(3))
    monkeypatch.setattr(module, "CHUNK_CELLS", 3 * histograms.size)
    chunked = bootstrap(histograms, equity_scaled, 10, np.random.default_rng(3))
    np.testing.assert_array_equal(whole, chunked)
    assert len(set(whole)) == 10


def test_no_records_resample_to_no_records() -> None:
    samples = bootstrap(np.zeros((2, 2, 4)), equity_scaled, 5, np.random.default_rng(0))
    assert np.isnan(samples).all()


@pytest.mark.parametrize("cell", [-1.0, 0.5])
def test_noisy_histograms_are_refused(cell: float) -> None:
    with pytest.raises(ShapeError, match="noisy histograms cannot be resampled"):
        bootstrap(np.array([[1.0, cell]]), lambda h: h, 5, np.random.default_rng(0))
    with pytest.raises(ShapeError, match="got 0 resamples"):
        bootstrap(np.ones((2, 2)), lambda h: h, 0, np.random.default_rng(0))


def test_deviation_interval() -> None:
    ladder = np.arange(101)[:, None] / 1000
    assert deviation_interval(0.5, ladder, 0.9) == module.Interval(
        pytest.approx(0.41), pytest.approx(0.59), 1.0
    )
    assert deviation_interval(0.05, ladder, 0.9).low == 0.0
    assert deviation_interval(0.99, ladder, 0.9).high == 1.0
    two = np.hstack([ladder, 3 * ladder])
    assert deviation_interval(0.5, two, 0.9).high == pytest.approx(0.5 + (0.09 + 0.27) / 2)


def test_deviation_interval_says_how_many_resamples_count() -> None:
    partly = np.array([[0.1], [np.nan], [0.1], [np.nan]])
    assert deviation_interval(0.5, partly) == module.Interval(0.4, 0.6, 0.5)
    assert np.isnan(deviation_interval(np.nan, partly).low)
    never = deviation_interval(0.5, np.full((4, 1), np.nan))
    assert np.isnan(never.high)
    assert never.estimable == 0.0


@pytest.mark.parametrize("shift", [(1.0, 1.0), (0.6, 1.5), (1.0, 1.0, 1.0)])
def test_intervals_hold_the_true_value_whether_groups_are_equal_or_not(shift: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = assess(as_signals(population(rng, 2_000_000, shift)), (len(shift),), 0)
    trials, names = 200, ("auc", "es_auc", "dpd", "deodds", "worst_group_auc")
    inside = dict.fromkeys(names, 0)
    for _ in range(trials):
        intervals = metric_intervals(as_signals(population(rng, 400, shift)), (len(shift),), 0, 200, rng)
        for name in names:
            inside[name] += intervals[name].low <= getattr(truth, name) <= intervals[name].high
    # Nominal 0.95. The true parity differences are not exactly 0 (2e6 records: below 2e-3), and 400 records
    # are few: 0.93 is asked of the method, less three binomial standard deviations of 200 trials.
    least = 0.93 - 3 * np.sqrt(0.93 * 0.07 / trials)
    assert min(inside.values()) >= least * trials, inside


def test_intervals_of_the_auc_are_as_wide_as_delongs() -> None:
    histograms = population(np.random.default_rng(5), 400, (1.0, 1.0))
    intervals = metric_intervals(as_signals(histograms), (2,), 0, 4000, np.random.default_rng(0))
    for name, own in (("auc", histograms.sum(0)), ("group_auc/1", histograms[1])):
        half = (intervals[name].high - intervals[name].low) / 2
        # A 0.95 quantile of 4000 deviations errs by 2 % (1 sd); DeLong and the bootstrap differ by order 1/n.
        assert half == pytest.approx(1.96 * float(metrics.auc_standard_error(own)), rel=0.08)


def test_every_interval_holds_its_point_and_has_its_key() -> None:
    signals = as_signals(population(np.random.default_rng(6), 300, (0.5, 1.0, 1.5)))
    table = assess(signals, (3,), 0)
    intervals = metric_intervals(signals, (3,), 0, 50, np.random.default_rng(0))
    points = {key: getattr(table, key) for key in module.HEADLINE}
    points |= {f"group_auc/{g}": group.auc for g, group in enumerate(table.groups)}
    assert intervals.keys() == points.keys()
    assert all(intervals[key].low <= points[key] <= intervals[key].high for key in points)
    assert all(interval.estimable == 1.0 for interval in intervals.values())


def test_groups_below_the_minimum_stay_out_of_every_resample() -> None:
    histograms = population(np.random.default_rng(7), 300, (1.0, 1.0, 1.0))
    few = np.concatenate([histograms[:2], np.zeros((1, 2, 32))])
    few[2, :, 14:19] = 1  # five records of each class, about 0.5: each metric moves far in a resample
    with_few = metric_intervals(as_signals(few), (3,), 0, 2000, np.random.default_rng(0), min_count=10)
    assert np.isnan(with_few["group_auc/2"].low)
    without = metric_intervals(as_signals(few[:2]), (2,), 0, 2000, np.random.default_rng(0), min_count=10)
    for name in ("worst_group_auc", "deodds"):
        width = without[name].high - without[name].low
        # Other draws, so equal up to the error of a quantile of 2000 deviations (3 % of it, 1 sd).
        assert with_few[name].high - with_few[name].low == pytest.approx(width, rel=0.12)


def test_marginal_attribute_is_resampled() -> None:
    histograms = population(np.random.default_rng(8), 300, (0.5, 1.0, 1.5, 1.0))
    cells = metric_intervals(as_signals(histograms), (2, 2), 1, 500, np.random.default_rng(0))
    merged = histograms[:2] + histograms[2:]
    alone = metric_intervals(as_signals(merged), (2,), 0, 500, np.random.default_rng(0))
    assert cells == alone


def test_several_classes_are_as_wide_as_their_mean() -> None:
    one = population(np.random.default_rng(9), 300, (0.8, 1.2))
    signals = as_signals(np.stack([one, one], axis=1))
    both = metric_intervals(signals, (2,), 0, 2000, np.random.default_rng(0))["auc"]
    single = metric_intervals(as_signals(one), (2,), 0, 2000, np.random.default_rng(1))["auc"]
    assert both.high - both.low == pytest.approx(single.high - single.low, rel=0.12)  # as above


def test_two_hundred_resamples_take_milliseconds() -> None:
    histograms = population(np.random.default_rng(10), 2000, (1.0, 1.0, 1.0), bins=128)
    rng = np.random.default_rng(0)
    elapsed = []
    for _ in range(3):
        start = time.perf_counter()
        bootstrap(histograms, equity_scaled, 200, rng)
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 0.25  # 0.02 s on an idle core; a loop over resamples takes seconds


def test_headline_metrics_are_those_of_the_summary_of_each_model() -> None:
    rng = np.random.default_rng(11)
    models = np.stack([population(rng, 200, (0.5, 1.5)) for _ in range(3)])[:, :, None]
    together = summary(metrics.auc(models.sum((1, 2))), metrics.auc(models[:, :, 0]), metrics.rates(models))
    assert tuple(together) == module.HEADLINE
    for i, one in enumerate(models):
        table = assess(as_signals(one), (2,), 0)
        assert [values[i] for values in together.values()] == [getattr(table, key) for key in together]


def released(histograms: Array, sd: float, rng: np.random.Generator) -> Signals:
    """Return signals of one fused head with noise of one standard deviation in every cell."""
    exact = as_signals(histograms + sd * rng.normal(size=histograms.shape))
    return replace(exact, variance=Variance(sd**2, 0.0))


@pytest.mark.parametrize("shift", [(1.0, 1.0), (0.6, 1.5)])
def test_intervals_of_released_signals_hold_the_true_value(shift: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = assess(as_signals(population(rng, 2_000_000, shift, bins=8)), (2,), 0)
    trials, names = 200, ("auc", "es_auc", "dpd", "deodds", "worst_group_auc", "group_auc/0")
    points = {name: getattr(truth, name) for name in names[:-1]} | {names[-1]: truth.groups[0].auc}
    inside, without = dict.fromkeys(names, 0), 0
    for _ in range(trials):
        exact = population(rng, 2000, shift, bins=8)
        signals = released(exact, 8.0, rng)
        intervals = metric_intervals(signals, (2,), 0, 200, rng)
        for name in names:
            inside[name] += intervals[name].low <= points[name] <= intervals[name].high
        # The sampling interval of as many records, about the released value: what leaving out noise gives.
        half = np.diff(astuple(metric_intervals(as_signals(exact), (2,), 0, 200, rng)["auc"])[:2])[0] / 2
        without += abs(assess(signals, (2,), 0).auc - points["auc"]) <= half
    # Nominal 0.95; 0.93 is asked, as for exact signals: noise acts linearly only to first order, and a
    # quantile of 200 deviations is 0.015 (1 sd) off in level. Less three binomial standard deviations.
    least = 0.93 - 3 * np.sqrt(0.93 * 0.07 / trials)
    assert min(inside.values()) >= least * trials, inside
    assert without < least * trials


def test_redrawn_cells_have_the_moments_of_counts_and_noise() -> None:
    cells = np.array([[-3.0, 30.5], [0.25, 200.0]])
    drawn = bootstrap(cells, lambda h: h, 20_000, np.random.default_rng(0), 16.0)
    expected = np.maximum(cells, 0) + 16
    # sd of a mean: sqrt(216 / 20000) = 0.10; relative sd of a variance: sqrt(2 / 20000) = 1 %.
    np.testing.assert_allclose(drawn.mean(0), cells, atol=4 * 0.10)
    np.testing.assert_allclose(drawn.var(0), expected, rtol=0.04)
    again = bootstrap(cells, lambda h: h, 20_000, np.random.default_rng(0), 16.0)
    np.testing.assert_array_equal(drawn, again)


def test_what_noise_hides_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    few = population(rng, 2000, (1.0, 1.0), bins=8)
    few[1] = np.round(few[1] / 25)  # about 40 records under noise of 8 in each of 16 cells
    signals = released(few, 12.0, rng)
    intervals = metric_intervals(signals, (2,), 0, 200, rng)
    assert np.isnan(assess(signals, (2,), 0).groups[1].auc)
    assert np.isnan(intervals["group_auc/1"].low)
    assert np.isnan(intervals["dpd"].low)
    assert intervals["auc"].low < assess(signals, (2,), 0).auc < intervals["auc"].high
    # The one group left is the worst, with an interval of its own.
    worst, own = intervals["worst_group_auc"], intervals["group_auc/0"]
    assert (worst.low, worst.high) == (own.low, own.high)


def test_groups_hidden_by_noise_stay_out_of_every_interval() -> None:
    rng = np.random.default_rng(1)
    exact = population(rng, 6000, (1.0, 1.0, 1.0), bins=8)
    exact[2] = np.round(exact[2] / 50)
    signals = released(exact, 8.0, rng)
    two = Signals(
        *(x[:, :2] for x in (signals.counts, signals.losses, signals.histograms)), None, Variance(64.0, 0.0)
    )
    with_few = metric_intervals(signals, (3,), 0, 2000, np.random.default_rng(0))
    without = metric_intervals(two, (2,), 0, 2000, np.random.default_rng(0))
    assert np.isnan(with_few["group_auc/2"].low)
    for name in ("worst_group_auc", "deodds"):
        width = without[name].high - without[name].low
        # As for exact signals: the error of a quantile of 2000 deviations is 3 % of it (1 sd).
        assert with_few[name].high - with_few[name].low == pytest.approx(width, rel=0.12)


@pytest.mark.parametrize("classes", [1, 3])
def test_an_unknown_group_is_in_no_interval_of_a_comparison(classes: int) -> None:
    """The same resamples, whose unknown group is thrown away before groups are compared."""
    rng, known = np.random.default_rng(0), np.array([True, False, True])
    by_class = np.stack([population(rng, 300, (1.0, 0.1, 1.8)) for _ in range(classes)], 1)
    some = as_signals(by_class)
    found = metric_intervals(some, (3,), 0, 400, np.random.default_rng(5), known=known)
    whole = metric_intervals(some, (3,), 0, 400, np.random.default_rng(5))
    for same in ("auc", "group_auc/0", "group_auc/1", "group_auc/2"):
        assert found[same] == whole[same]
    table, draws = assess(some, (3,), 0, known=known), np.random.default_rng(5)
    moved: dict[str, list[Array]] = {name: [] for name in ("es_auc", "dpd", "deodds", "worst_group_auc")}
    aucs = np.array([group.auc for group in table.groups])[known]
    for t in range(classes):
        drawn, seen = bootstrap(by_class[:, t], lambda h: h, 400, draws), by_class[:, t]
        overall = metrics.auc(drawn.sum(1)) - metrics.auc(seen.sum(0))
        groups = metrics.auc(drawn[:, known]) - metrics.auc(seen[known])
        pairs = zip(metrics.rates(drawn[:, known]), metrics.rates(seen[known]), strict=True)
        rates = [np.ptp(one - other, axis=-1) for one, other in pairs]
        gaps = np.abs(groups - overall[:, None]).sum(-1)
        apart = 1 + np.abs(aucs - table.auc).sum()
        moved["es_auc"].append((np.abs(overall) + table.es_auc * gaps) / apart)
        moved["dpd"].append(rates[0])
        moved["deodds"].append(np.maximum(rates[1], rates[2]))
        moved["worst_group_auc"].append(np.abs(groups).max(-1))
    for name, deviations in moved.items():
        wanted = deviation_interval(getattr(table, name), np.stack(deviations, -1))
        assert (found[name].low, found[name].high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert (found[name].low, found[name].high) != (whole[name].low, whole[name].high)


def test_one_known_group_has_no_interval_of_a_difference() -> None:
    some = as_signals(population(np.random.default_rng(0), 200, (1.0, 1.0)))
    found = metric_intervals(some, (2,), 0, 20, np.random.default_rng(0), known=np.array([True, False]))
    assert np.isnan([found[name].high for name in ("dpd", "deodds")]).all()
    assert not np.isnan([found[name].high for name in ("auc", "worst_group_auc", "group_auc/1")]).any()
