"""The sum is exact whoever drops out at whichever step, or there is none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfair.secagg import CannotUnmask, Layout, Rule
from tests.unit.secagg.federation import STEPS, Federation, Round, Values, names, small_layout, small_values


def expected_survivors(gone: Mapping[str, str], count: int, rule: Rule) -> list[str] | None:
    """Return whose inputs are in the sum of a complete graph, or None where there must be no sum."""

    def left(step: str) -> list[str]:
        return [s for s in names(count) if STEPS.index(gone.get(s, "never")) > STEPS.index(step)]

    announced = len(left("advertise"))
    if announced < rule.fewest:
        return None
    corrupt = math.floor(rule.collusion * announced)
    threshold = next(t for t in range(1, announced + 2) if 2 * t > announced + corrupt)
    enough = max(threshold, rule.fewest)
    if len(left("mask")) < enough or len(left("reveal")) < threshold:
        return None
    return left("mask")


def exact_sums(layout: Layout, inputs: list[Values]) -> dict[str, list[int]]:
    """Return the sums of the quantised values, in Python's integers."""
    sums = {}
    for field in layout.fields:
        arrays = [v.get(field.name, np.zeros(field.shape)).ravel() for v in inputs]
        scale = Fraction(2) ** layout.fraction_bits(field.name)
        sums[field.name] = [
            sum(round(Fraction(float(x)) * scale) for x in column) for column in zip(*arrays, strict=True)
        ]
    return sums


def check_sum(layout: Layout, found: dict[str, np.ndarray], inputs: list[Values]) -> None:
    exact = exact_sums(layout, inputs)
    for field in layout.fields:
        scale = layout.fraction_bits(field.name)
        integers = np.array([float(i) for i in exact[field.name]])
        np.testing.assert_array_equal(found[field.name].ravel(), np.ldexp(integers, -scale))
        plain = [
            math.fsum(float(v[field.name].ravel()[i]) for v in inputs if field.name in v)
            for i in range(field.size)
        ]
        # K half steps of quantisation, and one rounding each of the integer and of the plain sum to float64.
        allowed = layout.error(field.name) + 2.0**-52 * np.abs(plain)
        assert (np.abs(found[field.name].ravel() - plain) <= allowed).all()


def check_round(count: int, bits: int, rule: Rule, gone: Mapping[str, str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {site: small_values(rng) for site in names(count)}
    layout = small_layout(count, bits)
    round_ = Round(Federation(names(count), rule), 1, layout)
    survivors = expected_survivors(gone, count, rule)
    if survivors is None:
        with pytest.raises(CannotUnmask):
            round_.run(values, gone)
        return
    found = round_.run(values, gone)
    assert round_.server.survivors == tuple(survivors)
    check_sum(layout, found, [values[site] for site in survivors])


@pytest.mark.parametrize(("count", "bits"), [(2, 32), (2, 64), (3, 32)])
def test_every_dropout_pattern_of_few_sites(count: int, bits: int) -> None:
    for pattern in itertools.product(STEPS, repeat=count):
        check_round(count, bits, Rule(), dict(zip(names(count), pattern, strict=True)), seed=0)


def test_every_dropout_pattern_of_four_sites_up_to_order() -> None:
    # Which site is silent when matters less than how many; the first site's place in the order is kept.
    patterns = [
        (first, *rest) for first in STEPS for rest in itertools.combinations_with_replacement(STEPS, 3)
    ]
    for pattern in patterns:
        check_round(4, 64, Rule(), dict(zip(names(4), pattern, strict=True)), seed=1)


@settings(max_examples=40)
@given(
    count=st.integers(2, 12),
    bits=st.sampled_from([32, 64]),
    rule=st.sampled_from(
        [Rule(), Rule(collusion=0, dropout=0.4), Rule(fewest=3), Rule(collusion=0.5, dropout=0.2)]
    ),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_number_of_sites_and_any_dropouts(
    count: int, bits: int, rule: Rule, data: st.DataObject, seed: int
) -> None:
    silent = data.draw(st.integers(0, count // 2))
    gone = {site: data.draw(st.sampled_from(STEPS)) for site in names(count)[:silent]}
    shuffled = np.random.default_rng(seed).permutation(count)
    check_round(count, bits, rule, {names(count)[shuffled[i]]: s for i, s in enumerate(gone.values())}, seed)


SPARSE = Rule(collusion=0.1, dropout=0.1, sparse_above=16)


@pytest.mark.parametrize(
    ("bits", "steps"),
    [
        (64, ("share", "mask", "mask", "reveal")),
        (32, ("mask", "mask", "mask", "mask")),
        (64, ()),
    ],
)
def test_forty_sites_on_a_sparse_graph(bits: int, steps: tuple[str, ...]) -> None:
    sites, rng = names(40), np.random.default_rng(2)
    plan = SPARSE.plan(40)
    assert not plan.complete
    values = {site: small_values(rng) for site in sites}
    gone = {sites[i]: step for i, step in zip(rng.permutation(40), steps, strict=False)}
    round_ = Round(Federation(sites, SPARSE), 1, layout := small_layout(40, bits))
    found = round_.run(values, gone)
    here = [s for s in sites if gone.get(s) not in ("share", "mask")]
    assert round_.server.survivors == tuple(here)
    check_sum(layout, found, [values[site] for site in here])


def test_forty_sites_of_which_too_many_are_lost() -> None:
    sites, rng = names(40), np.random.default_rng(3)
    round_ = Round(Federation(sites, SPARSE), 1, small_layout(40))
    # With 18 of 40 left, whatever 18 they are, some neighbourhood has fewer than 12 of its 19.
    gone = dict.fromkeys((sites[i] for i in rng.permutation(40)[:22]), "mask")
    with pytest.raises(CannotUnmask, match="cannot be unmasked"):
        round_.run({site: small_values(rng) for site in sites}, gone)


def test_rounds_in_a_pipeline_of_two_exchanges() -> None:
    """E1(r) masks r and advertises r + 1, E2(r) opens r and shares r + 1; a restarted site comes back."""
    sites, rng = names(4), np.random.default_rng(4)
    federation, layout = Federation(sites, Rule(), signed=True), small_layout(4)
    current = Round(federation, 1, layout)
    current.advertise()
    current.share()
    for number in range(1, 7):
        values = {site: small_values(rng) for site in sites}
        following = Round(federation, number + 1, layout)
        if number == 3:
            federation.states[sites[1]] = None  # restarted: it cannot mask, and advertises for round 4
            assert not federation.at(sites[1]).is_ready(number)
            current.gone = {sites[1]: "mask"}
        assert all(federation.at(site).is_ready(number) for site in current.answers("mask", sites))
        current.mask(values)
        following.advertise()
        found = current.reveal()
        following.share()
        here = [s for s in sites if s not in current.gone]
        check_sum(layout, found, [values[site] for site in here])
        current = following
    assert current.server.roll().announcements[1].site == sites[1]


def test_a_round_that_failed_is_repeated_under_the_next_number() -> None:
    sites, rng = names(4), np.random.default_rng(5)
    federation, layout = Federation(sites, Rule()), small_layout(4)
    values = {site: small_values(rng) for site in sites}
    with pytest.raises(CannotUnmask):
        Round(federation, 1, layout).run(values, {sites[0]: "mask", sites[1]: "mask"})
    check_sum(layout, Round(federation, 2, layout).run(values), list(values.values()))
