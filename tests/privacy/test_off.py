"""Without privacy nothing of it is there: no Opacus is imported, no ledger written, no leaf declared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.apps.runs import HEART, ROOT

SCRIPT = """
import json, sys
from fedfair.cli import main
code = main(sys.argv[1:])
found = sorted(m for m in sys.modules if m.partition(".")[0] in ("opacus", "dp_accounting"))
told = {"code": code, "found": found, "privacy": "fedfair.privacy.site" in sys.modules}
json.dump(told, open("told.json", "w"))
"""


def told(folder: Path, *arguments: str) -> dict[str, object]:
    """Run a command in a process of its own and return what it had imported in the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    found: dict[str, object] = json.loads((folder / "told.json").read_text())
    return found


def test_a_whole_run_without_privacy_imports_no_opacus(tmp_path: Path) -> None:
    quick = ("--output", "out", "--set", "rounds=1", "--set", "report.resamples=20")
    found = told(tmp_path, "simulate", str(HEART), *quick)
    assert found == {"code": 0, "found": [], "privacy": False}
    assert (tmp_path / "out" / "seed-0" / "dual_mimo" / "model.pt").is_file()
    assert not list(tmp_path.rglob("privacy.json"))
    assert not list(tmp_path.rglob("*ledger*"))


def test_the_same_run_with_privacy_does(tmp_path: Path) -> None:
    """So the check above can fail."""
    quick = ("--output", "out", "--set", "rounds=1", "--set", "report.resamples=20")
    sigmas = (
        "privacy.target_epsilon=null",
        "privacy.noise_multiplier=4",
        "privacy.statistics.noise_multiplier=9",
    )
    overrides = [part for override in sigmas for part in ("--set", override)]
    found = told(tmp_path, "simulate", str(ROOT / "configs" / "heart_private.yaml"), *quick, *overrides)
    assert found["code"] == 0
    assert found["privacy"]
    assert "opacus" in found["found"]  # type: ignore[operator]
