"""Methods on settled signals: defined whatever the noise, and at rest where nothing is resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest

from fedfair.measure import RecordBounds, measure
from fedfair.modulation import METHODS, Method
from fedfair.privacy.gate import settle
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import release
from fedfair.signals import Array, Signals
from tests.oracles.cohort import GROUPS, WIDTHS, cohort, partition, small_model
from tests.unit.modulation.cases import CASES, answer, assert_valid
from tests.unit.privacy.worlds import BINS, HEADS, layout_of, noised, world

by_classes = pytest.mark.parametrize("classes", [2, 3])


def rounds_of(
    method: Method, classes: int, sigma: float, seed: int
) -> list[tuple[Signals, dict[str, Array]]]:
    """Return three rounds of settled signals of five sites of a small cohort."""
    bounds = RecordBounds(3.0, 1.0 if method.needs_head_gradients else None)
    rounds = []
    for r in range(3):
        model, sites = small_model(classes, seed=r + 1), []
        for k, records in enumerate(partition(cohort(classes=classes), 5)):
            exact = measure(model, records, GROUPS, BINS, 512, method.needs_head_gradients, bounds)
            sites += release([exact], layout_of(exact, bounds), sigma, Noise.fixed(seed, r, k))
        rounds.append(settle(reduce(Signals.__add__, sites)))
    return rounds


@pytest.mark.parametrize("name", METHODS)
@by_classes
@pytest.mark.parametrize("sigma", [0.3, 3.0, 100.0])
def test_every_method_runs_on_settled_signals(name: str, classes: int, sigma: float) -> None:
    for method in (METHODS[name](), CASES[name].method):
        for seed in range(6):
            signals = [settled for settled, _ in rounds_of(method, classes, sigma, seed)]
            assert_valid(answer(method, signals), len(WIDTHS), GROUPS)


def assert_groups_alike(method: Method, rounds: Sequence[Signals]) -> None:
    result = answer(method, rounds)
    # A difference of rounding, 1e-16, over a temperature of 0.05.
    assert np.ptp(result.coefficients.fused, 1).max() < 1e-9
    assert np.ptp(result.coefficients.unimodal, 1).max() < 1e-9
    if method.name == "multifair":
        np.testing.assert_allclose(result.diagnostics["group_factors"], 1.0, rtol=0, atol=1e-9)
        assert not result.terms.fairness.slopes.any()


def unresolved(rounds: Sequence[tuple[Signals, dict[str, Array]]]) -> bool:
    return not any(d[f"{name}_weight"].any() for _, d in rounds for name in ("auc", "loss", "head"))


@pytest.mark.parametrize("name", METHODS)
@by_classes
def test_nothing_resolved_leaves_groups_alike(name: str, classes: int) -> None:
    method, seen = METHODS[name](), 0
    for seed in range(40):  # some 60 gaps in three rounds: all rest in one of 15 seeds
        exact = world([900, 700, 500], [0.8, 0.6, 0.5], [0.8, 0.85, 0.9], classes)
        if method.needs_head_gradients:
            exact = replace(exact, head_gradients=np.full((HEADS, classes, 4), 2.0))
        rounds = [settle(noised(exact, 8.0, 10 * seed + r)) for r in range(3)]
        if unresolved(rounds) and all((settled.counts.sum(-1) > 0).all() for settled, _ in rounds):
            seen += 1
            assert_groups_alike(method, [settled for settled, _ in rounds])
            answered = answer(method, [settled for settled, _ in rounds])
            assert answered.terms.direction is None or not answered.terms.direction.any()
            # Equal in all modalities, since no modality is told from another.
            assert np.ptp(answered.coefficients.unimodal) < 1e-9
    assert seen >= 3


@by_classes
def test_a_small_cohort_under_heavy_noise_leaves_groups_alike(classes: int) -> None:
    for name in METHODS:
        method = METHODS[name]()
        tried = [rounds_of(method, classes, 3.0, seed) for seed in range(12)]
        quiet = [rounds for rounds in tried if unresolved(rounds)]
        assert len(quiet) >= 3
        for rounds in quiet:
            assert_groups_alike(method, [settled for settled, _ in rounds])


def test_progress_is_judged_against_the_noise_of_both_rounds() -> None:
    exact = replace(world([900, 700], [0.8, 0.6], [0.8, 0.85]), head_gradients=np.zeros((HEADS, 2, 4)))
    still = []
    for seed in range(60):
        rounds = [settle(noised(exact, 6.0, 10 * seed + r))[0] for r in range(2)]
        still.append((answer(METHODS["multifair"](), rounds).diagnostics["balance"] == 1.0).all())
    # The sum of two positive parts exceeds 2 sd of both in 3 % of draws; 5 standard errors of 60 are 11 %.
    assert np.mean(still) > 0.86
