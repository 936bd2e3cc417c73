from __future__ import annotations

import itertools

import numpy as np
import pytest
from fairlearn import metrics as fairlearn
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sklearn

from fedfair import metrics
from fedfair.errors import ShapeError

Array = NDArray[np.float64]
EXACT = 1e-12  # two orders of summation of fewer than 1e4 float64 terms

# The table of FairCLIP's README: overall AUC, group AUCs, printed ES-AUC (arXiv 2403.19949).
PUBLISHED = [
    (0.6902, [0.7242, 0.7078, 0.6741], 0.6464),
    (0.6902, [0.6628, 0.7253], 0.6495),
    (0.6902, [0.6940, 0.5830], 0.6212),
    (0.7106, [0.7357, 0.7306, 0.6973], 0.6714),
    (0.7222, [0.6923, 0.7591], 0.6770),
    (0.7275, [0.7316, 0.6156], 0.6519),
]


def histogram(labels: NDArray[np.int64], scores: Array, bins: int) -> Array:
    """Return [2, Q] by counting one record at a time."""
    counts = np.zeros((2, bins))
    for label, score in zip(labels, scores, strict=True):
        counts[label, min(int(score * bins), bins - 1)] += 1
    return counts


def midpoints(scores: Array, bins: int) -> Array:
    return (np.minimum(np.floor(scores * bins), bins - 1) + 0.5) / bins


def draw(seed: int, n: int, groups: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return labels, groups and scores of n records; scores of the class are higher."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, rng.integers(0, groups, n), rng.beta(2 + labels, 3 - labels)


@pytest.mark.parametrize("bins", [2, 8, 128])
def test_auc_is_that_of_the_bin_midpoints(bins: int) -> None:
    labels, _, scores = draw(0, 300)
    expected = sklearn.roc_auc_score(labels, midpoints(scores, bins))
    assert metrics.auc(histogram(labels, scores, bins)) == pytest.approx(expected, abs=EXACT)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=2, max_size=40).filter(
        lambda records: {label for label, _ in records} == {0, 1}
    ),
    st.sampled_from([2, 3, 16]),
)
def test_exact_auc_lies_within_the_bound(records: list[tuple[int, float]], bins: int) -> None:
    labels, scores = np.array([r[0] for r in records]), np.array([r[1] for r in records])
    binned = histogram(labels, scores, bins)
    error = abs(metrics.auc(binned) - sklearn.roc_auc_score(labels, scores))
    assert error <= metrics.auc_bound(binned) + EXACT


def test_bound_is_reached_and_vanishes() -> None:
    # One bin holds all: the binned AUC is 1/2 and the exact one may be 0 or 1.
    assert metrics.auc_bound(np.array([[3.0, 0.0], [5.0, 0.0]])) == 0.5
    assert metrics.auc_bound(np.array([[3.0, 0.0], [0.0, 5.0]])) == 0.0


def test_standard_error_is_delong_on_the_binned_scores() -> None:
    labels, _, scores = draw(1, 60)
    binned = midpoints(scores, 8)
    positive, negative = binned[labels == 1], binned[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    expected = np.sqrt(wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative))
    assert metrics.auc_standard_error(histogram(labels, scores, 8)) == pytest.approx(expected, abs=EXACT)


def test_standard_error_is_the_spread_of_the_auc_over_draws() -> None:
    draws = np.stack(
        [histogram(labels, scores, 16) for labels, _, scores in (draw(s, 200) for s in range(400))]
    )
    ratio = metrics.auc_standard_error(draws).mean() / metrics.auc(draws).std(ddof=1)
    assert ratio == pytest.approx(
        1.0, abs=0.11
    )  # a standard deviation of 400 draws errs by 1/sqrt(800) = 3.5 %


def test_noisy_cells_are_used_as_they_are() -> None:
    labels, _, scores = draw(2, 400)
    exact = histogram(labels, scores, 16)
    noise = np.random.default_rng(0).normal(0, 1.0, (20_000, 2, 16))
    assert (exact + noise < 0).any()
    noisy = metrics.auc(exact + noise)
    # The mean of 20,000 AUCs whose standard deviation is below 0.02 errs by less than 1.5e-4 (1 sd); the
    # curvature of the ratio adds about sum of squares of relative noise of n+, n-: 2 * 16 / 200^2 = 8e-4.
    assert noisy.mean() == pytest.approx(float(metrics.auc(exact)), abs=1.4e-3)
    clamped = metrics.auc(np.maximum(exact + noise, 0))
    assert abs(clamped.mean() - metrics.auc(exact)) > 2e-3  # what clamping would have cost
    doubled = 1.5 * exact
    assert metrics.auc(doubled) == pytest.approx(float(metrics.auc(exact)), abs=EXACT)


