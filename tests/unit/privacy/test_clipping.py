"""Clipping: what one record can change, on neighbouring batches; the noise units; poisoned records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.errors import ConfigError
from fedfair.paths import Scales
from fedfair.privacy.clipping import NOISE_UNITS, clip_blocks, clip_flat, noise_units, norm_bounds
from fedfair.privacy.per_record import record_gradients
from tests.oracles.cohort import GROUPS, WIDTHS, cohort, extra_terms, prepared, small_model

Gradients = dict[str, Tensor]

every_rule = pytest.mark.parametrize("rule", NOISE_UNITS)
bound = st.floats(1e-3, 1e3)
sized_bounds = st.lists(st.tuples(bound, st.integers(1, 10**6)), min_size=1, max_size=7)


def clippers(bounds: Mapping[str, float]) -> dict[str, Callable[[Gradients], Gradients]]:
    whole = math.hypot(*bounds.values())
    return {"block": lambda g: clip_blocks(g, bounds), "flat": lambda g: clip_flat(g, whole)}


def norms(gradients: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return each record's norm by block, with NumPy in float64."""
    return {b: np.linalg.norm(g.numpy().astype(np.float64), axis=1) for b, g in gradients.items()}


def scaled(batch: MultimodalBatch, factor: float) -> MultimodalBatch:
    values = {name: value * factor for name, value in batch.modalities.items()}
    return MultimodalBatch(values, batch.present, batch.labels, batch.groups)


class Release:
    """The clipped sum of a small model's gradients, in one row or one per group."""

    def __init__(self, clipping: str) -> None:
        self.model = small_model()
        self.blocks = ParameterBlocks(self.model)
        self.sizes = {name: len(vector) for name, vector in self.blocks.vectors.items()}
        self.bounds = norm_bounds(1.5, list(self.sizes))
        self.clip = clippers(self.bounds)[clipping]
        rng = np.random.default_rng(3)
        coefficients = Coefficients(rng.uniform(0.5, 2, (4, GROUPS)), rng.uniform(0, 2, (3, GROUPS)), True)
        self.scales = Scales.build(coefficients, torch.zeros((), dtype=torch.float64))
        self.terms = prepared(extra_terms())

    def rows(self, batch: MultimodalBatch, grouped: bool) -> Gradients:
        """Return [rows, P_b] by block."""
        gradients = record_gradients(self.model, self.blocks, batch, self.scales, self.terms)
        rows = {name: torch.zeros(GROUPS, size, dtype=torch.float64) for name, size in self.sizes.items()}
        row = batch.groups if grouped else torch.zeros_like(batch.groups)
        return {b: rows[b].index_add(0, row, g) for b, g in self.clip(gradients).items()}

    def distance(self, batch: MultimodalBatch, left_out: int, grouped: bool) -> dict[str, float]:
        """Return the distance by block between a batch's rows and those without one of its records."""
        others = batch.select(torch.arange(len(batch)) != left_out)
        with_it, without = self.rows(batch, grouped), self.rows(others, grouped)
        return {b: float((with_it[b] - without[b]).norm()) for b in with_it}


@pytest.mark.parametrize("grouped", [False, True])
@every_rule
def test_one_record_moves_blocks_in_noise_units_by_at_most_one(rule: str, grouped: bool) -> None:
    release, batch, reached = Release("block"), cohort(records=24), []
    units = noise_units(release.bounds, release.sizes, rule)
    for factor in (1e-2, 1e-1, 1.0, 10.0, 1e3):
        for left_out in range(0, 24, 3):
            moved = release.distance(scaled(batch, factor), left_out, grouped)
            for block, distance in moved.items():
                # 1e-6: the differences of sums of two dozen float64 vectors are far below it.
                assert distance <= release.bounds[block] * (1 + 1e-6)
            reached.append(math.hypot(*(distance / units[b] for b, distance in moved.items())))
    assert 0.9 < max(reached) <= 1 + 1e-6


@pytest.mark.parametrize("grouped", [False, True])
def test_one_record_moves_a_flat_clipped_sum_by_at_most_the_bound(grouped: bool) -> None:
    release, batch, reached = Release("flat"), cohort(records=24), []
    whole = math.hypot(*release.bounds.values())
    for factor in (1e-2, 1e-1, 1.0, 10.0, 1e3):
        for left_out in range(0, 24, 3):
            moved = release.distance(scaled(batch, factor), left_out, grouped)
            reached.append(math.hypot(*moved.values()) / whole)
    assert 0.9 < max(reached) <= 1 + 1e-6


