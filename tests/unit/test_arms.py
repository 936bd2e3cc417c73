"""The arms of a privacy-budget experiment: what each of them leaves out, and what stays the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedfair.budget import planned
from fedfair.config import Config, load
from fedfair.errors import ConfigError
from fedfair.privacy.accounting import epsilon
from simulations.arms import ARMS, PAIRS, REFERENCE, Setting, settings
from simulations.sweep_file import Sweep, read_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = load(CONFIGS / "heart_private.yaml", ["rounds=3"])
METHODS = ("dual_mimo", "multifair")


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str, float], Config]:
    """Return the calibrated configuration of every setting."""
    every = [s.calibrated() for s in settings(BASE, ARMS, METHODS, (math.inf, 8.0, 2.0))]
    return {(s.arm, s.method, s.epsilon): s.config for s in every}


def test_settings_are_arms_by_method_and_epsilon(found: dict[tuple[str, str, float], Config]) -> None:
    expected = {
        **dict.fromkeys(("none", "clip_only"), (("fedavg", *METHODS), (math.inf,))),
        **dict.fromkeys(("neutral_flat", "neutral_block"), (("fedavg",), (8.0, 2.0))),
        **dict.fromkeys(("noisy_statistics", "gated", "ungated", "oracle_statistics"), (METHODS, (8.0, 2.0))),
    }
    assert set(found) == {(arm, m, e) for arm, (ms, es) in expected.items() for m in ms for e in es}
    assert all(config.method.name == method for (_, method, _), config in found.items())


def test_private_arms_spend_their_target_and_exact_ones_all(
    found: dict[tuple[str, str, float], Config],
) -> None:
    """The whole event counts: training and statistics; calibration leaves at most 2 % unspent."""
    for (arm, _, target), config in found.items():
        spent = epsilon(planned(config), float(config.privacy.target_delta or 0))
        if arm in ("neutral_flat", "neutral_block", "gated", "ungated"):
            assert 0.98 * target < spent <= target, arm
            assert config.privacy.not_private is None
        else:
            assert math.isinf(spent), arm
            assert config.privacy.not_private


def test_arms_differ_in_what_they_say_and_in_nothing_else(
    found: dict[tuple[str, str, float], Config],
) -> None:
    def privacy(arm: str) -> dict[str, object]:
        plain = found[arm, "dual_mimo", 8.0].privacy
        return {**dataclasses.asdict(plain), "gate": plain.statistics.gate, "statistics": None}

    def differing(own: str, other: str) -> set[str]:
        a, b = privacy(own), privacy(other)
        return {key for key in a if a[key] != b[key]}

    assert differing("gated", "ungated") == {"gate"}
    assert differing("gated", "oracle_statistics") == {"exact"}
    assert differing("gated", "noisy_statistics") == {"exact", "max_grad_norm", "clipping"}
    sigmas = {
        arm: found[arm, "dual_mimo", 8.0].privacy.statistics.noise_multiplier
        for arm in ("gated", "noisy_statistics")
    }
    assert len(set(sigmas.values())) == 1


def test_reference_is_neither_clipped_nor_noised(found: dict[tuple[str, str, float], Config]) -> None:
    privacy = found[REFERENCE, "fedavg", math.inf].privacy
    assert privacy.is_exact("gradients")
    assert privacy.is_exact("statistics")
    assert (privacy.clipping, privacy.max_grad_norm) == ("flat", math.inf)
    clipped = found["clip_only", "fedavg", math.inf].privacy
    assert (clipped.clipping, clipped.max_grad_norm) == (BASE.privacy.clipping, BASE.privacy.max_grad_norm)


def test_flat_clipping_keeps_the_sensitivity_of_bounds_by_block() -> None:
    blocks = (
        "fusion",
        *(f"{kind}/{name}" for kind in ("encoder", "head") for name in ("rest", "stress", "imaging")),
    )
    bounds = {block: 0.1 * (i + 1) for i, block in enumerate(blocks)}
    base = dataclasses.replace(BASE, privacy=dataclasses.replace(BASE.privacy, max_grad_norm=bounds))
    (flat,) = settings(base, ["neutral_flat"], METHODS, [8.0])
    # A record within every bound by block is within the flat bound: sqrt(0.01 * (1 + 4 + ... + 49)).
    assert flat.config.privacy.max_grad_norm == pytest.approx(math.sqrt(0.01 * 140))


def test_a_setting_survives_plain_data(found: dict[tuple[str, str, float], Config]) -> None:
    for (arm, method, target), config in found.items():
        setting = Setting(arm, method, target, config)
        assert Setting.from_dict(setting.to_dict()) == setting


def test_folders_tell_settings_apart() -> None:
    every = settings(BASE, ARMS, METHODS, (math.inf, 8.0, 0.5, 0.25))
    assert len({setting.folder for setting in every}) == len(every)


def test_pairs_name_arms() -> None:
    assert {name for own, other, _ in PAIRS for name in (own, other)} <= set(ARMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon: [8]", "`epsilon` is not a known key; did you mean `epsilons`"),
        ("arms: [gatted]", "got 'gatted'; did you mean `gated`"),
        ("methods: [dualmimo]", "got 'dualmimo'; did you mean `dual_mimo`"),
        ("methods: [fedavg]", "`methods` must be of"),
        ("methods: []", "`methods` must hold some of"),
        ("epsilons: [8, 0]", "`epsilons` must be positive numbers or .inf"),
        ("epsilons: [.nan]", "`epsilons` must be positive numbers or .inf"),
        ("epsilons: [true]", "`epsilons` must be positive numbers or .inf"),
        ("epsilons: [eight]", "`epsilons` must be positive numbers or .inf"),
        ("seeds: 0", "`seeds` must be at least 1"),
        ("base: ''", "`base` must be the path"),
        ("set: [rounds]", "`set` must be Mapping"),
    ],
)
def test_a_wrong_sweep_file_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    lines = ["base: heart_private.yaml", "epsilons: [.inf, 8]", "methods: [dual_mimo]"]
    key = text.partition(":")[0]
    path = tmp_path / "sweep.yaml"
    path.write_text("\n".join([*(line for line in lines if not line.startswith(f"{key}:")), text]))
    with pytest.raises(ConfigError) as refused:
        read_sweep(path)
    assert message in str(refused.value)


@pytest.mark.parametrize(("arms", "epsilons"), [(["gated"], [math.inf]), (["none"], [8])])
def test_a_sweep_without_a_setting_is_refused(arms: Sequence[str], epsilons: Sequence[object]) -> None:
    sweep = Sweep(base="heart_private.yaml", arms=arms, epsilons=epsilons, methods=["dual_mimo"])
    with pytest.raises(ConfigError, match="`epsilons` must hold"):
        sweep.settings(BASE)


def test_overrides_are_those_of_the_command_line() -> None:
    values = {"rounds": 7, "model.options": {"hidden": [4], "embedding_dim": 4}, "privacy.max_grad_norm": 0.5}
    sweep = Sweep(base="x.yaml", epsilons=[8], methods=["dual_mimo"], set=values)
    config = load(CONFIGS / "heart_private.yaml", sweep.overrides)
    assert (config.rounds, config.privacy.max_grad_norm) == (7, 0.5)
    assert config.model.options == values["model.options"]
