"""The README's commands, run word for word in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, flags=re.MULTILINE)


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    assert len(README.splitlines()) <= 120
    assert COMMANDS[:2] == ["make demo", "make test"]


def test_every_link_of_the_readme_exists() -> None:
    links = [x for x in re.findall(r"\]\(([^)#]+)", README) if not x.startswith("http")]
    assert links
    assert [x for x in links if not (ROOT / x).exists()] == []


@pytest.mark.slow
def test_the_fedfair_commands_of_the_readme_run(tmp_path: Path) -> None:
    """Every line but make's, which would install and would start this very test."""
    for name in ("fedfair", "server", "client", "simulations", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for command in COMMANDS[2:]:
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    assert (tmp_path / "runs/heart/003/report.html").stat().st_size > 50_000
