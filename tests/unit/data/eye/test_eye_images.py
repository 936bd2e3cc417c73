"""Images: resizing against a loop over pixels, ranges, and which B-scans are taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.data.eye.images import oct_volume, resize, slo_image
from fedfair.errors import DataError


def along(values: list[float], size: int) -> list[float]:
    """Resize one line by walking over it: the mean of what is covered, or between the two nearest centres."""
    length = len(values)
    result = []
    for i in range(size):
        if length >= size:
            low, high = i * length / size, (i + 1) * length / size
            total = 0.0
            for j, value in enumerate(values):
                total += value * max(0.0, min(high, j + 1) - max(low, j))
            result.append(total / (high - low))
        else:
            place = min(max((i + 0.5) * length / size - 0.5, 0), length - 1)
            left = min(int(place), length - 1)
            right = min(left + 1, length - 1)
            result.append(values[left] + (place - left) * (values[right] - values[left]))
    return result


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_resize_is_the_loop(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    rows = [along(row, size) for row in image.astype(float).tolist()]
    columns = [along(list(column), size) for column in zip(*rows, strict=True)]
    expected = np.array(columns).T
    # float32 has 24 bits: sums of a few products of numbers to 255 differ by less than 255 * 1e-6.
    np.testing.assert_allclose(resize(image, size), expected, atol=3e-4)


def test_resize_of_a_stack_is_that_of_each() -> None:
    stack = np.random.default_rng(0).random((3, 5, 7))
    found = resize(stack, 4)
    assert found.shape == (3, 4, 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[1], resize(stack[1], 4))
    np.testing.assert_array_equal(resize(stack[:, :5, :5], 5), stack[:, :5, :5].astype(np.float32))


def test_slo_is_upright_and_at_its_own_size_as_it_is() -> None:
    raw = np.array([[0, 255], [51, 102]], np.uint8)
    assert slo_image(raw, 2, False).tolist() == [raw.tolist()]
    assert slo_image(raw, 2, True).tolist() == [raw.T.tolist()]
    assert slo_image(raw, 2, True).dtype == np.uint8
    np.testing.assert_array_equal(slo_image(raw.astype(float), 2, True), slo_image(raw, 2, True))


def test_codes_are_the_nearest() -> None:
    raw = np.random.default_rng(3).integers(0, 256, (9, 9)).astype(np.uint8)
    exact = resize(raw, 4)
    # Half a code, and the rounding of float32 at 255.
    np.testing.assert_allclose(slo_image(raw, 4, False)[0], exact, rtol=0, atol=0.5 + 3e-5)
    # Weights that sum to a little over 1 must not wrap 255 around to 0.
    assert (slo_image(np.full((7, 7), 255), 3, False) == 255).all()
    assert (oct_volume(np.full((1, 7, 7), 255), 1, 3) == 255).all()


@pytest.mark.parametrize("wrong", [-1.0, 255.5, np.nan, np.inf])
def test_values_out_of_range_are_refused(wrong: float) -> None:
    raw = np.zeros((3, 3, 3))
    raw[1, 1, 1] = wrong
    with pytest.raises(DataError, match="`slo_fundus` must hold values in 0 .. 255"):
        slo_image(raw[1], 2, False)
    with pytest.raises(DataError, match="`oct_bscans` must hold values in 0 .. 255"):
        oct_volume(raw, 3, 2)


def test_b_scans_are_the_middles_of_equal_stretches() -> None:
    raw = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert oct_volume(raw, 5, 1)[:, 0, 0].tolist() == [1, 3, 5, 7, 9]
    assert oct_volume(raw, 1, 1).item() == 5
    assert oct_volume(raw, 10, 1)[:, 0, 0].tolist() == list(range(10))


def test_slices_that_are_not_there_are_left_out() -> None:
    volume = oct_volume(np.ones((2, 3, 3), np.uint8), 4, 2)
    assert volume.tolist() == np.ones((2, 2, 2)).tolist()
