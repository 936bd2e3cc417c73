"""What cannot be estimated moves nothing: single modalities and groups, missing, empty and one-class ones."""

from __future__ import annotations

import numpy as np
import pytest

from fedfair.modulation import METHODS
from tests.unit.modulation.cases import CASES, Case, answer, assert_valid, cases_of, permuted, site_signals

every_method = pytest.mark.parametrize("case", cases_of(METHODS).values(), ids=list(CASES))


@every_method
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("modalities", "groups"), [(1, 1), (1, 3), (3, 1), (2, 2), (5, 4)])
def test_any_number_of_modalities_groups_and_classes(
    case: Case, modalities: int, groups: int, classes: int
) -> None:
    rounds = [site_signals(seed, modalities, groups, classes) for seed in (1, 2, 3)]
    result = answer(case.method, rounds)
    assert_valid(result, modalities, groups)
    if modalities == groups == 1:
        # With nothing to compare with there is nothing to modulate.
        np.testing.assert_allclose(result.coefficients.fused, 1.0, rtol=1e-12)


@every_method
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_modality_is_as_though_it_did_not_exist(case: Case, missing: int) -> None:
    """A modality of no record, from the first round or from a later one, moves no other coefficient."""
    others = [m for m in range(3) if m != missing]
    rounds = [site_signals(seed, without=[missing]) for seed in (1, 2, 3)]
    fewer = [permuted(signals, others, [0, 1, 2]) for signals in rounds]
    result, expected = answer(case.method, rounds), answer(case.method, fewer)
    assert_valid(result, 3, 3)
    np.testing.assert_allclose(
        result.coefficients.fused[[0, *(m + 1 for m in others)]], expected.coefficients.fused, rtol=1e-12
    )
    np.testing.assert_allclose(
        result.coefficients.unimodal[others], expected.coefficients.unimodal, rtol=1e-12
    )
    later = answer(case.method, [site_signals(1), site_signals(2), site_signals(3, without=[missing])])
    before = answer(
        case.method,
        [*(permuted(site_signals(s), others, [0, 1, 2]) for s in (1, 2)), fewer[2]],
    )
    assert_valid(later, 3, 3)
    np.testing.assert_allclose(
        later.coefficients.fused[[0, *(m + 1 for m in others)]], before.coefficients.fused, rtol=1e-12
    )


@every_method
@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_group_is_as_though_it_did_not_exist(case: Case, empty: int) -> None:
    others = [g for g in range(3) if g != empty]
    rounds = [site_signals(seed, empty=[empty]) for seed in (1, 2, 3)]
    fewer = [permuted(signals, [0, 1, 2], others) for signals in rounds]
    result, expected = answer(case.method, rounds), answer(case.method, fewer)
    assert_valid(result, 3, 3)
    np.testing.assert_allclose(result.coefficients.fused[:, others], expected.coefficients.fused, rtol=1e-12)
    np.testing.assert_allclose(
        result.coefficients.unimodal[:, others], expected.coefficients.unimodal, rtol=1e-12
    )


@every_method
@pytest.mark.parametrize("classes", [2, 3])
def test_a_group_of_one_class_is_not_judged(case: Case, classes: int) -> None:
    """It cannot be assessed, so it is neither raised nor lowered against its own modality's level."""
    rounds = [site_signals(seed, classes=classes, one_class=[1]) for seed in (1, 2, 3)]
    result = answer(case.method, rounds)
    assert_valid(result, 3, 3)
    level = result.diagnostics.get("balance", np.ones(3))
    np.testing.assert_allclose(result.coefficients.fused[:, 1], [1.0, *level], rtol=1e-12)
    if (fairness := result.terms.fairness) is not None:
        assert not fairness.slopes[:, 1].any()


@every_method
def test_all_groups_of_one_class_or_empty(case: Case) -> None:
    rounds = [site_signals(seed, one_class=[0, 2], empty=[1]) for seed in (1, 2, 3)]
    result = answer(case.method, rounds)
    assert_valid(result, 3, 3)
    np.testing.assert_allclose(result.coefficients.fused, 1.0, rtol=1e-12)
