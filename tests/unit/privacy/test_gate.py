"""Settled signals: gaps that noise explains are gone, evident ones stay, and nothing is undefined."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest

from fedfair.metrics import macro_auc
from fedfair.modulation import METHODS
from fedfair.modulation._dual_mimo import relative_losses
from fedfair.privacy.gate import settle
from fedfair.privacy.release import Layout
from fedfair.signals import Array, Signals, Variance
from tests.unit.privacy.worlds import HEADS, gaps, noised, of_three, world

EQUAL = world([900, 600, 400], [0.6, 0.6, 0.6], [0.8, 0.8, 0.8])
UNEQUAL = world([3000, 2000, 1500], [0.9, 0.5, 0.2], [0.6, 0.8, 0.95])
by_classes = pytest.mark.parametrize("classes", [2, 3])


def test_exact_signals_are_returned_as_they_are() -> None:
    for variance in (None, Variance(0.0, 0.0)):
        signals = replace(UNEQUAL, variance=variance)
        settled, diagnostics = settle(signals)
        assert settled is signals
        assert diagnostics == {}


@by_classes
def test_without_noise_the_limit_is_the_input(classes: int) -> None:
    exact = world([300, 200, 100], [0.9, 0.5, 0.2], [0.6, 0.8, 0.9], classes)
    # Halving a small noise quarters the part of a gap that is given up; 1e-6 leaves rounding and the noise.
    settled, diagnostics = settle(noised(exact, 1e-6, 0))
    for name in ("counts", "losses", "histograms"):
        np.testing.assert_allclose(getattr(settled, name), getattr(exact, name), rtol=0, atol=1e-4)
    assert min(diagnostics["auc_weight"].min(), diagnostics["loss_weight"].min()) > 1 - 1e-9
    assert settled.variance is not None


@by_classes
def test_predicted_deviations_of_gaps_are_those_of_repeated_releases(classes: int) -> None:
    # One group holds most of the pool, whose noise comes from all: neither sd alone would do.
    exact = world([6000, 600, 500, 400, 400], [0.8, 0.6, 0.6, 0.4, 0.2], [0.6, 0.7, 0.8, 0.9, 0.7], classes)
    true_auc, true_loss = gaps(exact)
    sigma, repetitions = (3.0, 400) if classes == 2 else (1.5, 400)
    found = [settle(noised(exact, sigma, seed))[1] for seed in range(repetitions)]
    for name, true in (("auc", true_auc), ("loss", true_loss)):
        gap = np.stack([d[f"{name}_gap"] for d in found])
        sd = np.stack([d[f"{name}_gap_sd"] for d in found])
        # 3.5 % is the error of a standard deviation of 400 draws, taken 4 times; the second order adds about
        # the squared relative noise of a total of 200, (3 * 2 * sqrt(8) / 200)^2 < 1 %.
        np.testing.assert_allclose((gap - true).std(0) / np.median(sd, 0), 1.0, atol=0.16)


def test_a_gap_of_noise_alone_is_gone() -> None:
    weights, raw, left = [], [], []
    for seed in range(200):
        signals = noised(EQUAL, 4.0, seed)
        settled, diagnostics = settle(signals)
        weights.append([diagnostics["auc_weight"], diagnostics["loss_weight"]])
        raw.append(np.abs(gaps(signals)))
        left.append(np.abs(gaps(settled)))
    # |z| > 2 happens in 4.6 % of draws; linearisation adds little at these sizes.
    silent = (np.array(weights) == 0).mean((0, 2, 3))
    assert (silent >= 0.9).all()
    noise, rest = np.array(raw).mean((0, 2, 3)), np.array(left).mean((0, 2, 3))
    # E[(|z| - 4 / |z|) ; |z| > 2] / E|z| is 4 % for normal z.
    assert (noise > 0.01).all()
    assert (rest < 0.15 * noise).all()


@by_classes
def test_a_large_gap_survives(classes: int) -> None:
    exact = world([3000, 2000, 1500], [0.9, 0.5, 0.2], [0.6, 0.8, 0.95], classes)
    true, outer = np.array(gaps(exact)), [0, 2]
    assert (np.abs(true[:, :, outer]) > 0.05).all()
    for seed in range(20):
        signals = noised(exact, 2.0, seed)
        settled, diagnostics = settle(signals)
        got = np.array(gaps(settled))[:, :, outer]
        assert (np.sign(got) == np.sign(true[:, :, outer])).all()
        # Shrinkage by 4 sd^2 / gap^2 (under a quarter), and the noise itself: half the gap is left at least.
        assert (np.abs(got) > 0.5 * np.abs(true[:, :, outer])).all()
        assert diagnostics["resolved"].all()


def levels(signals: Signals, diagnostics: dict[str, Array]) -> Array:
    """Return the relative loss [H, 1] at which a head's groups settle: the fused head's own, or moved."""
    unimodal = Signals(*(v[1:].sum((0, 1), keepdims=True) for v in of_three(signals)))
    fused = Signals(*(v[:1].sum(1, keepdims=True) for v in of_three(signals)))
    moved = relative_losses(unimodal)[0] + diagnostics["head_weight"] * diagnostics["head_gap"]
    return np.concatenate([relative_losses(fused), moved[:, None]])


def test_relative_losses_move_on_a_straight_line_to_the_pools() -> None:
    """Labels and losses settle together, so a half-way group lies between its own value and the pool's."""
    exact = world([5000, 500], [0.6, 0.6], [0.8, 0.95])
    exact.losses[2] *= 1.05
    between = set()
    for seed in range(20):
        signals = noised(exact, 4.0, seed)
        settled, diagnostics = settle(signals)
        for name in ("loss", "head"):
            weight = diagnostics[f"{name}_weight"]
            between |= {name} if ((weight > 0) & (weight < 1)).any() else set()
        expected = levels(signals, diagnostics) + diagnostics["loss_weight"] * diagnostics["loss_gap"]
        # Rounding of sums of thousands.
        np.testing.assert_allclose(relative_losses(settled), expected, rtol=1e-12)
        np.testing.assert_allclose(settled.counts.sum(-1), signals.counts.sum(-1), rtol=1e-12)
    assert between == {"loss", "head"}


