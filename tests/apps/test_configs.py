"""Every shipped configuration is read and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfair.cli import main
from fedfair.config import load, parse
from tests.apps.runs import ROOT, rounds

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_says_how_it_is_run(path: Path) -> None:
    assert path.read_text().splitlines()[0] == f"# fedfair simulate configs/{path.name}"
    assert load(path).name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_survives_plain_data(path: Path) -> None:
    config = load(path)
    assert parse(config.to_dict()) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_runs(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    short = ["--set", "rounds=2", "--set", "report.resamples=20"]
    assert main(["simulate", str(path), "--output", str(out), *short]) == 0
    assert [r["round"] for r in rounds(out / "seed-0" / load(path).method.name)] == [0, 1, 2]
    assert ("SYNTHETIC" in (out / "report.html").read_text()) == (path.stem == "synthetic")
