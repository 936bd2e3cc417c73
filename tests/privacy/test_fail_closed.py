"""Whatever a promise rests on is given, or the run does not start: one sentence that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedfair.cli import main
from fedfair.config import Config, apply, parse
from fedfair.coordinator import Coordinator
from fedfair.errors import ConfigError
from fedfair.site import Workbench
from tests.apps.runs import ROOT
from tests.privacy.hospital import PLAIN, configured
from tests.privacy.people import schema

SITE_LEVEL = (
    "privacy={mode: site, noise_multiplier: 2.0, target_delta: 1e-5, clipping_norm: 1.0, evaluation: exact, "
    "statistics: {noise_multiplier: 5.0}}"
)


def started(*overrides: str) -> Coordinator:
    """Return the server's state, as a run has it before any site is asked."""
    config = configured(*overrides)
    return Coordinator(config, schema(), Workbench(config, schema()).vectors())


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        started(*overrides)
    return str(caught.value)


def test_the_configurations_themselves_are_taken() -> None:
    for overrides in (
        (),
        (SITE_LEVEL,),
        ("privacy.engine=opacus", "privacy.clipping=flat", "training.mode=weights"),
    ):
        assert isinstance(started(*overrides).config, Config)


@pytest.mark.parametrize(
    "key",
    ["target_delta", "sample_rate", "local_steps", "expected_batch", "max_grad_norm", "noise_multiplier"],
)
def test_a_missing_constant_of_a_patients_privacy(key: str) -> None:
    assert f"`privacy.{key}`" in refused(f"privacy.{key}=null")


@pytest.mark.parametrize("key", ["target_delta", "clipping_norm", "noise_multiplier"])
def test_a_missing_constant_of_a_sites_privacy(key: str) -> None:
    assert f"`privacy.{key}`" in refused(SITE_LEVEL, f"privacy.{key}=null")


@pytest.mark.parametrize("key", ["sodium", "iron"])
def test_a_missing_range(key: str) -> None:
    ranges = {"sodium": "[130, 150]", "iron": "[5, 25]"}
    del ranges[key]
    (left,) = ranges.items()
    assert f"`data.ranges.{key}`" in refused(f"data={{name: synthetic, ranges: {{{left[0]}: {left[1]}}}}}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.mode=gradient"], "`training.mode` must be update or weights"),
        (["data.split=stratified"], "`data.split` must be hashed"),
        (["training.exchanges=2"], "`training.exchanges` must be 1"),
        (["training.split_rows=true"], "`training.split_rows` must be false"),
        (["privacy.target_epsilon=3"], "one of `privacy.target_epsilon` and `privacy.noise_multiplier`"),
        (["privacy.statistics.noise_multiplier=null"], "`privacy.statistics.noise_multiplier` must be given"),
        (["privacy.engine=opacus"], "`privacy.clipping` must be flat for engine opacus"),
        (
            ["privacy.engine=opacus", "privacy.clipping=flat"],
            "`training.mode` must be weights for engine opacus",
        ),
        (["privacy.engine=hooks"], "`privacy.engine` must be one of"),
        (["privacy.mode=patient"], "`privacy.mode` must be one of"),
        (["privacy.clipping=layer"], "`privacy.clipping` must be one of"),
        (["privacy.noise_units=best"], "`privacy.noise_units` must be one of"),
        (["privacy.evaluation=some"], "`privacy.evaluation` must be one of"),
        (["privacy.exact=[everything]"], "`privacy.exact` must be a list of"),
        (["privacy.clipping_norm=1"], "`privacy.clipping_norm` does not act in mode sample"),
        (["privacy.max_grad_norm=.inf"], "`privacy.max_grad_norm` must be positive and finite"),
        (["privacy.max_grad_norm=0"], "`privacy.max_grad_norm` must be positive and finite"),
        (["privacy.max_grad_norm={fusion: 0}"], "`privacy.max_grad_norm.fusion` must be positive"),
        (["privacy.max_grad_norm={fusion: 1}", "privacy.clipping=flat"], "`privacy.clipping` must be block"),
        (["privacy.sample_rate=0"], "`privacy.sample_rate` must be in (0, 1]"),
        (["privacy.sample_rate=1.1"], "`privacy.sample_rate` must be in (0, 1]"),
        (["privacy.target_delta=0.6"], "`privacy.target_delta` must be in (0, 0.01]"),
        (["privacy.noise_multiplier=0"], "`privacy.noise_multiplier` must be positive"),
        (["privacy.statistics.noise_multiplier=0"], "`privacy.statistics.noise_multiplier` must be positive"),
        (["privacy.statistics.loss_bound=0"], "`privacy.statistics.loss_bound` must be positive"),
        (["privacy.statistics.gradient_norm=-1"], "`privacy.statistics.gradient_norm` must be positive"),
        (["privacy.max_epsilon=0"], "`privacy.max_epsilon` must be positive"),
        (["privacy.expected_batch=0"], "`privacy.expected_batch` must be positive"),
        (["privacy.local_steps=0"], "`privacy.local_steps` must be positive"),
        (["privacy.sampel_rate=0.1"], "did you mean `sample_rate`?"),
        (["privacy.statistics.noise_multipler=5"], "did you mean `noise_multiplier`?"),
        (["data.ranges.sodum=[1, 2]"], "`data.ranges` must name numeric columns, got 'sodum'"),
        (["data.ranges.iron=[25, 5]"], "`data.ranges.iron` must be [low, high]"),
    ],
)
def test_what_would_break_a_patients_promise(overrides: list[str], words: str) -> None:
    assert words in refused(*overrides)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.sample_rate=0.1", "`privacy.sample_rate` does not act in mode site"),
        ("privacy.local_steps=2", "`privacy.local_steps` does not act in mode site"),
        ("privacy.expected_batch=9", "`privacy.expected_batch` does not act in mode site"),
        ("privacy.max_grad_norm=1", "`privacy.max_grad_norm` does not act in mode site"),
        ("privacy.evaluation=released", "`privacy.evaluation` must be exact or none in mode site"),
        ("privacy.engine=opacus", "`privacy.engine` must be functional in mode site"),
        ("training.mode=gradient", "`training.mode` must be update or weights"),
        ("data.split=stratified", "`data.split` must be hashed"),
    ],
)
def test_what_would_break_a_sites_promise(override: str, words: str) -> None:
    assert words in refused(SITE_LEVEL, override)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ("{fusion: 1}", "max_grad_norm.encoder/"),
        ("{fusoin: 1, encoder/labs: 1}", "did you mean `fusion`?"),
    ],
)
def test_a_bound_by_block_that_is_missing_or_misspelt(bounds: str, words: str) -> None:
    """Before a site is asked, that is: there it would cost the round's charge."""
    assert words in refused(f"privacy.max_grad_norm={bounds}")


def test_the_command_says_it_in_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / "heart_private.yaml"
    assert main(["simulate", str(config), "--set", "privacy.target_delta=null"]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x]
    assert line.startswith("fedfair: `privacy.target_delta` must be given in mode sample")
    assert list(tmp_path.iterdir()) == []


def test_unknown_sections_are_no_privacy() -> None:
    plain: dict[str, Any] = apply(PLAIN, [])
    plain["privcy"] = plain.pop("privacy")
    with pytest.raises(ConfigError, match="did you mean `privacy`"):
        parse(plain)
