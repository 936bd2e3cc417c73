"""Images at 8 bits give what the float32 array of the same values gives, everywhere records are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedfair.data.checks import checked_raw
from fedfair.data.encode import observed_modalities, to_batch
from fedfair.data.partition import Partition, Partitioned, pooled
from fedfair.data.pixels import Pixels, concatenated, observed, without
from fedfair.data.schema import (
    ArrayModality,
    Column,
    Schema,
    SiteRecords,
    TableModality,
    TextModality,
    VolumeModality,
)
from fedfair.data.split import hashed_split, train_test_split
from fedfair.errors import DataError, ShapeError

N = 40
SCHEMA = Schema(
    {"slo": ArrayModality((3, 4, 5)), "oct": VolumeModality((2, 4, 4)), "lab": TableModality((Column("x"),))},
    ("no", "yes"),
    {"sex": ("f", "m")},
    ("a", "b"),
)


def twins(seed: int = 0) -> tuple[SiteRecords, SiteRecords]:
    """Return the same records with `Pixels` and, written out here, with float32."""
    rng = np.random.default_rng(seed)
    slo, volume = (rng.integers(0, 256, (N, *shape)).astype(np.uint8) for shape in ((3, 4, 5), (2, 4, 4)))
    has = rng.random(N) < 0.7
    slices = np.stack([rng.random(N) < 0.8, rng.random(N) < 0.5], axis=1)
    lab = rng.standard_normal((N, 1)).astype(np.float32)
    eight = {"slo": Pixels.of(slo, has), "oct": Pixels.of(volume, slices), "lab": lab}
    written: dict[str, Any] = {"lab": lab}
    for name, codes, there in (("slo", slo, has), ("oct", volume, slices)):
        written[name] = codes.astype(np.float32) / np.float32(255)
        written[name][~there] = np.nan
    labels, groups = rng.integers(2, size=(2, N))
    full = {name: written[name] for name in SCHEMA.modalities}
    return SiteRecords(eight, labels, {"sex": groups}), SiteRecords(full, labels, {"sex": groups})


def both(records: SiteRecords, name: str) -> NDArray[np.float32]:
    raw = records.modalities[name]
    return raw.values() if isinstance(raw, Pixels) else raw


def assert_same(eight: SiteRecords, written: SiteRecords) -> None:
    assert len(eight) == len(written)
    for name in SCHEMA.modalities:
        assert both(eight, name).dtype == np.float32
        assert eight.modalities[name].shape == written.modalities[name].shape
        np.testing.assert_array_equal(both(eight, name), written.modalities[name])


def test_values_and_selections() -> None:
    eight, written = twins()
    assert_same(eight, written)
    for index in ([5, 2, 2, 39, 0], [], [7]):
        order = np.array(index, np.int64)
        assert_same(eight.select(order), written.select(order))
        again = np.arange(len(order))[::-1].copy()
        assert_same(eight.select(order).select(again), written.select(order).select(again))


def test_what_is_missing() -> None:
    eight, written = twins()
    lost = np.arange(N) % 3 == 0
    for name in SCHEMA.modalities:
        np.testing.assert_array_equal(observed(eight.modalities[name]), observed(written.modalities[name]))
        fewer, expected = (without(r.modalities[name], lost) for r in (eight, written))
        np.testing.assert_array_equal(
            fewer.values() if isinstance(fewer, Pixels) else fewer,
            expected,
        )
    assert_same(*twins())  # nothing was changed in place
    twice = eight.modalities["slo"][np.array([1, 1])]
    assert isinstance(twice, Pixels)
    seen = twice.without(np.array([True, False])).seen[:, 0]
    assert seen.tolist() == [False, observed(twice)[1]]


def test_sites_in_a_row_stay_where_they_are() -> None:
    sites = [twins(seed) for seed in range(3)]
    order = np.random.default_rng(5).permutation(3 * N)[:50]
    eight = pooled([site[0].select(np.arange(N)[::2]) for site in sites])
    written = pooled([site[1].select(np.arange(N)[::2]) for site in sites])
    assert_same(eight, written)
    assert_same(eight.select(order % len(eight)), written.select(order % len(written)))
    joined = eight.modalities["slo"]
    assert isinstance(joined, Pixels)
    for part, (own, _) in zip(joined.parts, sites, strict=True):
        first = own.modalities["slo"]
        assert isinstance(first, Pixels)
        assert part is first.parts[0]
    again = concatenated([joined, joined])
    assert isinstance(again, Pixels)
    np.testing.assert_array_equal(again.values(), np.concatenate([joined.values()] * 2))
    with pytest.raises(ShapeError, match="must be float32 or Pixels at every site"):
        concatenated([joined, written.modalities["slo"]])


class Twin:
    """An adapter of two sites."""

    schema = SCHEMA

    def __init__(self, which: int) -> None:
        self.which = which

    def load(self, site: str) -> SiteRecords:
        return twins("ab".index(site))[self.which]


def test_partitions_are_the_same() -> None:
    options = Partition(sites=3, over=("label",), missing={"slo": 0.3, "oct": 0.5})
    eight, written = (Partitioned(Twin(which), options, 4) for which in (0, 1))
    for site in eight.schema.sites:
        assert_same(eight.load(site), written.load(site))


def test_splits_are_the_same() -> None:
    for seed in range(4):
        eight, written = twins(seed)
        for split in (hashed_split, train_test_split):
            for own, other in zip(split(eight, 0.4, seed, "a"), split(written, 0.4, seed, "a"), strict=True):
                np.testing.assert_array_equal(own, other)


def test_batches_are_the_same() -> None:
    eight, written = twins()
    moments = {"lab": np.array([[0.1], [2.0]])}
    own, other = (to_batch(of, SCHEMA, moments, of.attributes["sex"]) for of in (eight, written))
    read = own.select(torch.arange(len(eight)))
    for name in SCHEMA.modalities:
        assert read.modalities[name].numpy().tobytes() == other.modalities[name].numpy().tobytes()
    np.testing.assert_array_equal(own.present, observed_modalities(written, SCHEMA))


def test_a_table_or_text_is_refused() -> None:
    pixels = Pixels.of(np.zeros((N, 1), np.uint8))
    records = replace(twins()[0], modalities={"lab": pixels, "note": pixels})
    for name, modality in (("lab", TableModality((Column("x"),))), ("note", TextModality(1, 9))):
        with pytest.raises(DataError, match=f"`{name}` must be float32, got Pixels"):
            checked_raw(records, name, modality)
    with pytest.raises(ShapeError, match=r"`slo` must be \[40, 3, 4, 6\], got \[40, 3, 4, 5\]"):
        checked_raw(twins()[0], "slo", ArrayModality((3, 4, 6)))


@pytest.mark.parametrize(
    ("codes", "present", "message"),
    [
        (np.zeros((2, 3)), None, r"`codes` must be uint8 \[n, \*shape\], got float64 \[2, 3\]"),
        (np.zeros(2, np.uint8), None, r"`codes` must be uint8 \[n, \*shape\], got uint8 \[2\]"),
        (np.zeros((2, 3), np.uint8), np.ones(3, bool), r"`present` must be bool \[2\] or \[2, 3\]"),
        (np.zeros((2, 3), np.uint8), np.ones(2), r"`present` must be .* got float64 \[2\]"),
    ],
)
def test_what_is_no_image_is_refused(codes: Any, present: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Pixels.of(codes, present)


def test_an_image_of_which_a_channel_is_missing_is_refused_as_its_twin_is() -> None:
    codes, seen = np.ones((2, 3, 4, 5), np.uint8), np.array([[True, False, True], [True, True, True]])
    schema = Schema({"slo": ArrayModality((3, 4, 5))}, ("no", "yes"), {}, ("a",))
    for raw in (Pixels.of(codes, seen), Pixels.of(codes, seen).values()):
        records = SiteRecords({"slo": raw}, np.zeros(2, np.int64), {})
        with pytest.raises(DataError, match="`slo` must be NaN nowhere or everywhere in a record, got 1 in"):
            observed_modalities(records, schema)


def test_sites_that_say_what_is_missing_by_record_and_by_slice_go_together() -> None:
    codes = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    by_slice = Pixels.of(codes, np.array([[True, False, False], [True, True, True]]))
    joined = concatenated([Pixels.of(codes), by_slice])
    assert isinstance(joined, Pixels)
    wanted = np.concatenate([Pixels.of(codes).values(), by_slice.values()])
    np.testing.assert_array_equal(joined.values(), wanted)
    with pytest.raises(ShapeError, match="one shape at every site"):
        concatenated([Pixels.of(codes), Pixels.of(codes[:, :2])])
