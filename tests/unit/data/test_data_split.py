"""The split's properties for any records, fractions and seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfair.data import SiteRecords
from fedfair.data.split import Split, given_sides, hashed_split, split_sides, train_test_split
from fedfair.errors import DataError


def records_of(labels: list[int], sex: list[int], age: list[int]) -> SiteRecords:
    return SiteRecords(
        {"x": np.zeros((len(labels), 1), np.float32)},
        np.array(labels, np.int64),
        {"sex": np.array(sex, np.int64), "age": np.array(age, np.int64)},
    )


some_records = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=80
).map(lambda rows: records_of(*map(list, zip(*rows, strict=True))))
fractions = st.one_of(st.sampled_from([0.1, 0.2, 0.29, 0.3, 0.5, 0.7]), st.floats(0.001, 0.999))


@given(some_records, fractions, st.integers(0, 10))
def test_split_is_a_stratified_partition(records: SiteRecords, fraction: float, seed: int) -> None:
    train, test = train_test_split(records, fraction, seed, "A")
    assert train.dtype == test.dtype == np.int64
    assert sorted([*train, *test]) == list(range(len(records)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()
    assert len(test) == round(fraction * len(records))
    stratum = list(zip(records.labels, *records.attributes.values(), strict=True))
    in_test = Counter(stratum[i] for i in test)
    for cell, size in Counter(stratum).items():
        # Less than one record from the share: the floor or one more, and a whole share exactly.
        assert abs(in_test[cell] - fraction * size) < 1


@given(some_records, fractions, st.integers(0, 10))
def test_split_is_fixed_by_seed_and_site(records: SiteRecords, fraction: float, seed: int) -> None:
    first = train_test_split(records, fraction, seed, "A")
    np.random.seed(seed)  # noqa: NPY002  (the global state must not matter)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    second = train_test_split(records, fraction, seed, "A")
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_seed_and_site_change_the_split() -> None:
    records = records_of([0, 1] * 50, [0, 0, 1, 1] * 25, [0] * 100)
    tests = {tuple(train_test_split(records, 0.3, seed, site)[1]) for seed in (0, 1) for site in "AB"}
    assert len(tests) == 4


def test_remainders_go_to_strata_in_proportion() -> None:
    # Shares 0.3 and 0.9 of strata of 1 and 3 make one test record, in the first with chance 0.3 / 1.2.
    records = records_of([0, 1, 1, 1], [0] * 4, [0] * 4)
    first = sum(0 in train_test_split(records, 0.3, seed, "A")[1] for seed in range(400))
    assert first / 400 == pytest.approx(0.25, abs=0.11)  # 5 standard deviations of a share of 400


def test_every_record_can_be_drawn() -> None:
    records = records_of([0] * 10, [0] * 10, [0] * 10)
    drawn = Counter(int(i) for seed in range(200) for i in train_test_split(records, 0.3, seed, "A")[1])
    # Binomial(200, 0.3): mean 60, standard deviation 6.5; 5 of those either way.
    assert len(drawn) == 10
    assert all(28 < count < 92 for count in drawn.values())


def test_without_attributes_only_the_label_counts() -> None:
    records = SiteRecords({}, np.array([0] * 10 + [1] * 20, np.int64), {})
    _, test = train_test_split(records, 0.3, 0, "A")
    assert np.bincount(records.labels[test]).tolist() == [3, 6]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_1_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"`test_fraction` must be in \(0, 1\), got"):
        train_test_split(records_of([0, 1], [0, 0], [0, 0]), fraction, 0, "A")


def test_no_records_are_refused() -> None:
    with pytest.raises(DataError, match="`A` must have records to split"):
        train_test_split(records_of([], [], []), 0.3, 0, "A")


# --- validation records ----------------------------------------------------------------------------

splits = st.sampled_from([train_test_split, hashed_split])
shares = st.one_of(st.sampled_from([0.1, 0.2, 0.5]), st.floats(0.001, 0.999))


@given(splits, some_records, fractions, shares, st.integers(0, 10))
def test_every_record_is_on_one_side_and_the_test_side_is_as_without_validation(
    split: Split, records: SiteRecords, fraction: float, share: float, seed: int
) -> None:
    train, validation, test = split_sides(split, records, fraction, share, seed, "A")
    assert sorted([*train, *validation, *test]) == list(range(len(records)))
    assert train.dtype == validation.dtype == test.dtype == np.int64
    assert all((np.diff(side) > 0).all() for side in (train, validation, test))
    rest, own = split(records, fraction, seed, "A", "split")
    np.testing.assert_array_equal(test, own)
    without = split_sides(split, records, fraction, 0.0, seed, "A")
    np.testing.assert_array_equal(without.test, own)
    np.testing.assert_array_equal(without.train, rest)
    assert len(without.validation) == 0


@given(some_records, fractions, shares, st.integers(0, 10))
def test_validation_is_stratified_over_what_is_not_tested_on(
    records: SiteRecords, fraction: float, share: float, seed: int
) -> None:
    train, validation, _ = split_sides(train_test_split, records, fraction, share, seed, "A")
    assert len(validation) == round(share * (len(train) + len(validation)))
    stratum = list(zip(records.labels, *records.attributes.values(), strict=True))
    left = Counter(stratum[i] for i in [*train, *validation])
    chosen = Counter(stratum[i] for i in validation)
    for cell, size in left.items():
        assert abs(chosen[cell] - share * size) < 1


def different(n: int) -> SiteRecords:
    """Return records of which no two are equal, so that each has a hash of its own."""
    rng = np.random.default_rng(n)
    half = {"sex": np.arange(n) % 2, "age": np.arange(n) % 3}
    return SiteRecords({"x": rng.normal(size=(n, 2)).astype(np.float32)}, np.arange(n) % 2, half)


@given(st.integers(1, 60), st.integers(0, 59), fractions, shares, st.integers(0, 10))
def test_a_hashed_record_moves_no_other_to_another_side(
    n: int, left_out: int, fraction: float, share: float, seed: int
) -> None:
    records, gone = different(n), left_out % n
    before = split_sides(hashed_split, records, fraction, share, seed, "A")
    others = records.select(np.delete(np.arange(n), gone))
    after = split_sides(hashed_split, others, fraction, share, seed, "A")
    for side, fewer in zip(before, after, strict=True):
        assert [int(i) for i in side if i != gone] == [int(i) + (i >= gone) for i in fewer]


def test_hashed_validation_takes_its_share_whatever_was_tested_on() -> None:
    """The second hash is not the first: below one and above the other would leave no record at all."""
    train, validation, test = split_sides(hashed_split, different(4000), 0.5, 0.25, 0, "A")
    # Binomial: 5 standard deviations of 4000 at 0.5 (158), and of the 2000 left at 0.25 (97).
    assert len(test) == pytest.approx(2000, abs=158)
    assert len(validation) == pytest.approx(0.25 * (len(train) + len(validation)), abs=97)


def test_validation_is_another_draw_than_the_test_split() -> None:
    """With one generator for both, the records drawn of equal strata would stand at equal places."""
    records = records_of([0] * 40, [0] * 40, [0] * 40)
    _, validation, test = split_sides(train_test_split, records, 0.5, 0.5, 0, "A")
    rest = np.setdiff1d(np.arange(40), test)
    again = train_test_split(records.select(rest), 0.5, 0, "A")[1]
    assert set(validation) != set(rest[again])


@pytest.mark.parametrize("split", [train_test_split, hashed_split])
def test_a_site_whose_records_are_all_tested_on_has_none_to_choose_by(split: Split) -> None:
    records = next(
        one
        for one in (different(40).select(np.array([i])) for i in range(40))
        if len(split(one, 0.7, 0, "A", "split")[1]) == 1
    )
    train, validation, test = split_sides(split, records, 0.7, 0.5, 0, "A")
    assert (len(train), len(validation), len(test)) == (0, 0, 1)


def test_a_data_set_may_name_the_sides_itself() -> None:
    sides = np.array([2, 0, 1, 0, 2, 1], np.int8)
    records = SiteRecords({"m": np.ones((6, 1), np.float32)}, np.zeros(6, np.int64), {}, sides)
    train, validation, test = given_sides(records, "A", True)
    assert (train.tolist(), validation.tolist(), test.tolist()) == ([1, 3], [2, 5], [0, 4])
    assert given_sides(records, "A", False).validation.size == 0
    chosen = records.select(np.array([4, 1]))
    assert chosen.sides is not None
    assert chosen.sides.tolist() == [2, 0]
    with pytest.raises(DataError, match="site A must have validation records"):
        given_sides(records.select(np.array([0, 1])), "A", True)
    with pytest.raises(DataError, match="`data.split` must be stratified or hashed"):
        given_sides(SiteRecords(records.modalities, records.labels, {}), "A", False)
