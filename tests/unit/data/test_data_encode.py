"""Encoding against a loop over cells, and federated moments against scikit-learn on pooled rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from fedfair.data.encode import cells, num_cells, to_batch
from fedfair.data.heart import heart
from fedfair.data.moments import add_feature_sums, feature_sums, moments
from fedfair.data.schema import (
    ArrayModality,
    Column,
    Modality,
    Schema,
    SiteRecords,
    TableModality,
    TextModality,
    VolumeModality,
)
from fedfair.errors import DataError, FedfairError, InconsistentUpdates, ShapeError

NAN = np.nan
TABLE = TableModality((Column("a"), Column("kind", ("x", "y", "z")), Column("b")))
SCHEMA = Schema(
    {"table": TABLE, "image": ArrayModality((2, 2)), "codes": TableModality((Column("only", ("u", "v")),))},
    ("no", "yes"),
    {"sex": ("F", "M"), "age": ("young", "middle", "old")},
    ("A",),
)


def site() -> SiteRecords:
    image = np.arange(16, dtype=np.float32).reshape(4, 2, 2)
    image[2] = NAN
    table = np.float32([[1, 0, 10], [3, NAN, NAN], [NAN, 2, 30], [NAN, NAN, NAN]])
    return SiteRecords(
        {"table": table, "image": image, "codes": np.float32([[1], [0], [NAN], [NAN]])},
        np.array([0, 1, 1, 0]),
        {"sex": np.array([0, 1, 1, 0]), "age": np.array([2, 0, 1, 2])},
    )


def encoded(
    records: SiteRecords, schema: Schema, means: Mapping[str, NDArray[np.float64]]
) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    batch = to_batch(records, schema, means, np.zeros(len(records), np.int64))
    return batch.modalities, batch.present


def one_column(values: NDArray[np.float32], names: int = 1) -> tuple[SiteRecords, Schema]:
    schema = Schema(
        {"t": TableModality(tuple(Column(f"c{j}") for j in range(names)))}, ("0", "1"), {}, ("A",)
    )
    return SiteRecords({"t": values}, np.zeros(len(values), np.int64), {}), schema


def brute_force(
    records: SiteRecords, name: str, modality: TableModality, moment: NDArray[np.float64]
) -> list[list[float]]:
    """Encode cell by cell."""
    result = []
    for row in records.modalities[name].tolist():
        numeric, out = 0, []
        for column, value in zip(modality.columns, row, strict=True):
            missing = math.isnan(value)
            if column.categories:
                out += [float(not missing and value == k) for k in range(len(column.categories))]
            else:
                mean, sd = moment[0][numeric], moment[1][numeric]
                out += [0.0 if missing else (value - mean) / sd, float(not missing)]
                numeric += 1
        result.append(out)
    return result


def test_a_hand_written_example() -> None:
    inputs, present = encoded(site(), SCHEMA, moments(feature_sums(site(), SCHEMA)))
    # a: mean 2, sd 1; b: mean 20, sd 10.
    expected = [
        [-1, 1, 1, 0, 0, -1, 1],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert inputs["table"].tolist() == expected
    assert inputs["codes"].tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]
    assert inputs["image"][1].tolist() == [[4, 5], [6, 7]]
    assert inputs["image"][2].tolist() == [[0, 0], [0, 0]]
    assert present.tolist() == [
        [True, True, True],
        [True, True, True],
        [True, False, False],
        [False, True, False],
    ]
    assert list(inputs) == list(SCHEMA.modalities)
    for name, modality in SCHEMA.modalities.items():
        assert inputs[name].dtype == torch.float32
        assert inputs[name].shape == (4, *modality.shape)


@pytest.mark.parametrize("name", heart().schema.sites)
def test_heart_equals_the_loop(name: str) -> None:
    adapter = heart()
    records = adapter.load(name)
    moment = moments(feature_sums(adapter.load("Cleveland"), adapter.schema))
    inputs, present = encoded(records, adapter.schema, moment)
    for m, (modality, kind) in enumerate(adapter.schema.modalities.items()):
        expected = torch.tensor(brute_force(records, modality, kind, moment[modality]), dtype=torch.float64)
        # Both round one float64 quotient to float32: relative 6e-8, values below 10.
        torch.testing.assert_close(inputs[modality].double(), expected, rtol=1e-6, atol=1e-6)
        assert present[:, m].tolist() == (~np.isnan(records.modalities[modality]).all(axis=1)).tolist()


def test_federated_moments_equal_pooled_ones() -> None:
    adapter = heart()
    sites = [adapter.load(name) for name in adapter.schema.sites]
    total = feature_sums(sites[0], adapter.schema)
    for records in sites[1:]:
        total = add_feature_sums(total, feature_sums(records, adapter.schema))
    federated = moments(total)
    for name, modality in adapter.schema.modalities.items():
        numeric = [j for j, column in enumerate(modality.columns) if not column.categories]
        pooled = np.concatenate([records.modalities[name][:, numeric] for records in sites]).astype(
            np.float64
        )
        scaler = StandardScaler().fit(pooled)  # it leaves NaN out, as we do
        # float64 sums of 918 values of one sign and size: a few ulps, lost digits in the variance below 1e3.
        np.testing.assert_allclose(federated[name][0], scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(federated[name][1], scaler.scale_, rtol=1e-11)
        assert total[name][0].tolist() == np.isfinite(pooled).sum(axis=0).tolist()


values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 12), st.just(2)),
    elements=st.one_of(st.just(NAN), st.integers(-1000, 1000).map(float)),
)


@given(values, values, values)
def test_sums_add_like_records(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]
) -> None:
    # Integers below 2**53 add exactly, so equality is exact and the order cannot matter.
    sums = [feature_sums(*one_column(part, 2)) for part in (a, b, c)]
    pooled = feature_sums(*one_column(np.concatenate([a, b, c]), 2))["t"]
    left = add_feature_sums(add_feature_sums(sums[0], sums[1]), sums[2])["t"]
    right = add_feature_sums(sums[2], add_feature_sums(sums[1], sums[0]))["t"]
    np.testing.assert_array_equal(left, pooled)
    np.testing.assert_array_equal(right, pooled)


@given(values)
def test_moments_equal_the_definition(raw: NDArray[np.float32]) -> None:
    result = moments(feature_sums(*one_column(raw, 2)))["t"]
    for j in range(2):
        seen = raw[~np.isnan(raw[:, j]), j].astype(np.float64)
        mean, sd = (seen.mean(), seen.std()) if len(seen) else (0.0, 1.0)
        # |values| <= 1000: rounding of the squares' mean is below 1e-9, its root below 1e-4 of sd >= 0.27.
        np.testing.assert_allclose(result[:, j], [mean, sd if sd > 0 else 1.0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constant", [0.1, -7.3e4, 1e30, 0.0])
def test_a_constant_column_is_centred_and_not_blown_up(constant: float) -> None:
    records, schema = one_column(np.full((1000, 1), constant, np.float32))
    result = moments(feature_sums(records, schema))
    assert result["t"][1].tolist() == [1.0]
    np.testing.assert_allclose(result["t"][0], np.float64(np.float32(constant)), rtol=1e-13)


def test_a_small_spread_on_a_large_mean_is_kept() -> None:
    # float32 near 1e5 has steps of 0.0078; a spread of 0.5 must not be taken for rounding.
    raw = (1e5 + 0.5 * np.array([-1.0, 1.0] * 500)).astype(np.float32)[:, None]
    # var = 0.25 out of squares of 1e10: 1e-16 * 1e10 / 0.25 = 4e-6 relative.
    assert moments(feature_sums(*one_column(raw)))["t"][1, 0] == pytest.approx(0.5, rel=1e-5)


def test_a_column_nobody_observed_stays_finite() -> None:
    records, schema = one_column(np.float32([[NAN, 1], [NAN, 2]]), 2)
    result = moments(feature_sums(records, schema))
    assert result["t"][:, 0].tolist() == [0.0, 1.0]
    inputs, _ = encoded(records, schema, result)
    assert inputs["t"][:, :2].tolist() == [[0, 0], [0, 0]]


def test_no_records_encode_to_empty_tensors() -> None:
    empty = site().select(np.zeros(0, np.int64))
    inputs, present = encoded(empty, SCHEMA, moments(feature_sums(site(), SCHEMA)))
    assert inputs["image"].shape == (0, 2, 2)
    assert inputs["table"].shape == (0, 7)
    assert present.shape == (0, 3)


def test_select_commutes_with_encoding() -> None:
    index = np.array([3, 1])
    moment = moments(feature_sums(site(), SCHEMA))
    groups = cells(site(), SCHEMA)
    whole = to_batch(site(), SCHEMA, moment, groups).select(torch.tensor(index))
    part = to_batch(site().select(index), SCHEMA, moment, groups[index])
    for name in SCHEMA.modalities:
        assert torch.equal(whole.modalities[name], part.modalities[name])
    assert torch.equal(whole.present, part.present)
    assert torch.equal(whole.labels, part.labels)
    assert torch.equal(whole.groups, part.groups)


def test_a_batch_does_not_share_memory_with_the_records() -> None:
    records = site()
    records.labels.setflags(write=False)
    batch = to_batch(records, SCHEMA, moments(feature_sums(records, SCHEMA)), records.attributes["sex"])
    batch.labels.zero_()
    for value in batch.modalities.values():
        value.zero_()
    assert records.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(records.modalities["image"], site().modalities["image"])
    assert batch.groups.tolist() == [0, 1, 1, 0]
    assert len(batch) == 4


def test_cells_are_in_c_order() -> None:
    records = site()
    shape = tuple(len(groups) for groups in SCHEMA.attributes.values())
    expected = np.ravel_multi_index((records.attributes["sex"], records.attributes["age"]), shape)
    np.testing.assert_array_equal(cells(records, SCHEMA), expected)
    assert num_cells(SCHEMA) == 6


def test_without_attributes_there_is_one_cell() -> None:
    records, schema = one_column(np.zeros((3, 1), np.float32))
    assert cells(records, schema).tolist() == [0, 0, 0]
    assert num_cells(schema) == 1


def changed(name: str, value: object, at: tuple[int, ...] | None) -> SiteRecords:
    """Return the example with one array replaced or one of its entries set."""
    records = site()
    arrays: dict[str, Any] = {**records.modalities, **records.attributes, "labels": records.labels}
    if at is None:
        arrays[name] = value
    else:
        arrays[name][at] = value
    modalities = {key: arrays[key] for key in SCHEMA.modalities if arrays[key] is not None}
    return SiteRecords(modalities, arrays["labels"], {key: arrays[key] for key in SCHEMA.attributes})


@pytest.mark.parametrize(
    ("name", "value", "at", "error", "message"),
    [
        ("table", np.zeros((4, 2), np.float32), None, ShapeError, r"`table` must be \[4, 3\], got \[4, 2\]"),
        ("table", np.zeros((3, 3), np.float32), None, ShapeError, r"`table` must be \[4, 3\], got \[3, 3\]"),
        ("image", None, None, ShapeError, r"`image` must be \[4, 2, 2\], got None"),
        ("table", np.inf, (0, 0), DataError, r"`table` must be finite or NaN, got 1 infinite"),
        ("table", 3, (0, 1), DataError, r"`kind` must be an index in 0 .. 2 or NaN, got 1 other value"),
        ("table", 0.5, (0, 1), DataError, r"`kind` must be an index in 0 .. 2 or NaN, got 1 other value"),
        ("image", NAN, (0, 1, 1), DataError, r"`image` must be NaN nowhere or everywhere in a record, got 1"),
        ("labels", 2, (0,), DataError, r"`labels` must be in 0 .. 1, got 1 other value"),
        ("sex", -1, (0,), DataError, r"`sex` must be in 0 .. 1, got 1 other value"),
        ("age", np.zeros(3, np.int64), None, ShapeError, r"`age` must be \[4\], got \[3\]"),
    ],
)
def test_records_that_do_not_fit_are_refused(
    name: str, value: object, at: tuple[int, ...] | None, error: type[FedfairError], message: str
) -> None:
    moment = moments(feature_sums(site(), SCHEMA))
    records = changed(name, value, at)
    with pytest.raises(error, match=message):
        to_batch(records, SCHEMA, moment, cells(records, SCHEMA))


def test_groups_and_moments_that_do_not_fit_are_refused() -> None:
    moment = moments(feature_sums(site(), SCHEMA))
    with pytest.raises(ShapeError, match=r"`groups` must be \[4\], got \[3\]"):
        to_batch(site(), SCHEMA, moment, np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match=r"`moments` of table must be \[2, 2\], got None"):
        encoded(site(), SCHEMA, {"codes": moment["codes"]})
    with pytest.raises(ShapeError, match=r"`moments` of table must be \[2, 2\], got \[2, 1\]"):
        encoded(site(), SCHEMA, {**moment, "table": moment["table"][:, :1]})


def test_sums_that_do_not_fit_are_refused() -> None:
    sums = feature_sums(site(), SCHEMA)
    with pytest.raises(InconsistentUpdates, match="one shape at every site"):
        add_feature_sums(sums, {"table": sums["table"]})
    with pytest.raises(InconsistentUpdates, match="one shape at every site"):
        add_feature_sums(sums, {**sums, "table": sums["table"][:, :1]})
    for bad in (NAN, np.inf, -1.0):
        broken = sums["table"].copy()
        broken[0, 0] = bad
        with pytest.raises(
            InconsistentUpdates, match="`feature_sums` of table must be finite with counts >= 0"
        ):
            moments({**sums, "table": broken})


def only(modality: Modality, raw: NDArray[np.float32]) -> tuple[SiteRecords, Schema]:
    schema = Schema({"m": modality}, ("0", "1"), {}, ("A",))
    return SiteRecords({"m": raw}, np.zeros(len(raw), np.int64), {}), schema


def test_words_become_whole_numbers_with_zeros_after_the_last() -> None:
    records, schema = only(TextModality(3, 10), np.float32([[9, 1, NAN], [NAN, NAN, NAN], [2, 2, 2]]))
    inputs, present = encoded(records, schema, {})
    assert inputs["m"].dtype == torch.int64
    assert inputs["m"].tolist() == [[9, 1, 0], [0, 0, 0], [2, 2, 2]]
    assert present[:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ([10, 1, NAN], "1 .. 9 or NaN, got 1 other"),
        ([0, 1, 1.5], "got 2 others"),
        ([1, NAN, 1], "gaps in 1 record"),
    ],
)
def test_what_is_no_text_is_refused(raw: list[float], why: str) -> None:
    records, schema = only(TextModality(3, 10), np.float32([raw, [1, NAN, NAN]]))
    with pytest.raises(DataError, match=why):
        encoded(records, schema, {})


def test_a_volume_has_as_many_slices_as_a_record_has() -> None:
    raw = np.ones((3, 4, 2, 2), np.float32)
    raw[1, 2:], raw[2] = NAN, NAN
    records, schema = only(VolumeModality((4, 2, 2)), raw)
    inputs, present = encoded(records, schema, {})
    assert inputs["m"].sum((2, 3)).tolist() == [[4, 4, 4, 4], [4, 4, 0, 0], [0, 0, 0, 0]]
    assert present[:, 0].tolist() == [True, True, False]
    raw[0, 3, 1, 1] = NAN
    with pytest.raises(DataError, match="`slices of m` must be NaN nowhere or everywhere"):
        encoded(records, schema, {})
