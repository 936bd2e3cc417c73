"""After local epochs the server moves the model by coefficients near those that the sites trained along."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedfair.coefficients import Coefficients
from fedfair.config import Config, load, parse
from fedfair.coordinator import Coordinator
from fedfair.dataset import dataset_of
from fedfair.errors import ConfigError
from fedfair.local import SiteUpdate
from fedfair.recombination import applied, step_limit
from fedfair.signals import Signals
from fedfair.site import Site, Workbench

# A small temperature, so that fresh coefficients lie far from neutral.
PLAIN = {
    "data": {"name": "synthetic", "attribute": "sex", "options": {"sites": 2, "records": 96}},
    "model": {"options": {"hidden": [4], "embedding_dim": 4}},
    "method": {"name": "dual_mimo", "mu": 0.01, "shrinkage": 0.0},
}
LIMIT = 1.25
CONFIGS = Path(__file__).parents[2] / "configs"


def config_of(training: dict[str, object], **server: float) -> Config:
    return parse({**PLAIN, "training": training, "server": server})


def first_round(config: Config) -> tuple[Coefficients, Coefficients, Coefficients, dict[str, np.ndarray]]:
    """Return the coefficients that were sent, fresh and applied, and the model after a round."""
    adapter = dataset_of(config)
    bench = Workbench(config, adapter.schema)
    coordinator = Coordinator(config, adapter.schema, bench.vectors())
    sites = [Site(name, config, adapter) for name in adapter.schema.sites]
    coordinator.standardise({site.name: site.survey for site in sites})
    sent, download = coordinator.coefficients, coordinator.download()
    committed = coordinator.commit([site.work(bench, download, 1) for site in sites])
    model = {name: np.array(value) for name, value in coordinator.model.items()}
    return sent, committed.modulation.coefficients, committed.applied, model


@cache
def update_round(
    recombination: float,
) -> tuple[Coefficients, Coefficients, Coefficients, dict[str, np.ndarray]]:
    return first_round(config_of({"mode": "update"}, recombination=recombination))


def ratios(coefficients: Coefficients, others: Coefficients) -> np.ndarray:
    return np.concatenate([coefficients.fused / others.fused, coefficients.unimodal / others.unimodal])


def test_what_is_applied_lies_between_what_was_sent_and_what_is_fresh() -> None:
    sent, fresh, used, _ = update_round(LIMIT)
    wanted, found = ratios(fresh, sent), ratios(used, sent)
    assert (wanted > 2).any() and (wanted < 0.5).any()
    np.testing.assert_allclose(found, np.clip(wanted, 1 / LIMIT, LIMIT))


def test_a_limit_of_one_applies_what_was_sent_and_a_high_one_what_is_fresh() -> None:
    sent, _, used, model = update_round(1.0)
    np.testing.assert_array_equal(ratios(used, sent), 1.0)
    _, fresh, loose, other = update_round(1e6)
    np.testing.assert_array_equal(ratios(loose, fresh), 1.0)
    assert any(not np.array_equal(model[name], other[name]) for name in model)


@pytest.mark.parametrize(("training", "limit"), [({"batch_size": 16}, 4 / 3), ({"local_epochs": 3}, 1.2)])
def test_unless_it_is_asked_for_otherwise_one_step_is_corrected(
    training: dict[str, object], limit: float
) -> None:
    """Two sites of 62 records take 4 steps in batches of 16, and 2 in each of three epochs of 32."""
    sent, fresh, used, _ = first_round(config_of({"mode": "update", **training}))
    np.testing.assert_allclose(ratios(used, sent), np.clip(ratios(fresh, sent), 1 / limit, limit))


def test_a_single_step_is_a_gradient_and_knows_no_limit() -> None:
    _, fresh, used, _ = first_round(config_of({"mode": "update", "batch_size": 128}))
    np.testing.assert_array_equal(ratios(used, fresh), 1.0)


def test_where_nobody_knows_the_steps_nothing_is_corrected() -> None:
    assert [step_limit(steps) for steps in (0, 2, 101)] == [1.0, 2.0, 1.01]


def test_a_large_site_among_small_ones_is_not_taken_for_one_of_a_single_step() -> None:
    """Four sites of 20 records on average, batches of 32: one of them may hold 77 and take three steps."""
    config, counts = config_of({"mode": "update"}), np.array([[[40.0, 0.0]], [[40.0, 0.0]]])
    train = Signals(counts, np.zeros((2, 1)), np.zeros((2, 1, 1, 2, 2)), None)
    updates = [SiteUpdate(f"site {number}", {}, None, None) for number in range(4)]
    assert applied(config, ones(5.0), ones(1.0), updates, train).fused.max() == step_limit(2)
    # A secure sum stands for all of them.
    summed = [SiteUpdate("all", {}, None, None, sites=4)]
    assert applied(config, ones(5.0), ones(1.0), summed, train).fused.max() == step_limit(2)


def ones(value: float) -> Coefficients:
    return Coefficients(np.full((2, 1), value), np.full((1, 1), value), live=True)


def test_under_privacy_the_steps_are_the_public_ones_and_no_count_is_read() -> None:
    """The signals' counts are noise there: these would give a limit of 1 + 1 / 99."""
    train = Signals(np.full((2, 1, 2), 1600.0), np.zeros((2, 1)), np.zeros((2, 1, 1, 2, 2)), None)
    updates = [SiteUpdate("site", {}, None, None)]
    sample = load(CONFIGS / "synthetic_private.yaml", ("training.mode=update", "privacy.local_steps=3"))
    assert applied(sample, ones(5.0), ones(1.0), updates, train).fused.max() == step_limit(3)
    nobody_knows = ("sample_rate", "local_steps", "expected_batch", "max_grad_norm")
    other = [f"privacy.{key}=null" for key in nobody_knows]
    other += [
        "privacy.mode=site",
        "privacy.clipping_norm=1",
        "training.mode=update",
        "privacy.evaluation=none",
    ]
    site = load(CONFIGS / "synthetic_private.yaml", other)
    assert applied(site, ones(5.0), ones(1.0), updates, train).fused.max() == 1.0


@pytest.mark.parametrize("mode", ["gradient", "weights"])
def test_other_modes_know_no_limit(mode: str) -> None:
    """A gradient is exact whatever its coefficients; a weighted update carries them already."""
    sent, fresh, used, model = first_round(config_of({"mode": mode}, recombination=1.0))
    np.testing.assert_array_equal(ratios(used, fresh if mode == "gradient" else sent), 1.0)
    _, _, _, other = first_round(config_of({"mode": mode}, recombination=1e6))
    for name, value in model.items():
        np.testing.assert_array_equal(value, other[name])


def test_a_coefficient_that_was_zero_stays_zero() -> None:
    """The path that it stands for was never trained along."""
    fresh = Coefficients(np.ones((2, 1)), np.full((1, 1), 3.0), live=True)
    assert fresh.near(Coefficients(np.ones((2, 1)), np.zeros((1, 1)), live=True), 1e6).unimodal == 0


@pytest.mark.parametrize("limit", [0.5, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match=r"`server.recombination` must be in \[1, 1e6\] or null"):
        config_of({}, recombination=limit)
