"""Messages come out as they went in, and one that lacks an array is refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from fedfair.coefficients import Coefficients, LossTerms
from fedfair.errors import InconsistentUpdates
from fedfair.local import SiteUpdate
from fedfair.measure import measure
from fedfair.wire import (
    Download,
    Survey,
    from_bytes,
    pack_download,
    pack_signals,
    pack_survey,
    pack_update,
    to_bytes,
    unpack_download,
    unpack_signals,
    unpack_survey,
    unpack_update,
)
from tests.oracles.cohort import BINS, GROUPS, cohort, extra_terms, small_model


def download(terms: LossTerms | None = None) -> Download:
    rng = np.random.default_rng(0)
    return Download(
        {"fusion": rng.normal(size=5).astype(np.float32), "encoder/a": rng.normal(size=2).astype(np.float32)},
        {"a": rng.normal(size=(2, 3))},
        Coefficients(rng.uniform(1, 2, (2, 3)), rng.uniform(0, 1, (1, 3)), live=True),
        terms or LossTerms(),
    )


def update(head_gradients: bool = False) -> SiteUpdate:
    train = measure(small_model(), cohort(), GROUPS, BINS, 512, head_gradients)
    test = measure(small_model(), cohort(), GROUPS, BINS, 512)
    rows = {"fusion:fused": np.ones((3, 5), np.float32), "encoder/a:terms": np.zeros((1, 2), np.float32)}
    return SiteUpdate("north", rows, train, replace(test, losses=test.losses + 1))


SURVEY = Survey({"a": np.arange(6.0).reshape(3, 2)}, np.ones((2, 4, 2)), np.zeros((2, 4, 2)))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return every leaf of nested dataclasses and mappings by its path."""
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}").items()}
    return {name: value}


def assert_same(one: object, other: object) -> None:
    left, right = flat(one), flat(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(right[name], value, err_msg=name)
        assert getattr(value, "dtype", None) == getattr(right[name], "dtype", None), name


def over_the_wire(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays as a transport delivers them: in any order, from bytes, hence read-only."""
    return {
        name: from_bytes(to_bytes(arrays[name]), arrays[name].dtype.name, arrays[name].shape)
        for name in sorted(arrays, reverse=True)
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_bytes_are_numpy_s_own_file(shape: tuple[int, ...], dtype: type) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    file = io.BytesIO()
    np.save(file, array)
    assert to_bytes(array) == file.getvalue()
    np.testing.assert_array_equal(from_bytes(file.getvalue(), array.dtype.name, shape), array)


def test_bytes_of_a_view_are_those_of_its_copy() -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    assert to_bytes(array) == to_bytes(array.copy(order="C"))


@pytest.mark.parametrize(
    ("spoil", "dtype", "shape"),
    [
        (lambda b: b, "float32", (3,)),
        (lambda b: b, "float64", (4,)),
        (lambda b: b, "object", (3,)),
        (lambda b: b[:-1], "float64", (3,)),
        (lambda b: b + b"x", "float64", (3,)),
        (lambda b: b"x" + b[1:], "float64", (3,)),
        (lambda _: b"", "float64", (3,)),
    ],
    ids=["dtype", "shape", "no float", "shorter", "longer", "another header", "nothing"],
)
def test_other_bytes_are_refused(spoil: Callable[[bytes], bytes], dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InconsistentUpdates, match="file format"):
        from_bytes(spoil(to_bytes(np.arange(3.0))), dtype, shape)


@pytest.mark.parametrize("which", [None, "direction", "fairness", "both"])
def test_download_round_trip(which: str | None) -> None:
    sent = download(None if which is None else extra_terms(which=which))
    assert_same(sent, unpack_download(over_the_wire(pack_download(sent))))


def test_probes_stay_probes() -> None:
    sent = replace(download(), coefficients=Coefficients.neutral(1, 3, live=False))
    assert unpack_download(pack_download(sent)).coefficients.live is False


@pytest.mark.parametrize("head_gradients", [False, True])
def test_update_round_trip(head_gradients: bool) -> None:
    sent = update(head_gradients)
    assert_same(sent, unpack_update("north", over_the_wire(pack_update(sent))))


@pytest.mark.parametrize("head_gradients", [False, True])
def test_signals_round_trip(head_gradients: bool) -> None:
    sent = update(head_gradients).train
    assert_same(sent, unpack_signals("part", over_the_wire(pack_signals("part", sent))))


def test_survey_round_trip() -> None:
    assert_same(SURVEY, unpack_survey(over_the_wire(pack_survey(SURVEY))))


def test_training_and_test_signals_have_names_of_their_own() -> None:
    names = set(pack_update(update()))
    assert {"train/losses", "test/losses", "rows/fusion:fused"} <= names
    assert len(names) == 2 + 2 * 3


@pytest.mark.parametrize(
    ("pack", "unpack", "required"),
    [
        (
            lambda: pack_download(download(extra_terms())),
            unpack_download,
            [
                *("coefficients/fused", "coefficients/unimodal", "coefficients/live"),
                *("terms/histograms", "terms/temperature"),
            ],
        ),
        (
            lambda: pack_update(update()),
            lambda arrays: unpack_update("north", arrays),
            [f"{part}/{name}" for part in ("train", "test") for name in ("counts", "losses", "histograms")],
        ),
        (lambda: pack_survey(SURVEY), unpack_survey, ["train/counts", "test/counts"]),
    ],
    ids=["download", "update", "survey"],
)
def test_a_missing_array_is_refused_by_name(
    pack: Callable[[], dict[str, np.ndarray]], unpack: Callable[..., object], required: list[str]
) -> None:
    for name in required:
        arrays = pack()
        del arrays[name]
        with pytest.raises(InconsistentUpdates, match=f"must hold `{name}`"):
            unpack(arrays)