@given(st.integers(0, 2**31), st.floats(-12, 12), st.sampled_from(["block", "flat"]), st.booleans())
def test_rows_are_shortened_to_the_bound_and_never_beyond(
    seed: int, decade: float, clipping: str, single: bool
) -> None:
    rng = np.random.default_rng(seed)
    dtype = torch.float32 if single else torch.float64
    gradients = {
        name: torch.as_tensor(rng.standard_normal((6, size)) * 10**decade).to(dtype)
        for name, size in {"fusion": 300, "encoder/a": 1, "encoder/raw": 0, "head/a": 257}.items()
    }
    bounds = {"fusion": 2.0, "encoder/a": 0.1, "head/a": 1.0}
    before = {name: g.clone() for name, g in gradients.items()}
    after = clippers(bounds)[clipping](gradients)
    own, limit = norms(before), dict(bounds)
    if clipping == "flat":
        own = dict.fromkeys(own, np.sqrt(sum(norm**2 for norm in own.values())))
        limit = dict.fromkeys(own, math.hypot(*bounds.values()))
    for name in bounds:
        factor = np.minimum(1, limit[name] / own[name])
        # 1e-5: in float32 the target is eight millionths short of the bound.
        np.testing.assert_allclose(after[name], before[name].numpy() * factor[:, None], rtol=1e-5, atol=0)
    clipped = norms(after)
    if clipping == "flat":
        assert np.sqrt(sum(norm**2 for norm in clipped.values())).max() <= limit["fusion"]
    assert all(clipped[name].max() <= limit[name] for name in bounds)


@pytest.mark.parametrize("size", [255, 256, 4097, 200_000])
def test_long_rows_of_equal_values_keep_the_bound_in_single_precision(size: int) -> None:
    # A plain float32 sum of so many equal squares is off by more than 1e-5, always to the same side.
    clipped = clip_blocks({"fusion": torch.full((2, size), 0.1234567)}, {"fusion": 1.0})
    assert (norms(clipped)["fusion"] > 1 - 1e-5).all()
    assert (norms(clipped)["fusion"] <= 1).all()


def test_what_is_within_the_bound_is_left_exactly_as_it_is() -> None:
    gradients = {"fusion": torch.tensor([[0.3, 0.4], [0.0, 0.0]]), "head/a": torch.tensor([[0.5], [1e-30]])}
    before = {name: g.clone() for name, g in gradients.items()}
    for clip in clippers({"fusion": 1.0, "head/a": 1.0}).values():
        assert all(torch.equal(g, before[name]) for name, g in clip(gradients).items())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", ["block", "flat"])