def binormal(size: float, bins: int = 8) -> Array:
    """Return the expected [2, Q] of two classes of normal logits, about 0.8 apart in AUC."""
    edges = np.concatenate([[-np.inf], stats.logistic.ppf(np.linspace(0, 1, bins + 1)[1:-1]), [np.inf]])
    return size * np.stack([np.diff(stats.norm.cdf(edges, mean, 0.55)) for mean in (-0.33, 0.33)])


@pytest.mark.parametrize(("size", "noise"), [(100, 5.0), (300, 5.0)])
def test_noise_of_a_release_moves_the_auc_by_its_predicted_deviation(size: int, noise: float) -> None:
    exact, repetitions = binormal(size), 600
    drawn = exact + np.random.default_rng(size).normal(0, noise, (repetitions, 2, 8))
    deviation = float(metrics.auc_noise_sd(exact, noise**2))
    # The standard deviation of 600 draws errs by 1/sqrt(1200) = 2.9 %, taken 4 times. What the first order
    # leaves out is of the size of the relative variance of the two totals, 2 * 8 noise^2 / size^2.
    tolerance = 4 / np.sqrt(2 * repetitions) + 16 * noise**2 / size**2
    assert metrics.auc(drawn).std(ddof=1) / deviation == pytest.approx(1.0, abs=tolerance)
    # Predictions from noised cells are usable too: to second order they are the same number.
    predicted = metrics.auc_noise_sd(drawn, np.full(repetitions, noise**2))
    assert np.median(predicted) / deviation == pytest.approx(1.0, abs=tolerance)
    # Clipping at zero moves the mean towards one half by more than 5 of its standard errors; raw cells do not
    # move it beyond the second order.
    clipped = metrics.auc(np.maximum(drawn, 0)) - metrics.auc(exact)
    assert clipped.mean() < -5 * clipped.std() / np.sqrt(repetitions)
    raw = metrics.auc(drawn) - metrics.auc(exact)
    assert abs(raw.mean()) < 4 * raw.std() / np.sqrt(repetitions) + 16 * noise**2 / size**2 * 0.3


def test_slopes_are_those_of_small_changes_of_a_cell() -> None:
    exact = np.stack([binormal(50), binormal(80)[:, ::-1]])
    for row, b in itertools.product(range(2), range(8)):
        step = np.zeros((2, 8))
        step[row, b] = 1e-4
        # Central difference: its error is of the order step^2 times a third derivative of about 1 / 50^3.
        slope = (metrics.auc(exact + step) - metrics.auc(exact - step)) / 2e-4
        np.testing.assert_allclose(metrics.auc_slopes(exact)[:, row, b], slope, rtol=0, atol=1e-11)


def test_no_noise_moves_nothing_and_an_empty_class_has_no_deviation() -> None:
    assert metrics.auc_noise_sd(binormal(50), 0.0) == 0.0
    assert np.isnan(metrics.auc_noise_sd(np.array([[3.0, 1.0], [0.0, 0.0]]), 1.0))
    assert np.isnan(metrics.auc_noise_sd(np.array([[3.0, 1.0], [-2.0, 1.0]]), 1.0))


def test_totals_that_noise_made_negative_are_not_estimable() -> None:
    # Both totals negative: their product is positive and must not pass for a count of pairs.
    assert np.isnan(metrics.auc(np.array([[-3.0, 1.0], [1.0, -2.0]]), min_count=0))


@pytest.mark.parametrize("cells", [[[0, 0], [2, 3]], [[4, 1], [0, 0]], [[0, 0], [0, 0]]])
def test_one_class_is_not_estimable(cells: list[list[int]]) -> None:
    counts = np.array(cells, float)
    for metric in (metrics.auc, metrics.auc_bound, metrics.auc_standard_error):
        assert np.isnan(metric(counts))
    assert np.isnan(metrics.auc(counts, min_count=0))


