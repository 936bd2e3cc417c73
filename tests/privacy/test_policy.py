"""What a hospital's node asks of a run binds, whatever the server sends."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedfair.budget import charges, round_events
from fedfair.config import Config, load
from fedfair.errors import ConfigError, PrivacyError, RunError
from fedfair.privacy.policy import Policy
from server.app import app as server_app
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, PRIVATE, SHORT

RELEASED = "privacy.evaluation=released"
SAMPLE_KEYS = ("sample_rate", "local_steps", "expected_batch", "max_grad_norm")


def private(*overrides: str) -> Config:
    return load(PRIVATE, [RELEASED, *overrides])


def test_a_node_that_says_nothing_takes_every_run() -> None:
    policy = Policy.of({"site": "Cleveland", "partition-id": 0, "data-path": "x.csv"})
    assert not policy.binds
    policy.check(load(HEART))


@pytest.mark.parametrize(
    "node", [{"max-epsilon": 3}, {"max-delta": "1e-5"}, {"ledger": "/x"}, {"dataset": "registry"}]
)
def test_a_private_run_passes_and_an_open_one_does_not(node: dict[str, object]) -> None:
    policy = Policy.of(node)
    policy.check(private())
    with pytest.raises(PrivacyError, match=r"`privacy.mode` must be sample, as this site asks, got 'off'"):
        policy.check(load(HEART))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["privacy.noise_seed=1"], "noise_seed"),
        (["privacy.exact=[statistics]"], "exact"),
        (["privacy.target_delta=0.001"], "target_delta"),
        (["privacy.evaluation=exact"], "evaluation"),
    ],
)
def test_a_run_that_protects_less_is_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(PrivacyError, match=key):
        Policy.of({"max-epsilon": 3.0, "max-delta": 1e-5}).check(private(*overrides))


def test_test_records_are_shown_where_the_site_says_so() -> None:
    Policy.of({"max-epsilon": 3.0, "public-test": "true"}).check(load(PRIVATE))


@pytest.mark.parametrize("key", ["max_epsilon", "max-epsilom", "Max-Delta", "public_test"])
def test_a_misspelt_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` of the node is not a known key; did you mean"):
        Policy.of({key: 1.0})


@pytest.mark.parametrize("value", ["three", 0, -1, "nan"])
def test_a_cap_must_be_a_positive_number(value: object) -> None:
    with pytest.raises(ConfigError, match="`max-epsilon` of the node must be a number above 0"):
        Policy.of({"max-epsilon": value})


def test_a_site_names_its_own_data_and_place(tmp_path: Path) -> None:
    policy = Policy.of({"ledger": str(tmp_path), "dataset": "registry"})
    assert (policy.ledger, policy.dataset) == (tmp_path, "registry")


def test_the_clients_of_a_run_ask_their_nodes(tmp_path: Path) -> None:
    """One node asks for privacy, and answers no run without it."""
    values = {"config": str(HEART), "overrides": ";".join(SHORT), "output": str(tmp_path / "out")}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with InProcessGrid(client_app, 4) as grid:
        grid._contexts[2].node_config["max-epsilon"] = 3.0
        with pytest.raises(RunError, match="`privacy.mode` must be sample, as this site asks, got 'off'"):
            server_app(grid, context)


@pytest.mark.parametrize("mode", ["sample", "site"])
def test_noise_that_can_be_drawn_again_is_charged_as_none(mode: str) -> None:
    constants = ["privacy.target_epsilon=null", "privacy.noise_multiplier=2", RELEASED]
    constants += ["privacy.statistics.noise_multiplier=9"]
    if mode == "site":
        constants += [f"privacy.{key}=null" for key in SAMPLE_KEYS] + ["privacy.mode=site"]
        constants += ["privacy.clipping_norm=1", "privacy.evaluation=none"]
    config = load(PRIVATE, constants)
    assert charges(config, 1) == round_events(config, 1)
    repeatable = load(PRIVATE, [*constants, "privacy.noise_seed=1"])
    assert [event.noise_multiplier for event in charges(repeatable, 1)] == [0.0, 0.0]
