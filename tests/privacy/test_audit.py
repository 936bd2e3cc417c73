"""The audit of the real private training, and of what is broken in it; and the audit's own arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import ArrayModality, Schema
from fedfair.local import LocalTraining
from fedfair.models import Fusion, Head, MultimodalModel
from fedfair.paths import RowPlan, Scales
from fedfair.privacy.accounting import Event, epsilon
from fedfair.privacy.noise import Noise
from fedfair.privacy.opacus_engine import check_opacus, opacus_mechanism, train_with_opacus
from fedfair.privacy.sample_level import mechanism, train_privately
from fedfair.privacy.settings import PrivacyConfig, StatisticsConfig
from tests.privacy.audit import audited, binomial, hits, lower_bound, most, p_value

CANARIES, STEPS, RATE, SIGMA, DELTA = 1000, 50, 0.1, 8.0, 1e-5
CLAIM = epsilon([Event(SIGMA, RATE, STEPS)], DELTA)


# --- the arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (10, 0.5), (1000, 0.73)])
def test_binomial_masses_are_scipys(n: int, p: float) -> None:
    # Sums of a thousand logarithms.
    np.testing.assert_allclose(
        binomial(n, p), stats.binom.pmf(np.arange(n + 1), n, p), rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("right", range(7))
def test_without_delta_randomised_response_reaches_the_bound(epsilon: float, right: int) -> None:
    """Each coin is told rightly with probability e^eps / (1 + e^eps), so right guesses are binomial."""
    told = math.exp(epsilon) / (1 + math.exp(epsilon))
    exact = sum(
        math.prod(told if x else 1 - told for x in outcome)
        for outcome in itertools.product([0, 1], repeat=6)
        if sum(outcome) >= right
    )
    assert p_value(6, 6, right, epsilon, 0.0) == pytest.approx(exact, rel=1e-12)


def test_delta_enters_as_in_the_theorem() -> None:
    """Term by term by hand: m = r = 3, v = 2, f from scipy."""
    f = [stats.binom.sf(v - 1, 3, 1 / (1 + math.exp(-0.7))) for v in range(4)]
    expected = f[2] + 2 * 3 * 0.01 * max((f[1] - f[2]) / 1, (f[0] - f[2]) / 2, (1 - f[2]) / 3)
    assert p_value(3, 3, 2, 0.7, 0.01) == pytest.approx(expected, rel=1e-12)


def test_a_mechanism_that_tells_all_with_probability_delta_stays_within_the_bound() -> None:
    """Else it tells nothing, which is (0, delta)-private; all guesses are right by chance with 2^-m."""
    m, delta = 12, 0.02
    assert p_value(m, m, m, 0.0, delta) >= delta + (1 - delta) * 2.0**-m


def test_a_lower_bound_is_where_the_p_value_is_the_level() -> None:
    bound = lower_bound(1000, 300, 220, 1e-5, 0.05)
    assert 0.5 < bound < 2
    assert p_value(1000, 300, 220, bound, 1e-5) <= 0.05 < p_value(1000, 300, 220, bound + 2e-3, 1e-5)
    assert lower_bound(1000, 300, 160, 1e-5, 0.05) == 0.0


def test_no_audit_refutes_more_than_its_canaries_allow() -> None:
    assert most(1000) == pytest.approx(5.81, abs=0.01)
    # Bisection to 1e-3.
    assert lower_bound(1000, 1000, 1000, 0.0, 0.05) == pytest.approx(most(1000), abs=2e-3)


def test_guesses_are_counted_at_both_ends() -> None:
    included = np.array([True, False, True, False])
    assert hits(np.array([4.0, 1.0, 3.0, 2.0]), included, 4) == 4
    assert hits(np.array([1.0, 4.0, 3.0, 2.0]), included, 2) == 0


# --- the real training -------------------------------------------------------------------------------


class Only(Fusion):
    """The only embedding itself."""

    def join(self, embeddings: Sequence[Tensor], present: Tensor) -> Tensor:
        del present
        return embeddings[0]


def probe() -> MultimodalModel:
    """Return a model with a coordinate for each one-hot canary, whose gradient is 50 times the bound."""
    encoder, head, fusion = nn.Linear(CANARIES, 1, bias=False), nn.Linear(1, 2), nn.Linear(1, 2)
    for layer in (encoder, head, fusion):
        nn.init.zeros_(layer.weight)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([[-50.0], [50.0]]))
    return MultimodalModel({"x": encoder}, {"x": Head(nn.Identity(), head)}, Only(fusion))


class Changed:
    """Noise whose normals pass through a function, and whose coins are another's."""

    def __init__(self, noise: Noise, coins: Noise, change: Callable[[Tensor], Tensor]) -> None:
        self.poisson, self.generator = coins.poisson, coins.generator
        self._noise, self._change = noise, change

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._change(self._noise.normal(shape, like))