@by_classes
def test_a_tiny_group_has_the_pools_distribution_or_is_empty(classes: int) -> None:
    exact = world([3000, 2000, 8], [0.9, 0.3, 0.2], [0.6, 0.8, 0.9], classes)
    outcomes = set()
    for seed in range(30):
        signals = noised(exact, 4.0, seed)
        settled, diagnostics = settle(signals)
        assert not diagnostics["auc_weight"][:, 2].any()
        assert not diagnostics["loss_weight"][:, 2].any()
        pool = macro_auc(signals.histograms.sum(1))
        for h, size in enumerate(signals.counts[:, 2].sum(-1)):
            outcomes.add(bool(size > 0))
            if size <= 0:
                assert not settled.counts[h, 2].any()
                assert not settled.losses[h, 2]
                assert not settled.histograms[h, 2].any()
                continue
            assert settled.counts[h, 2].sum() == pytest.approx(size, rel=1e-12)
            if h == 0:  # unimodal heads settle at a level of their own
                level = signals.losses[h].sum() / signals.counts[h].sum()
                assert settled.losses[h, 2] == pytest.approx(size * level, rel=1e-12)
            assert relative_losses(settled)[h, 2] == pytest.approx(
                levels(signals, diagnostics)[h, 0], rel=1e-12
            )
            own = macro_auc(settled.histograms[h, 2], min_count=0)
            assert np.isnan(own) or own == pytest.approx(pool[h], abs=1e-12)
    assert outcomes == {True, False}


def test_cells_are_not_clipped_at_zero() -> None:
    exact = world([4000, 3000], [2.5, 0.3], [0.4, 0.9])
    settled = [settle(noised(exact, 8.0, seed))[0].histograms for seed in range(100)]
    cells = np.stack(settled)[:, :, 0]
    rare = exact.histograms[:, 0] < 1
    sd = 8.0 * Layout(HEADS, 1, 1.0).units().histograms
    assert rare.any()
    assert (cells[:, rare] < 0).any()
    # Clipped normal noise has a mean of 0.4 sd; 5 standard errors of a mean of 100 draws are 0.5 sd, so all
    # rare cells are taken together, and the pool's share that a weight below one adds is under 0.02 sd.
    assert abs((cells - exact.histograms[:, 0])[:, rare].mean()) < 0.15 * sd


def test_sites_are_added_before_settling() -> None:
    share = world([200, 150], [1.2, 0.4], [0.6, 0.95])
    alone, pooled = [], []
    for seed in range(10):
        sites = [noised(share, 2.0, 100 * seed + site) for site in range(10)]
        alone += [settle(site)[1]["loss_weight"] for site in sites]
        pooled.append(settle(reduce(Signals.__add__, sites))[1]["loss_weight"])
    # Ten sites have sqrt(10) times less noise for the same gap.
    assert np.mean(alone) < 0.5 < np.mean(pooled)