def test_a_record_that_is_not_finite_contributes_nothing_anywhere(clipping: str, poison: float) -> None:
    clip = clippers({"fusion": 1.0, "head/a": 1.0})[clipping]
    values = {"fusion": torch.randn(4, 300), "head/a": torch.randn(4, 2)}
    clean = clip({name: value.clone() for name, value in values.items()})
    values["head/a"][2, 1] = poison
    got = clip(values)
    others = torch.tensor([0, 1, 3])
    for name in got:
        assert not got[name][2].any()
        assert clean[name][2].any()
        assert torch.equal(got[name][others], clean[name][others])


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("clipping", ["block", "flat"])
def test_a_record_with_poisoned_inputs_leaves_the_others_rows(clipping: str, poison: float) -> None:
    release, batch = Release(clipping), cohort(records=24)
    poisoned = int(batch.present.all(1).nonzero()[0])
    lab = batch.modalities["lab"].clone()
    lab[poisoned, 0] = poison
    values = {**batch.modalities, "lab": lab}
    rows = release.rows(MultimodalBatch(values, batch.present, batch.labels, batch.groups), False)
    without = release.rows(batch.select(torch.arange(24) != poisoned), False)
    for block, row in rows.items():
        if math.isfinite(poison):  # a gradient too large to square may still be finite and clipped
            assert float((row - without[block]).norm()) <= release.bounds[block] * (1 + 1e-6)
        else:
            torch.testing.assert_close(row, without[block], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clipping", ["block", "flat"])
def test_no_records_give_rows_of_zeros(clipping: str) -> None:
    release = Release(clipping)
    none = cohort().select(torch.zeros(0, dtype=torch.int64))
    rows = release.rows(none, grouped=True)
    assert {b: tuple(row.shape) for b, row in rows.items()} == {
        b: (GROUPS, size) for b, size in release.sizes.items()
    }
    assert not any(row.any() for row in rows.values())


def named(pairs: list[tuple[float, int]]) -> tuple[dict[str, float], dict[str, int]]:
    return {str(i): c for i, (c, _) in enumerate(pairs)}, {str(i): p for i, (_, p) in enumerate(pairs)}


def energy(units: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    return sum(sizes[block] * unit**2 for block, unit in units.items())


@every_rule
@given(sized_bounds)
def test_noise_units_make_the_sensitivity_one(rule: str, pairs: list[tuple[float, int]]) -> None:
    bounds, sizes = named(pairs)
    units = noise_units(bounds, sizes, rule)
    assert list(units) == list(bounds)
    # Seven quotients of float64.
    assert sum((bounds[b] / units[b]) ** 2 for b in bounds) == pytest.approx(1, rel=1e-12)


@given(sized_bounds, st.integers(0, 2**31))
def test_optimal_units_have_the_least_noise_energy(pairs: list[tuple[float, int]], seed: int) -> None:
    bounds, sizes = named(pairs)
    least = energy(noise_units(bounds, sizes, "optimal"), sizes)
    for rule in NOISE_UNITS:
        assert least <= energy(noise_units(bounds, sizes, rule), sizes) * (1 + 1e-12)
    optimal, rng = noise_units(bounds, sizes, "optimal"), np.random.default_rng(seed)
    for spread in (1e-3, 1e-1, 1.0):
        moved = {block: unit * math.exp(spread * rng.normal()) for block, unit in optimal.items()}
        total = math.hypot(*(bounds[b] / unit for b, unit in moved.items()))
        moved = {block: unit * total for block, unit in moved.items()}  # the sensitivity is one again
        assert least <= energy(moved, sizes) * (1 + 1e-12)


def test_noise_units_by_hand() -> None:
    bounds, sizes = {"a": 3.0, "b": 4.0, "raw": 7.0}, {"a": 4, "b": 16, "raw": 0, "other": 5}
    assert noise_units(bounds, sizes, "isotropic") == {"a": 5.0, "b": 5.0}
    assert noise_units(bounds, sizes, "proportional") == pytest.approx(
        {"a": 3 * math.sqrt(2), "b": 4 * math.sqrt(2)}
    )
    # sum C sqrt(P) = 3 * 2 + 4 * 4 = 22: s^2 = 3 * 22 / 2 and 4 * 22 / 4.
    assert noise_units(bounds, sizes, "optimal") == pytest.approx({"a": math.sqrt(33), "b": math.sqrt(22)})


@given(st.floats(1e-6, 1e6), st.integers(1, 9))
def test_one_bound_is_shared_equally_by_the_blocks(whole: float, blocks: int) -> None:
    bounds = norm_bounds(whole, [str(i) for i in range(blocks)])
    assert len(set(bounds.values())) == 1
    assert math.hypot(*bounds.values()) == pytest.approx(whole, rel=1e-12)


def test_bounds_by_block_are_taken_as_they_are() -> None:
    blocks = ["fusion", *(f"encoder/{name}" for name in WIDTHS)]
    given = {block: 0.5 + i for i, block in enumerate(reversed(blocks))}
    assert list(norm_bounds(given, blocks).items()) == [(block, given[block]) for block in blocks]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bounds_must_be_positive_and_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="`max_grad_norm` must be positive"):
        norm_bounds(value, ["fusion"])
    with pytest.raises(ConfigError, match=r"`max_grad_norm\.fusion` must be positive"):
        norm_bounds({"fusion": value}, ["fusion"])


def test_bounds_must_name_exactly_the_blocks() -> None:
    with pytest.raises(ConfigError, match=r"`max_grad_norm\.head/a` must be given"):
        norm_bounds({"fusion": 1.0}, ["fusion", "head/a"])
    with pytest.raises(ConfigError, match="did you mean `fusion`"):
        norm_bounds({"fusoin": 1.0, "fusion": 1.0}, ["fusion"])
    with pytest.raises(ConfigError, match="block `head/a` must have a clipping bound"):
        clip_blocks({"fusion": torch.ones(2, 2), "head/a": torch.ones(2, 2)}, {"fusion": 1.0})


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean `optimal`"):
        noise_units({"fusion": 1.0}, {"fusion": 3}, "optimum")