def test_min_count_and_leading_axes() -> None:
    stack = np.array([[[[4, 6], [2, 7]], [[5, 5], [4, 7]]]], float)  # members: 9 and 11
    assert np.isnan(metrics.auc(stack, 10)).tolist() == [[True, False]]
    assert metrics.auc(stack)[0, 1] == metrics.auc(stack[0, 1])
    assert np.isnan(metrics.auc_standard_error(np.array([[1.0, 4.0], [0.0, 1.0]])))  # one member


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[\.\.\., 2, Q\], got \(3, 8\)"):
        metrics.auc(np.ones((3, 8)))
    with pytest.raises(ShapeError, match="Q must be even"):
        metrics.rates(np.ones((2, 7)))


def test_macro_auc_is_one_versus_rest() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 200)
    scores = rng.dirichlet(np.ones(4), 200) + 0.3 * np.eye(4)[labels]
    scores /= scores.sum(1, keepdims=True)
    stack = np.stack([histogram((labels == c).astype(int), scores[:, c], 4096) for c in range(4)])
    expected = sklearn.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert metrics.macro_auc(stack) == pytest.approx(expected, abs=float(metrics.auc_bound(stack).mean()))
    binned = np.mean([sklearn.roc_auc_score(labels == c, midpoints(scores[:, c], 4096)) for c in range(4)])
    assert metrics.macro_auc(stack) == pytest.approx(binned, abs=EXACT)


def test_macro_auc_of_a_missing_class_is_not_estimable() -> None:
    stack = np.array([[[3, 1], [1, 3]], [[4, 4], [0, 0]]], float)
    assert np.isnan(metrics.macro_auc(stack))
    assert metrics.macro_auc(stack[:1]) == metrics.auc(stack[0])


def test_within_site_auc_is_that_of_pairs_of_one_site() -> None:
    labels, sites, scores = draw(4, 150, groups=3)
    labels[sites == 2] = 1  # a site with one class has no pair
    scores = np.clip(scores + 0.2 * sites, 0, 1)
    stack = np.stack([histogram(labels[sites == k], scores[sites == k], 16) for k in range(3)])
    binned = midpoints(scores, 16)
    pairs = [
        (binned[i] > binned[j]) + 0.5 * (binned[i] == binned[j])
        for i, j in itertools.product(range(150), repeat=2)
        if labels[i] > labels[j] and sites[i] == sites[j]
    ]
    assert metrics.within_site_auc(stack) == pytest.approx(np.mean(pairs), abs=EXACT)
    swapped = np.moveaxis(stack[:, None], 0, 1)
    assert metrics.within_site_auc(swapped, axis=1) == pytest.approx(np.mean(pairs), abs=EXACT)
    assert np.isnan(metrics.within_site_auc(stack[2:]))


def test_merged_histograms_give_the_pooled_auc() -> None:
    labels, sites, scores = draw(5, 200, groups=4)
    parts = [histogram(labels[sites == k], scores[sites == k], 32) for k in range(4)]
    pooled = sklearn.roc_auc_score(labels, midpoints(scores, 32))
    assert metrics.auc(sum(parts[1:], start=parts[0])) == pytest.approx(pooled, abs=EXACT)


@pytest.mark.parametrize(("overall", "groups", "printed"), PUBLISHED)
def test_es_auc_gives_the_published_values(overall: float, groups: list[float], printed: float) -> None:
    # Inputs printed with four digits leave an error of about 1e-4 in the result.
    assert metrics.es_auc(np.array(overall), np.array(groups)) == pytest.approx(printed, abs=1e-4 + EXACT)


def test_es_auc_leaves_out_groups_that_are_not_estimable() -> None:
    overall, groups = np.array([0.8, 0.8]), np.array([[0.7, np.nan, 0.85], [np.nan, np.nan, np.nan]])
    value = metrics.es_auc(overall, groups)
    assert value[0] == pytest.approx(0.8 / 1.15, abs=EXACT)
    assert np.isnan(value[1])
    assert metrics.es_auc(overall, groups.T, axis=0)[0] == value[0]
    assert metrics.es_auc(np.array(0.8), np.array([0.8, 0.8])) == 0.8


