"""Every shipped configuration is read and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfair.cli import main
from fedfair.config import load, parse
from fedfair.data.eye import PROFILES
from fedfair.federation.consortium import load_consortium
from simulations.sweep_file import read_sweep
from tests.apps.runs import ROOT, rounds


def command(path: Path) -> str:
    """Return what a file's first line says that runs it."""
    return path.read_text().splitlines()[0]


FILES = sorted((ROOT / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if command(path).startswith("# fedfair simulate ")]
FEDERATIONS = [path for path in FILES if command(path).startswith("# fedfair federation ")]
SWEEPS = [path for path in FILES if path not in [*CONFIGS, *FEDERATIONS]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_says_how_it_is_run(path: Path) -> None:
    assert command(path) == f"# fedfair simulate configs/{path.name}"
    assert load(path).name == path.stem


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_a_sweep_says_how_it_is_run(path: Path) -> None:
    assert command(path) == f"# fedfair sweep configs/{path.name}"
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    base = load(path.parent / sweep.base, sweep.overrides)
    assert len(sweep.settings(base)) > len(sweep.arms)


@pytest.mark.parametrize("path", FEDERATIONS, ids=lambda p: p.stem)
def test_a_consortium_says_what_is_made_of_it(path: Path, tmp_path: Path) -> None:
    assert command(path) == f"# fedfair federation init configs/{path.name}"
    assert main(["federation", "init", str(path), "--output", str(tmp_path / "made")]) == 0
    assert len(list((tmp_path / "made" / "bundles").iterdir())) == len(load_consortium(path).sites)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_survives_plain_data(path: Path) -> None:
    config = load(path)
    assert parse(config.to_dict()) == config


def shortened(path: Path, tmp_path: Path) -> list[str]:
    """Return what makes a run short; a licensed set's stand-in is made as its file says."""
    config, values = load(path), ["rounds=2", "report.resamples=20"]
    if config.data.name == "phantom":
        values += ["data.options.patients=80", "data.options.size=32", "training.local_epochs=1"]
    if config.data.name in PROFILES:
        stand_in = next(line for line in path.read_text().splitlines() if "fedfair data phantom" in line)
        words = stand_in.partition(": fedfair ")[2].removesuffix(" (SYNTHETIC)").split()
        assert words[-1] == config.data.path
        small = ["--patients", "80", "--size", "32", "--slices", "4"]
        assert main([*words[:-1], str(tmp_path / "made"), *small]) == 0
        values += [f"data.path={tmp_path / 'made'}", "data.options.size=32", "data.options.cache=false"]
        values += ["training.local_epochs=1"]
        if config.data.partition:
            values += ["data.partition.smallest=20"]
    return [part for value in values for part in ("--set", value)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_configuration_runs(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["simulate", str(path), "--output", str(out), *shortened(path, tmp_path)]) == 0
    assert [r["round"] for r in rounds(out / "seed-0" / load(path).method.name)] == [0, 1, 2]
    made_up = load(path).data.name in ("synthetic", "phantom", *PROFILES)
    assert ("SYNTHETIC" in (out / "report.html").read_text(encoding="utf-8")) == made_up


def test_a_file_of_the_other_kind_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(ROOT / "configs" / "privacy_budget.yaml")]) == 1
    assert "run it with `fedfair sweep`" in capsys.readouterr().err
    assert main(["sweep", str(ROOT / "configs" / "heart.yaml")]) == 1
    assert "run it with `fedfair simulate`" in capsys.readouterr().err
