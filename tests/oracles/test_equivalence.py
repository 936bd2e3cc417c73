"""Federated equals centralised: any partition of the same records gives the trajectory of the reference.

Tolerance 1e-10 in float64: both sides take the same few hundred operations in another order, and rounding
errors of 1e-16 grow by the condition of a handful of steps. A wrong normalisation, sign or missing term is
larger than 1e-5 here, which `test_every_part_matters` shows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from fedfair.modulation import METHODS, DualMimo, FedAvg, Method, Mimo, MultiFair
from tests.oracles.cohort import BINS, GROUPS, History, cohort, difference, federate, partition, small_model
from tests.oracles.reference import centralise

ROUNDS = 5
RATE = 0.5
TOLERANCE = 1e-10

# Gates are off or low and thresholds small, so that every factor moves on a hundred records.
MULTIFAIR = MultiFair(gate=0.0, direction=0.5, direction_max=np.inf, fairness=0.5, decay=0.5, group_min=2)
VARIANTS: dict[str, Method] = {
    "fedavg": FedAvg(),
    "mimo": Mimo(penalty=1.5, mu=0.05),
    "dual_mimo": DualMimo(penalty=0.7, mu=0.1, shrinkage=5.0),
    "multifair": MULTIFAIR,
    "multifair-scalar": replace(MULTIFAIR, form="scalar", progress="absolute", one_sided=False, rho=1.2),
    "multifair-gated": replace(MULTIFAIR, progress="signed", gate=0.5, group_min=4, direction_max=0.2),
}
CASES = [(name, classes) for name in VARIANTS for classes in (2, 3)]


@cache
def one_site(name: str, classes: int) -> History:
    # Chunks smaller than the site: a sum over chunks is the sum over records too.
    records = cohort(classes=classes)
    return federate(small_model(classes), [records], VARIANTS[name], ROUNDS, RATE, chunk_size=40)


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_one_site_equals_the_centralised_reference(name: str, classes: int) -> None:
    reference = centralise(
        small_model(classes), cohort(classes=classes), VARIANTS[name], ROUNDS, RATE, GROUPS, BINS
    )
    assert difference(one_site(name, classes), reference) < TOLERANCE


@pytest.mark.parametrize("sites", [2, 5, 12])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_any_partition_equals_one_site(name: str, classes: int, sites: int) -> None:
    parts = partition(cohort(classes=classes), sites)
    split = federate(small_model(classes), parts, VARIANTS[name], ROUNDS, RATE)
    assert difference(split, one_site(name, classes)) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_equivalence_holds_for_attention_fusion(name: str) -> None:
    one, other = small_model(fusion="attention"), small_model(fusion="attention")
    reference = centralise(one, cohort(), VARIANTS[name], ROUNDS, RATE, GROUPS, BINS)
    split = federate(other, partition(cohort(), 5), VARIANTS[name], ROUNDS, RATE)
    assert difference(split, reference) < TOLERANCE


def test_partition_holds_the_hard_sites() -> None:
    parts = partition(cohort(), 12)
    assert sum(len(part) for part in parts) == len(cohort())
    assert any(not part.present[:, 2].any() for part in parts), "a site without a modality"
    assert any(len(part.labels.unique()) == 1 for part in parts), "a site with one class"
    assert any(len(part.groups.unique()) == 1 for part in parts), "a site with one group"
    assert any(not part.present[i].any() for part in parts for i in range(len(part))), "a record with nothing"
    assert len({len(part) for part in parts}) > 1, "sites of unequal size"


NEUTRAL: dict[str, Method] = {
    "mimo": Mimo(penalty=0.0),
    "dual_mimo": DualMimo(penalty=0.0, mu=np.inf),
    "multifair": MultiFair(gamma=0.0, direction=0.0, fairness=0.0, gate=1e9),
    "multifair-clamped": replace(
        MULTIFAIR, direction=0.0, fairness=0.0, balance_min=1.0, balance_max=1.0, gamma=0.0
    ),
    "multifair-warming-up": MultiFair(warmup=ROUNDS),
}


@pytest.mark.parametrize("sites", [1, 5])
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_limits_are_federated_averaging(name: str, sites: int) -> None:
    """Encoders and fusion; a head is a probe under FedAvg and rests where the penalty is zero."""
    parts = partition(cohort(), sites)
    limit = federate(small_model(), parts, NEUTRAL[name], ROUNDS, RATE)
    average = federate(small_model(), parts, FedAvg(), ROUNDS, RATE)
    for history in (limit, average):
        for state in history:
            for key in [key for key in state if key.startswith("heads.")]:
                del state[key]
    # The same products: a coefficient of one multiplies every row.
    assert difference(limit, average) < 1e-12


def test_every_method_is_compared() -> None:
    assert {method.name for method in VARIANTS.values()} == set(METHODS)
    assert {method.name for method in NEUTRAL.values()} | {"fedavg"} == set(METHODS)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("multifair", {"direction": 0.0}),
        ("multifair", {"fairness": 0.0}),
        ("multifair", {"gamma": 0.0}),
        ("multifair", {"balance_min": 1.0, "balance_max": 1.0}),
        ("multifair-scalar", {"form": "per_group"}),
        ("multifair-scalar", {"one_sided": True}),
        ("multifair-gated", {"gate": 0.0}),
        ("multifair-gated", {"direction_max": np.inf}),
        ("mimo", {"penalty": 0.0}),
        ("mimo", {"mu": np.inf}),
        ("dual_mimo", {"penalty": 0.0}),
        ("dual_mimo", {"shrinkage": 1e3}),
    ],
)
def test_every_part_matters(name: str, without: dict[str, object]) -> None:
    """A part that changes nothing would make the comparisons above say nothing about it."""
    other = federate(small_model(), [cohort()], replace(VARIANTS[name], **without), ROUNDS, RATE)
    assert difference(other, one_site(name, 2)) > 1e-5
