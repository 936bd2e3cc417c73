"""What every method must satisfy, whatever it does; `cases.py` says under which settings."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest

from fedfair.coefficients import Coefficients
from fedfair.errors import InconsistentUpdates
from fedfair.modulation import METHODS, FedAvg
from fedfair.signals import Array, Signals
from tests.unit.modulation.cases import (
    BINS,
    CASES,
    Case,
    answer,
    arrays,
    assert_valid,
    cases_of,
    permuted,
    site_signals,
)

every_method = pytest.mark.parametrize("case", cases_of(METHODS).values(), ids=list(CASES))

ROUNDS = [site_signals(seed) for seed in (1, 2, 3)]


def reorder(values: dict[str, Array], modalities: list[int], groups: list[int]) -> dict[str, Array]:
    """Permute answers by the length of their leading axes: M + 1 or M, then G."""
    result = {}
    for name, value in values.items():
        moved = value
        if name not in ("direction", "memory/rounds"):
            moved = moved[[0, *(m + 1 for m in modalities)] if name == "fused" else modalities]
            moved = moved[:, groups] if moved.ndim > 1 else moved
        result[name] = moved
    return result


def assert_close(one: dict[str, Array], other: dict[str, Array], tolerance: float = 1e-10) -> None:
    # 1e-10: losses are sums in another order (1e-13 relative) and a temperature of 0.1 divides them.
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@every_method
def test_the_sample_moves_the_coefficients(case: Case) -> None:
    """Without this the properties below could hold because nothing ever moves."""
    coefficients = answer(case.method, ROUNDS).coefficients
    moved = np.ptp(coefficients.fused) > 0.1 or np.ptp(coefficients.unimodal) > 0.1
    assert moved == case.method.modulates


@every_method
def test_neutral_limit_is_federated_averaging(case: Case) -> None:
    # The same signals again: no head has progressed more than another.
    result = answer(case.neutral, [ROUNDS[0]] * 3)
    np.testing.assert_allclose(result.coefficients.fused, 1.0, rtol=0, atol=1e-12)
    assert not result.terms
    assert not result.coefficients.live or not result.coefficients.unimodal.any()


@every_method
def test_equally_served_groups_and_modalities_get_neutral_coefficients(case: Case) -> None:
    for modalities in (1, 2, 3):
        rounds = [site_signals(seed, modalities, equal=True) for seed in (1, 2, 3)]
        coefficients = answer(case.method, rounds).coefficients
        # Sums of a hundred equal losses, divided by a temperature of 0.1.
        np.testing.assert_allclose(coefficients.fused, 1.0, rtol=0, atol=1e-10)
        np.testing.assert_allclose(coefficients.unimodal, case.unimodal(modalities), rtol=1e-10)


@every_method
def test_no_signal_at_all_gives_neutral_coefficients(case: Case) -> None:
    nothing = Signals(np.zeros((3, 2, 2)), np.zeros((3, 2)), np.zeros((3, 2, 1, 2, BINS)))
    coefficients = case.method.modulate(nothing, {}).coefficients
    np.testing.assert_array_equal(coefficients.fused, 1.0)
    np.testing.assert_allclose(coefficients.unimodal, case.unimodal(2), rtol=1e-12)


@every_method
@pytest.mark.parametrize("classes", [2, 3])
def test_permutation_equivariance(case: Case, classes: int) -> None:
    rounds = [site_signals(seed, classes=classes) for seed in (1, 2, 3)]
    expected = arrays(answer(case.method, rounds))
    for order in permutations(range(3)):
        for modalities, groups in ((list(order), [0, 1, 2]), ([0, 1, 2], list(order))):
            moved = [permuted(signals, modalities, groups) for signals in rounds]
            assert_close(arrays(answer(case.method, moved)), reorder(expected, modalities, groups))


@every_method
def test_order_and_partition_of_sites_do_not_matter(case: Case) -> None:
    sites = [[site_signals(10 * r + k, records=80) for k in range(4)] for r in range(3)]
    pooled = [((a + b) + c) + d for a, b, c, d in sites]
    nested = [(d + b) + (c + a) for a, b, c, d in sites]
    assert_close(arrays(answer(case.method, pooled)), arrays(answer(case.method, nested)))


@pytest.mark.parametrize(
    ("case", "scale"),
    [
        pytest.param(case, scale, id=f"{name}-{scale:g}")
        for name, case in CASES.items()
        for scale in (1e-8, 1e-3, 1e3, 1e8)
        if scale >= case.smallest
    ],
)
def test_more_of_the_same_records_change_nothing(case: Case, scale: float) -> None:
    scaled = [
        Signals(s.counts * scale, s.losses * scale, s.histograms * scale, s.head_gradients * scale)
        for s in ROUNDS
    ]
    got = arrays(answer(case.with_counts(case.method, scale), scaled))
    if "histograms" in got:
        got["histograms"] = got["histograms"] / scale
    assert_close(got, arrays(answer(case.method, ROUNDS)))


@every_method
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1e3, 1e8])
def test_larger_losses_change_nothing_at_a_temperature_in_their_unit(case: Case, scale: float) -> None:
    # 1e-5, not 1e-8: temperatures below 1e-6 are refused.
    scaled = [replace(signals, losses=signals.losses * scale) for signals in ROUNDS]
    got = answer(case.with_losses(case.method, scale), scaled)
    assert_close(arrays(got), arrays(answer(case.method, ROUNDS)))


@every_method
@pytest.mark.parametrize("name", ["counts", "losses", "histograms", "head_gradients"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_signals_that_are_not_finite_are_refused_before_any_method_sees_them(
    case: Case, name: str, bad: float
) -> None:
    signals = site_signals(1)
    signals.check("site A")
    assert_valid(case.method.modulate(signals, {}), 3, 3)
    array = getattr(signals, name).copy()
    array.flat[3] = bad
    with pytest.raises(InconsistentUpdates, match=f"`{name}` of site A must be finite"):
        replace(signals, **{name: array}).check("site A")


@every_method
def test_modulate_is_pure(case: Case) -> None:
    memory = answer(case.method, ROUNDS[:2]).memory
    signals = ROUNDS[2]
    before = copy.deepcopy((signals, memory))
    first = case.method.modulate(signals, memory)
    snapshot = copy.deepcopy(arrays(first))
    again = case.method.modulate(signals, memory)
    for name, value in arrays(again).items():
        np.testing.assert_array_equal(value, snapshot[name])
        np.testing.assert_array_equal(value, arrays(first)[name])
    for name in ("counts", "losses", "histograms", "head_gradients"):
        np.testing.assert_array_equal(getattr(signals, name), getattr(before[0], name))
    assert memory.keys() == before[1].keys()
    for name, value in memory.items():
        np.testing.assert_array_equal(value, before[1][name])


@every_method
def test_memory_and_diagnostics_are_arrays_of_floats(case: Case) -> None:
    result = answer(case.method, ROUNDS)
    for value in (*result.memory.values(), *result.diagnostics.values()):
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float64


@every_method
def test_declarations_are_true(case: Case) -> None:
    result = answer(case.method, ROUNDS)
    assert result.coefficients.live == case.method.live
    without = [replace(signals, head_gradients=None) for signals in ROUNDS]
    same = arrays(answer(case.method, without)).keys() == arrays(result).keys()
    assert same == (not case.method.needs_head_gradients)
    if not case.method.modulates:
        neutral = Coefficients.neutral(3, 3, case.method.live)
        np.testing.assert_array_equal(result.coefficients.fused, neutral.fused)


@dataclass(frozen=True)
class Unheard(FedAvg):
    """A method that nobody wrote a case for."""


def test_every_method_has_a_case() -> None:
    assert cases_of(METHODS).keys() == METHODS.keys()


def test_a_method_without_a_case_is_noticed() -> None:
    with pytest.raises(LookupError, match="unheard"):
        cases_of({**METHODS, "unheard": Unheard})
    with pytest.raises(LookupError, match="mimo"):
        cases_of({name: method for name, method in METHODS.items() if name != "mimo"})
    with pytest.raises(LookupError, match="`fedavg` must hold Unheard"):
        cases_of({**METHODS, "fedavg": Unheard})
