"""Fixed point: the bound on its error, the range of its sums, and what a site refuses to send."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.errors import ConfigError, InconsistentUpdates, PrivacyError
from fedfair.secagg import Field, Layout


@given(
    bound=st.floats(1e-30, 1e30),
    sites=st.integers(2, 500),
    bits=st.sampled_from([32, 64]),
    data=st.data(),
)
def test_the_step_is_the_finest_whose_sums_fit(
    bound: float, sites: int, bits: int, data: st.DataObject
) -> None:
    if sites * bound >= 2.0 ** (bits - 2):  # even whole steps would be too many
        return
    layout = Layout([Field("x", (3,), bound)], sites, bits)
    f = layout.fraction_bits("x")

    def fits(fraction: int) -> bool:
        return sites * math.ceil(Fraction(bound) * Fraction(2) ** fraction) < 2 ** (bits - 1)

    assert fits(f)
    assert not fits(f + 1)
    x = np.array([bound, -bound, data.draw(st.floats(-bound, bound))])
    total = np.zeros(layout.words, layout.dtype)
    for _ in range(sites):
        total += layout.encode({"x": x})
    found = layout.decode(total, sites)["x"]
    exact = [float(sites * Fraction(v)) for v in x]
    assert (np.abs(found - exact) <= layout.error("x") + 2.0**-52 * np.abs(exact)).all()


def test_the_bound_on_the_error_is_reached_and_not_larger() -> None:
    layout = Layout([Field("x", (1,), 1.0)], 4, 32)
    half = math.ldexp(1, -layout.fraction_bits("x") - 1)
    # Halfway between two steps, rounded to the even one: each site errs by half a step, to one side.
    total = layout.encode({"x": np.array([3 * half])}) * np.uint32(4)
    assert abs(layout.decode(total, 4)["x"][0] - 12 * half) == layout.error("x") == 4 * half


def test_steps_of_a_unit_bound_are_far_below_float32() -> None:
    assert Layout([Field("x", (1,), 1.0)], 4, 64).fraction_bits("x") == 60
    assert Layout([Field("x", (1,), 1.0)], 4, 32).fraction_bits("x") == 28


def test_counts_are_exact_up_to_what_float64_holds() -> None:
    largest = 2**51
    layout = Layout([Field("n", (2,), largest, exact=True)], 4)
    total = layout.encode({"n": np.array([largest, largest - 1], np.int64)}) * np.uint64(4)
    assert layout.decode(total, 4)["n"].tolist() == [4 * largest, 4 * largest - 4]
    assert layout.error("n") == 0.0
    with pytest.raises(ConfigError, match="bound"):
        Layout([Field("n", (1,), largest + 1, exact=True)], 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0000001, -1.0000001])
def test_a_value_that_is_not_within_the_bound_is_refused(value: float) -> None:
    layout = Layout([Field("x", (3,), 1.0)], 2)
    with pytest.raises(PrivacyError, match="`x` must be finite and within 1") as refusal:
        layout.encode({"x": np.array([0.0, value, 0.5])})
    assert "1.0000" not in str(refusal.value)  # errors travel, values must not


def test_a_bound_is_compared_in_float64() -> None:
    layout = Layout([Field("x", (1,), 0.1)], 2)
    layout.encode({"x": np.array([0.1])})
    with pytest.raises(PrivacyError, match="within 0.1"):
        layout.encode({"x": np.array([0.1], np.float32)})  # 0.10000000149


def test_a_fraction_among_counts_is_refused() -> None:
    layout = Layout([Field("n", (2,), 9, exact=True)], 2)
    with pytest.raises(PrivacyError, match="integers"):
        layout.encode({"n": np.array([1.0, 2.5])})


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"x": np.zeros(2), "y": np.zeros(1)},
        {"x": np.zeros(3)},
        {"x": np.zeros((1, 2))},
        {"z": np.zeros(1)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(values: dict[str, np.ndarray]) -> None:
    layout = Layout([Field("x", (2,), 1.0), Field("z", (1,), 1.0, optional=True)], 2)
    with pytest.raises(InconsistentUpdates):
        layout.encode(values)


def test_a_block_that_a_site_does_not_have_is_zeros() -> None:
    layout = Layout([Field("a", (2,), 1.0, optional=True), Field("x", (2,), 1.0)], 2)
    x = np.array([0.25, -0.5])
    np.testing.assert_array_equal(
        layout.encode({"x": x}), layout.encode({"x": x, "a": np.zeros(2, np.float32)})
    )


@pytest.mark.parametrize(("word", "count"), [(-1, 3), (0, 2)])
def test_a_sum_that_cannot_be_is_refused(word: int, count: int) -> None:
    layout = Layout([Field("n", (2,), 5, exact=True)], 4)
    total = np.array([10, 3, count], np.uint64)
    assert layout.decode(np.array([10, 3, 2], np.uint64), 2)["n"].tolist() == [10, 3]
    total[0] += np.uint64(word == 0)
    with pytest.raises(InconsistentUpdates):
        layout.decode(total, 2)


def test_an_empty_array_passes() -> None:
    layout = Layout([Field("x", (0, 3), 1.0)], 2)
    assert layout.decode(layout.encode({"x": np.zeros((0, 3))}), 1)["x"].shape == (0, 3)


def test_the_digest_tells_layouts_apart() -> None:
    x = Field("x", (2,), 1.0)
    layouts = [
        Layout([x], 4),
        Layout([x], 5),
        Layout([x], 4, 32),
        Layout([Field("x", (2,), 1.5)], 4),
        Layout([Field("x", (1, 2), 1.0)], 4),
        Layout([Field("y", (2,), 1.0)], 4),
        Layout([Field("x", (2,), 1.0, exact=True)], 4),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    # Which arrays a site may leave out is not seen in the sum.
    assert Layout([Field("x", (2,), np.float64(1), optional=True)], 4).digest == layouts[0].digest


@pytest.mark.parametrize(
    ("fields", "sites", "bits"),
    [
        ([Field("x", (1,), 1.0)], 4, 16),
        ([Field("x", (1,), 1.0)], 1, 64),
        ([Field("x", (1,), 1.0), Field("x", (2,), 1.0)], 4, 64),
        ([Field("x", (1,), 0.0)], 4, 64),
        ([Field("x", (1,), math.nan)], 4, 64),
        ([Field("x", (1,), math.inf)], 4, 64),
        ([Field("x", (1,), 2.0**30)], 4, 32),
        ([Field("n", (1,), 2**30, exact=True)], 4, 32),
    ],
)
def test_a_layout_that_cannot_work_is_refused(fields: list[Field], sites: int, bits: int) -> None:
    with pytest.raises(ConfigError):
        Layout(fields, sites, bits)
