"""Aggregation: sums over sites, coefficients, one division; order never matters and poison never enters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfair.aggregation import check_update, combine, pool
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.errors import InconsistentUpdates
from fedfair.local import SiteUpdate
from fedfair.measure import measure
from fedfair.paths import RowPlan
from tests.oracles.cohort import BINS, GROUPS, WIDTHS, cohort, partition, small_model

MODALITIES = tuple(WIDTHS)
LENGTHS = {name: len(value) for name, value in ParameterBlocks(small_model()).vectors.items()}
PLAN = RowPlan(frozenset(LENGTHS), split=True)
PATHS = PLAN.paths(MODALITIES, live=True, terms=True)
K = Coefficients(
    np.random.default_rng(0).uniform(0.5, 2, (4, GROUPS)),
    np.random.default_rng(1).uniform(0, 2, (3, GROUPS)),
    live=True,
)


@cache
def updates(sites: int = 5) -> tuple[SiteUpdate, ...]:
    """Return updates with the signals of real sites and rows drawn at random."""
    result = []
    for number, site in enumerate(partition(cohort(), sites)):
        rng = np.random.default_rng(number)
        signals = measure(small_model(), site, GROUPS, BINS, 512)
        rows = {
            p.key: rng.normal(size=(GROUPS if p.grouped else 1, LENGTHS[p.block]))
            for p in PATHS
            if "/notes" not in p.block or site.present[:, 2].any()
        }
        result.append(SiteUpdate(f"site {number}", rows, signals, signals))
    return tuple(result)


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros(length) for name, length in LENGTHS.items()}


def combined(
    sites: tuple[SiteUpdate, ...] | list[SiteUpdate], coefficients: Coefficients = K
) -> dict[str, np.ndarray]:
    model = zeros()
    combine(model, sites, coefficients, PATHS, MODALITIES)
    return model


def by_hand(sites: tuple[SiteUpdate, ...]) -> dict[str, np.ndarray]:
    """Return sum over paths, groups and sites of K U / N_b, one number at a time."""
    model = zeros()
    for path in PATHS:
        kind, _, name = path.block.partition("/")
        m = MODALITIES.index(name) if name else -1
        records = sum(float(u.train.counts[m + 1].sum()) for u in sites)
        for update in sites:
            for g, row in enumerate(update.rows.get(path.key, ())):
                factor = K.unimodal[m, g] if path.source == "unimodal" else K.fused[m + 1, g]
                model[path.block] += (1.0 if path.source == "terms" else factor) * row / records
    return model


def test_combine_equals_the_formula() -> None:
    got, expected = combined(updates()), by_hand(updates())
    for block, value in got.items():
        # A sum of at most 45 numbers of order 0.1 in another order.
        np.testing.assert_allclose(value, expected[block], rtol=0, atol=1e-12)


@given(st.permutations(range(5)))
@settings(max_examples=30)
def test_combine_does_not_depend_on_the_order_of_sites(order: list[int]) -> None:
    got = combined([updates()[i] for i in order])
    for block, value in combined(updates()).items():
        # Rounding of at most 45 summands of order 0.1.
        np.testing.assert_allclose(got[block], value, rtol=0, atol=1e-12)


@given(st.permutations(range(5)))
@settings(max_examples=30)
def test_pooled_signals_do_not_depend_on_the_order_of_sites(order: list[int]) -> None:
    one, other = pool([updates()[i] for i in order])[0], pool(updates())[0]
    np.testing.assert_array_equal(one.histograms, other.histograms)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-12)


def test_pool_keeps_training_and_test_records_apart() -> None:
    test = measure(small_model(), cohort().select(torch.arange(9)), GROUPS, BINS, 512)
    train, pooled = pool([replace(update, test=test) for update in updates()])
    assert train.counts[0].sum() == len(cohort())
    assert pooled.counts[0].sum() == 9 * len(updates())


def test_a_site_without_the_modality_changes_neither_numerator_nor_denominator() -> None:
    having = tuple(u for u in updates() if "head/notes:unimodal" in u.rows)
    assert 0 < len(having) < len(updates())
    with_it, without = combined(updates()), combined(having)
    for block in ("encoder/notes", "head/notes"):
        np.testing.assert_allclose(with_it[block], without[block], rtol=0, atol=1e-12)
    assert np.abs(with_it["fusion"] - without["fusion"]).max() > 1e-3


def test_a_block_that_no_site_sends_stays() -> None:
    absent = tuple(u for u in updates() if "head/notes:unimodal" not in u.rows)
    model = {name: np.ones(length) for name, length in LENGTHS.items()}
    combine(model, absent, K, PATHS, MODALITIES)
    assert (model["encoder/notes"] == 1).all()
    assert (model["head/notes"] == 1).all()
    assert (model["fusion"] != 1).any()


def test_rows_that_were_weighted_at_the_site_get_no_coefficient() -> None:
    plan = RowPlan()
    sites = [
        replace(u, rows={p.key: np.ones((1, LENGTHS[p.block])) for p in plan.paths(MODALITIES, True, True)})
        for u in updates(2)
    ]
    results = []
    for coefficients in (K, Coefficients.neutral(3, GROUPS, live=True)):
        model = zeros()
        combine(model, sites, coefficients, plan.paths(MODALITIES, live=True, terms=True), MODALITIES)
        results.append(model)
    assert all(np.array_equal(results[0][b], results[1][b]) for b in LENGTHS)
    np.testing.assert_allclose(results[0]["fusion"], 2 / len(cohort()), rtol=1e-12)


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.0), (1.0, 0.9), (0.3, 0.5)])
def test_server_momentum_is_that_of_sgd_on_the_negative_mean_update(rate: float, momentum: float) -> None:
    model, velocity = zeros(), {} if momentum else None
    parameters = {b: torch.nn.Parameter(torch.zeros(n).double()) for b, n in LENGTHS.items()}
    optimiser = torch.optim.SGD(parameters.values(), rate, momentum)
    for sites in (updates(2), updates(5), updates(2)):
        combine(model, sites, K, PATHS, MODALITIES, rate, velocity, momentum)
        for block, mean in combined(sites).items():
            parameters[block].grad = torch.as_tensor(-mean)
        optimiser.step()
    for block, value in model.items():
        # Three steps, the same numbers in another order.
        np.testing.assert_allclose(value, parameters[block].detach().numpy(), rtol=0, atol=1e-12)


def test_pieces_and_read_only_rows_give_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = combined(updates())
    for update in updates():
        for rows in update.rows.values():
            rows.flags.writeable = False
    monkeypatch.setattr("fedfair.aggregation.PIECE", 7)
    assert min(LENGTHS.values()) > 7
    assert all(np.array_equal(value, expected[block]) for block, value in combined(updates()).items())


def test_float32_models_take_float32_rows() -> None:
    model = {name: value.astype(np.float32) for name, value in zeros().items()}
    sites = [replace(u, rows={k: v.astype(np.float32) for k, v in u.rows.items()}) for u in updates()]
    combine(model, sites, K, PATHS, MODALITIES)
    for block, value in combined(updates()).items():
        assert model[block].dtype == np.float32
        # 45 float32 summands of order 0.1: 45 * 0.1 * 6e-8.
        np.testing.assert_allclose(model[block], value, rtol=0, atol=3e-7)


def test_checked_updates_pass() -> None:
    for update in updates():
        check_update(update, PATHS, MODALITIES, LENGTHS, GROUPS)


def rows_with(key: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[SiteUpdate], SiteUpdate]:
    return lambda u: replace(u, rows={**u.rows, key: value(u.rows[key])})


def poisoned(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[-1, 0] = number
        return rows

    return change


def without(key: str) -> Callable[[SiteUpdate], SiteUpdate]:
    return lambda u: replace(u, rows={k: v for k, v in u.rows.items() if k != key})


def with_nan_losses(part: str) -> Callable[[SiteUpdate], SiteUpdate]:
    return lambda u: replace(u, **{part: replace(u.train, losses=u.train.losses * np.nan)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (rows_with("fusion:fused", poisoned(np.nan)), "`fusion:fused` of site site 4 must be finite"),
        (rows_with("encoder/lab:terms", poisoned(np.inf)), "`encoder/lab:terms` of site site 4"),
        (rows_with("head/ecg:unimodal", lambda r: r[:1]), "`head/ecg:unimodal` of site site 4 must be"),
        (rows_with("encoder/lab:fused", lambda r: r[:, 1:]), "`encoder/lab:fused` of site site 4 must be"),
        (without("fusion:fused"), "fusion:fused"),
        (lambda u: replace(u, rows={**u.rows, "encoder/xray:fused": np.zeros((3, 1))}), "encoder/xray:fused"),
        (with_nan_losses("train"), "training records"),
        (with_nan_losses("test"), "test records"),
    ],
)
def test_check_update_refuses_poison_by_name(spoil: Callable[[SiteUpdate], SiteUpdate], message: str) -> None:
    with pytest.raises(InconsistentUpdates, match=message):
        check_update(spoil(updates()[4]), PATHS, MODALITIES, LENGTHS, GROUPS)


def test_rows_of_a_modality_that_no_record_has_are_refused() -> None:
    first = updates()[0]
    assert "head/notes:unimodal" not in first.rows
    rows = {**first.rows, "head/notes:unimodal": np.zeros((GROUPS, LENGTHS["head/notes"]))}
    with pytest.raises(InconsistentUpdates, match="head/notes:unimodal"):
        check_update(replace(first, rows=rows), PATHS, MODALITIES, LENGTHS, GROUPS)


def test_pool_refuses_no_update() -> None:
    with pytest.raises(InconsistentUpdates, match="at least one"):
        pool([])
