"""MultiFair's factors against the formulas, one number at a time; what is gated, clamped or not estimable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedfair.metrics import auc_standard_error
from fedfair.modulation import Modulation, MultiFair
from fedfair.signals import Array, Signals
from tests.unit.modulation.cases import answer, site_signals

WIDE = {"balance_min": 1e-3, "balance_max": 1e6, "group_factor_min": 1e-3, "group_factor_max": 1e6}
OPEN = MultiFair(gate=0.0, decay=0.0, direction=0.0, fairness=0.0, group_min=1, **WIDE)
# Small tau would drive a factor below its clamp; this one keeps 1 + gamma gap / tau positive.
CALM = replace(OPEN, tau=1.0)


def aucs(signals: Signals) -> Array:
    """Return the AUC of each unimodal head on its binned scores, from scikit-learn."""
    result = []
    for histogram in signals.histograms[1:].sum(1)[:, 0]:
        cells = histogram.reshape(-1)
        labels = np.repeat(np.arange(2), histogram.shape[1])
        bins = np.tile(np.arange(histogram.shape[1]), 2)
        result.append(roc_auc_score(labels, bins, sample_weight=cells))
    return np.array(result)


def group_aucs(signals: Signals) -> Array:
    parts = [aucs(replace(signals, histograms=signals.histograms[:, [g]])) for g in range(signals.num_groups)]
    return np.stack(parts, axis=1)


def balance(modulation: Modulation) -> Array:
    return modulation.diagnostics["balance"]


def two_rounds() -> list[Signals]:
    """Return two rounds between which two heads rise by unequal amounts and one falls."""
    first, better, best, worse = (site_signals(seed) for seed in (2, 3, 6, 1))
    later = np.stack([first.histograms[0], best.histograms[1], better.histograms[2], worse.histograms[3]])
    return [first, replace(first, histograms=later)]


@pytest.mark.parametrize("rho", [0.0, 1.2])
@pytest.mark.parametrize("progress", ["positive", "absolute", "signed"])
def test_balance_is_the_share_of_the_others_progress(progress: str, rho: float) -> None:
    method = replace(OPEN, progress=progress, rho=rho, gamma=0.0)
    rounds = two_rounds()
    rise = aucs(rounds[1]) - aucs(rounds[0])
    assert rise.min() < 0 < rise.max(), "the three kinds must differ here"
    r = {"positive": np.maximum(rise, 0), "absolute": np.abs(rise), "signed": rise}[progress]
    expected = np.clip((rho or 3 / 2) * (r.sum() - r) / r.sum(), 1e-3, 1e6)
    # AUCs are ratios of integers; the division by their differences costs three digits.
    np.testing.assert_allclose(balance(answer(method, rounds)), expected, rtol=1e-10)


def test_equal_progress_with_the_default_scale_is_neutral() -> None:
    rounds = [site_signals(seed, equal=True) for seed in (1, 2)]
    assert aucs(rounds[1])[0] > aucs(rounds[0])[0] + 0.01
    np.testing.assert_allclose(balance(answer(OPEN, rounds)), 1.0, rtol=1e-12)
    np.testing.assert_allclose(balance(answer(replace(OPEN, rho=1.2), rounds)), 0.8, rtol=1e-12)


def test_no_progress_at_all_is_neutral() -> None:
    for progress in ("positive", "absolute", "signed"):
        result = answer(replace(OPEN, progress=progress), [site_signals(1)] * 2)
        np.testing.assert_allclose(balance(result), 1.0, rtol=1e-12)


def test_group_factors_are_linear_in_the_gap() -> None:
    signals = site_signals(1)
    auc = group_aucs(signals)
    expected = 1 + CALM.gamma * (auc.mean(1, keepdims=True) - auc) / CALM.tau
    result = answer(CALM, [signals] * 2)
    np.testing.assert_allclose(result.coefficients.fused[1:], expected, rtol=1e-12)
    assert (result.coefficients.fused[0] == 1).all(), "the fusion network is not modulated"
    assert np.ptp(expected) > 0.05
    worst, best = auc.argmin(1), auc.argmax(1)
    rows = np.arange(3)
    assert (expected[rows, worst] > 1).all()
    assert (expected[rows, best] < 1).all()


def test_scalar_form_is_the_share_weighted_mean_of_the_group_factors() -> None:
    signals = site_signals(1)
    per_group = answer(CALM, [signals] * 2).coefficients.fused[1:]
    share = signals.counts[1:].sum(-1) / signals.counts[1:].sum((1, 2))[:, None]
    expected = np.tile((share * per_group).sum(1, keepdims=True), 3)
    scalar = answer(replace(CALM, form="scalar"), [signals] * 2).coefficients.fused[1:]
    np.testing.assert_allclose(scalar, expected, rtol=1e-12)


def test_scalar_form_is_one_for_two_groups_of_one_size() -> None:
    """1 + d and 1 - d in equal shares: why the scalar form cannot serve two balanced groups."""
    drawn = site_signals(1, groups=2)
    size = drawn.counts.sum(-1)
    # The second group is half as large; every record of it twice makes the shares equal.
    weight = (size[:, :1] / size)[:, :, None]
    signals = replace(
        drawn, counts=drawn.counts * weight, histograms=drawn.histograms * weight[..., None, None]
    )
    per_group = answer(CALM, [signals] * 2).coefficients.fused[1:]
    assert np.ptp(per_group, axis=1).min() > 0.01
    scalar = answer(replace(CALM, form="scalar"), [signals] * 2).coefficients.fused[1:]
    np.testing.assert_allclose(scalar, 1.0, rtol=0, atol=1e-12)


def test_moving_average_carries_what_is_not_estimable() -> None:
    method = replace(OPEN, decay=0.75)
    first, second = site_signals(1), site_signals(2)
    gone = site_signals(3, without=[1], one_class=[2])
    memory = answer(method, [first, second]).memory
    np.testing.assert_allclose(memory["auc"], 0.75 * aucs(first) + 0.25 * aucs(second), rtol=1e-12)
    later = answer(method, [first, second, gone]).memory
    assert later["auc"][1] == memory["auc"][1]
    np.testing.assert_array_equal(later["group_auc"][:, 2], memory["group_auc"][:, 2])
    assert later["auc"][0] != memory["auc"][0]
    early = answer(method, [gone, first]).memory
    # Nothing was known before, so the first estimate stands as it is.
    assert early["auc"][1] == pytest.approx(aucs(first)[1], rel=1e-12)


def test_warm_up_is_neutral_and_remembers() -> None:
    method = replace(OPEN, warmup=2, direction=0.1, fairness=0.3)
    rounds = [site_signals(seed) for seed in (1, 2, 3)]
    for count in (1, 2):
        result = answer(method, rounds[:count])
        assert (result.coefficients.fused == 1).all()
        assert not result.terms
    result = answer(method, rounds)
    assert np.ptp(result.coefficients.fused) > 0.1
    assert result.terms.direction is not None
    assert result.terms.fairness is not None
    assert result.memory["rounds"] == [3]


def test_a_group_factor_moves_only_beyond_its_gate() -> None:
    signals = site_signals(1)
    auc, error = group_aucs(signals), auc_standard_error(signals.histograms[1:])[..., 0]
    distance = np.abs(auc.mean(1, keepdims=True) - auc) / error
    gate = float(np.median(distance))
    factors = answer(replace(CALM, gate=gate), [signals] * 2).diagnostics["group_factors"]
    assert ((factors != 1) == (distance > gate)).all()
    assert 0 < (factors != 1).sum() < factors.size


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_balance_moves_only_beyond_its_gate(decay: float) -> None:
    """The moving average shrinks the change and its noise alike, so the decay does not move the gate."""
    rounds, method = two_rounds(), replace(OPEN, decay=decay)
    total = np.maximum(aucs(rounds[1]) - aucs(rounds[0]), 0).sum()
    error = auc_standard_error(rounds[1].histograms[1:].sum(1))[:, 0]
    distance = total / np.sqrt(2 * (error**2).sum())
    assert (balance(answer(replace(method, gate=0.99 * distance), rounds)) != 1).any()
    beyond = balance(answer(replace(method, gate=1.01 * distance), rounds))
    np.testing.assert_allclose(beyond, 1.0, rtol=1e-12)


def test_a_change_of_unknown_error_is_no_evidence() -> None:
    """One record of a class gives an AUC without a standard error."""
    first, second = two_rounds()
    histograms = second.histograms.copy()
    histograms[1, :, 0, 1] = 0
    histograms[1, 0, 0, 1, 5] = 1
    second = replace(second, histograms=histograms)
    assert np.isnan(auc_standard_error(histograms[1].sum(0))).all()
    assert (balance(answer(OPEN, [first, second])) != 1).any()
    np.testing.assert_allclose(balance(answer(replace(OPEN, gate=1e-9), [first, second])), 1.0, rtol=1e-12)


def test_clamps_hold() -> None:
    method = MultiFair(gate=0.0, tau=1e-3, decay=0.0, direction=0.0, fairness=0.0)
    rounds = two_rounds()
    result = answer(method, rounds)
    factors = result.diagnostics["group_factors"]
    assert (factors.min(), factors.max()) == (0.5, 2.0)
    assert 0.5 <= balance(result).min() <= balance(result).max() <= 2.0
    assert result.coefficients.fused.min() >= 0.25
    assert result.coefficients.fused.max() <= 4.0


def test_groups_below_the_smallest_count_move_nothing() -> None:
    signals = site_signals(1, groups=2)
    smallest = int(signals.counts[0, 1].min()) + 1
    method = replace(CALM, fairness=0.5, group_min=smallest)
    result = answer(method, [signals] * 2)
    assert (result.coefficients.fused == 1).all()
    assert result.terms.fairness is not None
    assert not result.terms.fairness.slopes.any(), "nor do they enter F_G"
    enough = answer(replace(method, group_min=smallest - 1), [signals] * 2)
    assert enough.terms.fairness is not None
    assert enough.terms.fairness.slopes.any()


def test_terms_scale_with_their_weights_and_are_left_out_at_zero() -> None:
    rounds = [site_signals(1)] * 2
    method = replace(OPEN, direction=0.1, fairness=0.3, direction_max=np.inf)
    one = answer(method, rounds).terms
    two = answer(replace(method, direction=0.2, fairness=0.6), rounds).terms
    assert one.direction is not None
    assert one.fairness is not None
    np.testing.assert_allclose(two.direction, 2 * one.direction, rtol=1e-12)
    np.testing.assert_allclose(two.fairness.slopes, 2 * one.fairness.slopes, rtol=1e-12)
    assert answer(replace(method, direction=0.0), rounds).terms.direction is None
    assert answer(replace(method, fairness=0.0), rounds).terms.fairness is None
    assert not replace(method, direction=0.0).needs_head_gradients
    assert method.needs_head_gradients


def test_the_direction_matrix_is_shortened_to_its_largest_norm() -> None:
    rounds = [site_signals(1)] * 2
    method = replace(OPEN, direction=0.1, direction_max=np.inf)
    free = answer(method, rounds).terms.direction
    norm = np.linalg.norm(free)
    capped = answer(replace(method, direction_max=norm / 3), rounds).terms.direction
    np.testing.assert_allclose(capped, free / 3, rtol=1e-12)
    np.testing.assert_array_equal(
        answer(replace(method, direction_max=2 * norm), rounds).terms.direction, free
    )