@by_classes
def test_a_head_that_no_record_has_is_not_scored_and_weighs_no_more_than_others(classes: int) -> None:
    exact = world([600, 500], [0.6, 0.6], [0.8, 0.8], classes)
    for array in (exact.counts, exact.losses, exact.histograms):
        array[2] = 0.0
    empty = []
    for seed in range(200):
        settled, diagnostics = settle(noised(exact, 2.0, seed))
        empty.append(not settled.histograms[2].any())
        if not (diagnostics["loss_weight"][1:].any() or diagnostics["head_weight"].any()):
            risk = relative_losses(settled)[1:]
            known = np.isfinite(risk)
            np.testing.assert_allclose(risk[known], risk[0, 0], rtol=1e-12)
    # A total above 2 sd of pure noise happens in 2.3 % of draws; 5 standard errors of 200 draws are 5.3 %.
    assert np.mean(empty) > 0.92


def test_modalities_are_compared_as_far_as_their_losses_are_known() -> None:
    equal = world([900, 600, 400], [0.6, 0.6, 0.6], [0.8, 0.8, 0.8])
    apart = replace(equal, losses=equal.losses * [[1.0], [1.4], [1.0]])
    method = METHODS["mimo"]()

    def weight(signals: Signals) -> float:
        return float(method.modulate(signals, {}).coefficients.unimodal[0, 0])

    raw = [weight(noised(equal, 4.0, seed)) for seed in range(100)]
    rest = [weight(settle(noised(equal, 4.0, seed))[0]) for seed in range(100)]
    kept = [weight(settle(noised(apart, 4.0, seed))[0]) for seed in range(20)]
    # A draw in twenty is taken for a gap of the two modalities, or of one of their six groups, which moves
    # the mean of its modality a little.
    assert np.mean(np.abs(np.array(rest) - 0.5) < 0.01) > 0.7
    assert np.std(raw) > 3 * np.std(rest)
    # Two fifths of a loss of 0.55 nats at a temperature of 0.1 give softmax(2.2) = 0.9 without noise; the
    # gate gives up 4 sd^2 / gap^2 of the gap, about a tenth.
    assert np.mean(kept) == pytest.approx(0.9, abs=0.08)


def test_head_gradients_are_kept_only_if_noise_does_not_explain_them() -> None:
    gradients = np.zeros((HEADS, 2, 6))
    gradients[1] = 40.0
    for seed in range(20):
        signals = noised(replace(EQUAL, head_gradients=gradients), 2.0, seed)
        settled = settle(signals)[0].head_gradients
        # The noise's norm is within 1 +- 1/sqrt(24) of its own scale; 40 is ten times it.
        assert not settled[[0, 2]].any()
        np.testing.assert_array_equal(settled[1], signals.head_gradients[1])


@by_classes
@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 30.0, 1e5])
def test_everything_is_finite_whatever_the_noise(classes: int, groups: int, sigma: float) -> None:
    exact = world([60.0 * 0.3**g for g in range(groups)], [0.5] * groups, [0.8] * groups, classes)
    exact.counts[:, 0], exact.losses[:, 0], exact.histograms[:, 0] = 0.0, 0.0, 0.0
    for seed in range(40):
        settled, diagnostics = settle(noised(exact, sigma, seed))
        settled.check("the pool")
        assert (settled.counts >= 0).all()
        assert (settled.histograms.sum(-1) > -1e-9).all()  # rounding of a total of zero
        for name in ("auc_weight", "loss_weight", "resolved"):
            assert ((diagnostics[name] >= 0) & (diagnostics[name] <= 1)).all()


def test_one_group_is_its_own_pool() -> None:
    signals = noised(world([500], [0.6], [0.8]), 1.0, 0)
    settled = settle(signals)[0]
    # Divided and multiplied by one total. (Unimodal heads settle at their common loss.)
    np.testing.assert_allclose(settled.histograms, signals.histograms, rtol=1e-12)
    np.testing.assert_allclose(settled.counts[0], signals.counts[0], rtol=1e-12)
    np.testing.assert_allclose(settled.losses[0], signals.losses[0], rtol=1e-12)


def test_an_auc_whose_noise_is_not_linear_is_not_resolved() -> None:
    # Class counts of 120 and 80 are ten deviations of the noise above zero, yet the AUC's deviation is 0.1.
    exact = world([2000, 200], [1.5, -1.5], [0.8, 0.8])
    for seed in range(20):
        settled, diagnostics = settle(noised(exact, 1.4, seed))
        sd = diagnostics["auc_sd"]
        np.testing.assert_array_equal(diagnostics["resolved"], sd <= 0.06)
        assert (np.abs(diagnostics["auc_gap"][:, 1]) > 2 * diagnostics["auc_gap_sd"][:, 1]).all()
        assert (diagnostics["auc_weight"] == 0)[sd > 0.06].all()
        assert settled.histograms.shape == exact.histograms.shape