@given(st.permutations(range(4)))
def test_group_metrics_do_not_depend_on_the_order_of_groups(order: list[int]) -> None:
    labels, groups, scores = draw(6, 160, groups=4)
    stack = np.stack([histogram(labels[groups == g], scores[groups == g], 16) for g in range(4)])
    by_group, overall = metrics.auc(stack), metrics.auc(stack.sum(0))
    rates, permuted = metrics.rates(stack), metrics.rates(stack[order])
    assert metrics.es_auc(overall, by_group[order]) == pytest.approx(
        metrics.es_auc(overall, by_group), abs=EXACT
    )
    assert metrics.worst_group_auc(by_group[order]) == metrics.worst_group_auc(by_group)
    assert metrics.demographic_parity_difference(permuted) == metrics.demographic_parity_difference(rates)
    assert metrics.equalized_odds_difference(permuted) == metrics.equalized_odds_difference(rates)


def test_threshold_metrics_are_those_of_fairlearn() -> None:
    labels, groups, scores = draw(7, 300, groups=3)
    stack = np.stack([histogram(labels[groups == g], scores[groups == g], 16) for g in range(3)])
    rates, predicted = metrics.rates(stack), scores >= 0.5
    frame = fairlearn.MetricFrame(
        metrics={
            "selection": fairlearn.selection_rate,
            "true_positive": fairlearn.true_positive_rate,
            "false_positive": fairlearn.false_positive_rate,
        },
        y_true=labels,
        y_pred=predicted,
        sensitive_features=groups,
    )
    for name, values in rates._asdict().items():
        np.testing.assert_allclose(values, frame.by_group[name], atol=EXACT)
    difference = fairlearn.demographic_parity_difference(labels, predicted, sensitive_features=groups)
    assert metrics.demographic_parity_difference(rates) == pytest.approx(difference, abs=EXACT)
    odds = fairlearn.equalized_odds_difference(labels, predicted, sensitive_features=groups)
    assert metrics.equalized_odds_difference(rates) == pytest.approx(odds, abs=EXACT)


def test_a_score_of_one_half_is_positive() -> None:
    just_below = np.nextafter(0.5, 0)
    counts = histogram(np.array([1, 1]), np.array([0.5, just_below]), 8)
    assert metrics.rates(counts).true_positive == 0.5


def test_differences_need_two_groups() -> None:
    one = np.array([[4.0, 4.0], [2.0, 6.0]])
    empty, only_negative = np.zeros((2, 2)), np.array([[6.0, 2.0], [0.0, 0.0]])
    alone = metrics.rates(np.stack([one, empty]))
    assert np.isnan(metrics.demographic_parity_difference(alone))
    half = metrics.rates(np.stack([one, only_negative]))
    assert metrics.demographic_parity_difference(half) == pytest.approx(10 / 16 - 2 / 8)
    # The true positive rate of one group is unknown, so the larger of the two differences is too.
    assert np.isnan(metrics.equalized_odds_difference(half))
    three = metrics.rates(np.stack([one, empty, 2 * one[:, ::-1]]))
    assert metrics.equalized_odds_difference(three) == pytest.approx(6 / 8 - 2 / 8)
    assert np.isnan(metrics.rates(one, min_count=9).true_positive)
    assert metrics.rates(one, min_count=9).selection == 10 / 16


def test_worst_group_leaves_out_groups_that_are_not_estimable() -> None:
    assert metrics.worst_group_auc(np.array([0.8, np.nan, 0.7])) == 0.7
    assert np.isnan(metrics.worst_group_auc(np.array([np.nan, np.nan])))


@given(st.floats(-3, 3))
def test_auc_is_that_of_two_normal_distributions(shift: float) -> None:
    # Cell masses in place of counts: AUC = Phi(shift / sqrt 2), up to the bound.
    edges = stats.norm.ppf(np.linspace(0, 1, 513))
    masses = 1e3 * np.stack([np.diff(stats.norm.cdf(edges)), np.diff(stats.norm.cdf(edges, loc=shift))])
    expected = stats.norm.cdf(shift / np.sqrt(2))
    assert metrics.auc(masses) == pytest.approx(expected, abs=float(metrics.auc_bound(masses)))