def trained(
    change: Callable[[Tensor], Tensor] = torch.clone,
    bound: float = 1.0,
    same_noise: bool = False,
    seed: int = 0,
    engine: str = "functional",
) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Run rounds of one step each, and return every upload's canary coordinates and who took part."""
    included = np.random.default_rng(seed).random(CANARIES) < 0.5
    inputs = torch.eye(CANARIES)[torch.from_numpy(included)]
    n = len(inputs)
    ones = torch.ones(n, dtype=torch.int64)
    records = MultimodalBatch({"x": inputs}, ones[:, None].bool(), ones, torch.zeros_like(ones))
    model = probe()
    blocks = ParameterBlocks(model)
    scales = Scales(torch.ones(2, 1), torch.ones(1, 1), False)
    describe, train = mechanism, train_privately
    if engine == "opacus":
        describe, train = opacus_mechanism, train_with_opacus
        shared = Schema({"x": ArrayModality((CANARIES,))}, ("no", "yes"), {"sex": ("any",)}, ("one",))
        check_opacus(model, blocks, shared, torch.zeros(()), 1)
    public = describe(blocks, RowPlan().paths(("x",), False, False), scales, ("x",), settings(engine))
    # The clipping alone is broken, the noise stays.
    public = dataclasses.replace(public, bounds={block: bound * own for block, own in public.bounds.items()})
    uploads = []
    for step in range(STEPS):
        noise = Noise.fixed(seed, "noise", 0 if same_noise else step)
        given = Changed(noise, Noise.fixed(seed, "coins", step), change)
        rows = train(model, blocks, records, scales, None, LocalTraining(learning_rate=1e-6), public, given)
        uploads.append(rows["encoder/x:all"][0].double().numpy().copy())
    return uploads, included


def settings(engine: str) -> PrivacyConfig:
    """Return one step a round, nearly all of the sensitivity in the canaries' block."""
    by_block = {"fusion": 1e-4, "encoder/x": 1.0, "head/x": 1e-4}
    return PrivacyConfig(
        mode="sample",
        target_delta=DELTA,
        noise_multiplier=SIGMA,
        sample_rate=RATE,
        local_steps=1,
        expected_batch=CANARIES * RATE / 2,
        max_grad_norm=by_block if engine == "functional" else 1.0,
        clipping="block" if engine == "functional" else "flat",
        statistics=StatisticsConfig(noise_multiplier=1.0),
    )


def attacks(uploads: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Return two scores: how far a coordinate went in all, and how much it changed from step to step."""
    steps = np.stack(uploads)
    return [steps.sum(0), np.abs(np.diff(steps, axis=0)).sum(0)]


def found(**broken: object) -> float:
    uploads, included = trained(**broken)  # type: ignore[arg-type]
    return audited(attacks(uploads), included, DELTA)


def test_the_claim_is_low_enough_to_be_refuted() -> None:
    assert 0.1 < CLAIM < 1 < most(CANARIES)


ENGINES = pytest.mark.parametrize("engine", ["functional", "opacus"])


@ENGINES
@pytest.mark.parametrize("seed", [0, 1])
def test_training_is_not_refuted(seed: int, engine: str) -> None:
    """By construction right with probability 0.95 for an arbitrary seed; these are fixed."""
    assert found(seed=seed, engine=engine) <= CLAIM


BROKEN: Mapping[str, Mapping[str, object]] = {
    "no noise": {"change": torch.zeros_like},
    "noise divided by the root of the batch": {
        "change": lambda values: values / math.sqrt(CANARIES * RATE / 2)
    },
    "no clipping": {"bound": 1e6},
    "the same noise in each step": {"same_noise": True},
}


@ENGINES
@pytest.mark.parametrize("name", BROKEN)
def test_broken_training_is_refuted(name: str, engine: str) -> None:
    assert found(**BROKEN[name], engine=engine) > CLAIM


def test_same_noise_is_found_by_differences_alone() -> None:
    uploads, included = trained(same_noise=True)
    total, change = attacks(uploads)
    assert audited([total], included, DELTA) <= CLAIM < audited([change], included, DELTA)


def test_uploads_hold_the_canaries() -> None:
    """Without noise each coordinate moved by the clipped gradient, exactly in the rounds that drew it."""
    uploads, included = trained(change=torch.zeros_like)
    moved = np.stack(uploads) / (1e-6 / (CANARIES * RATE / 2))
    draws = np.round(moved)
    # Clipping leaves a few hundred units in the last place of float32.
    np.testing.assert_allclose(moved, draws, atol=1e-3)
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert not draws[:, ~included].any()
    assert draws[:, included].mean() == pytest.approx(RATE, abs=0.01)
