"""A privacy-budget experiment: its cells, what they cost and what they reached."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedfair.budget import releases_statistics
from fedfair.config import Config, parse
from fedfair.errors import RunError
from fedfair.record import MODEL, PRIVACY, ROUNDS
from fedfair.report._load import Record
from fedfair.report._results import METRICS, Estimate, level_over_seeds, number, over_seeds

SWEEP, CELLS, ERROR = "sweep.json", "cells", "error.txt"
DONE, FAILED, MISSING = "done", "failed", "missing"
MEASURES = tuple(metric for metric in METRICS if metric.key.endswith("auc"))


@dataclass(frozen=True)
class Cell:
    """One run: its final test metrics and its privacy account; both empty unless it is done.

    Attributes
    ----------
    resolved : float
        Share of group gaps, over heads, groups and releases, that were told from noise; NaN if the
        run released no noised statistics.
    failures : int
        Answers of sites that never came, over all rounds.
    """

    seed: int
    status: str
    test: Record = field(default_factory=dict)
    account: Record = field(default_factory=dict)
    resolved: float = math.nan
    failures: int = 0
    error: str = ""

    def value(self, key: str) -> float:
        """Return a metric, or ``group_auc/GROUP``; NaN if it is not known."""
        name, _, group = key.partition("/")
        found = self.test.get(name)
        return number(found.get(group) if group and found else found)


@dataclass(frozen=True)
class Setting:
    """One arm with one method at one epsilon, and its cells by seed."""

    arm: str
    method: str
    epsilon: float
    config: Config
    cells: Sequence[Cell]

    @property
    def spent(self) -> float:
        """Epsilon of one site's run; infinite if anything left without noise, NaN if no cell is done."""
        if self.config.privacy.exact:
            return math.inf
        accounts = [cell.account for cell in self.cells if cell.account]
        return number(accounts[0]["epsilon"]) if accounts else math.nan

    @property
    def releases(self) -> int:
        """Releases of statistics in a run."""
        return sum(releases_statistics(self.config, r) for r in range(1, self.config.rounds + 2))

    def level(self, key: str) -> Estimate:
        """Return the mean of a metric over seeds."""
        return level_over_seeds([cell.value(key) for cell in self.cells])

    def minus(self, other: Setting, key: str) -> Estimate:
        """Return the mean difference of a metric, paired by seed."""
        values = {cell.seed: cell.value(key) for cell in other.cells}
        return over_seeds([cell.value(key) - values[cell.seed] for cell in self.cells])


@dataclass(frozen=True)
class Budget:
    """What ``sweep.json`` says, and its settings with their cells."""

    plan: Mapping[str, Any]
    settings: Sequence[Setting]

    @property
    def arms(self) -> Mapping[str, str]:
        """What each arm means, by name."""
        arms: Mapping[str, str] = self.plan["arms"]
        return arms

    @property
    def groups(self) -> Sequence[str]:
        """Names of the modulated attribute's groups."""
        groups: Sequence[str] = self.plan["groups"]
        return groups

    @property
    def epsilons(self) -> list[float]:
        """Finite targets, the largest first."""
        return sorted({s.epsilon for s in self.settings if math.isfinite(s.epsilon)}, reverse=True)

    @cached_property
    def methods(self) -> list[str]:
        """Methods that modulate, or federated averaging if nothing else was run."""
        return list(self.plan["sweep"]["methods"])

    @property
    def cells(self) -> list[Cell]:
        """All planned runs."""
        return [cell for setting in self.settings for cell in setting.cells]

    def count(self, status: str) -> int:
        """Return how many runs have that status."""
        return sum(cell.status == status for cell in self.cells)

    def find(self, arm: str, method: str, epsilon: float) -> Setting | None:
        """Return the arm at an epsilon with that method, or the one it has without methods."""
        found = {s.method: s for s in self.settings if (s.arm, s.epsilon) == (arm, epsilon)}
        return found.get(method) or next((s for s in found.values() if s.method not in self.methods), None)

    def reference(self, setting: Setting) -> Setting | None:
        """Return the arm without privacy, of the same method."""
        return self.find(self.plan["reference"], setting.method, math.inf)

    def pairs(self) -> list[tuple[Setting, Setting, str]]:
        """Return which settings are compared, and what the difference says."""
        return [
            (own, other, says)
            for arm, minus, says in self.plan["pairs"]
            for own in self.settings
            if own.arm == arm and (other := self.find(minus, own.method, own.epsilon))
        ]

    @cached_property
    def statement(self) -> str:
        """What every epsilon here means: delta, unit, relation, accountant."""
        accounts = [
            cell.account for cell in self.cells if cell.account and cell.account["epsilon"] is not None
        ]
        known = sorted({(a["delta"], a["unit"], a["relation"], a["accountant"]) for a in accounts})
        if not known:
            return "No private run is done yet."
        delta, whose, relation, _ = known[0]
        accountants = " or ".join(dict.fromkeys(name for *_, name in known))
        fixed = self.plan["config"]["privacy"]["noise_seed"] is not None
        return (
            f"Each epsilon is of one site's whole run, statistics included, at delta {delta:.3g} for {whose} "
            f"under {relation}, by {accountants}."
            + " Here the noise comes from a fixed seed: the figures repeat, and protect nobody."
            * fixed
        )


def load_budget(folder: Path) -> Budget:
    """Return the sweep in `folder`, whole or interrupted.

    Raises
    ------
    RunError
        If there is no sweep.json.
    """
    path = folder / SWEEP
    if not path.is_file():
        raise RunError(f"`folder` must hold {SWEEP}, got {folder}; give the folder of a sweep")
    plan = json.loads(path.read_text(encoding="utf-8"))
    return Budget(plan, [_setting(folder, plain, plan["seeds"]) for plain in plan["settings"]])


def _setting(folder: Path, plain: Mapping[str, Any], seeds: Sequence[int]) -> Setting:
    own = folder / CELLS / plain["folder"]
    config = parse(plain["config"])
    cells = [_cell(own / f"seed-{seed}", seed, config) for seed in seeds]
    return Setting(plain["arm"], plain["method"], float(plain["epsilon"]), config, cells)


def _cell(folder: Path, seed: int, config: Config) -> Cell:
    error = folder / ERROR
    if error.is_file():
        return Cell(seed, FAILED, error=error.read_text(encoding="utf-8").strip())
    if not (folder / MODEL).is_file():  # the last file that a run writes
        return Cell(seed, MISSING)
    records = [json.loads(line) for line in (folder / ROUNDS).read_text(encoding="utf-8").splitlines()]
    account = json.loads((folder / PRIVACY).read_text(encoding="utf-8"))
    failures = sum(len(record["failed"]) for record in records)
    # Rounds that were measured on validation records tell nothing of the test records.
    test = {} if config.data.validation_fraction else records[-1]["test"]
    return Cell(seed, DONE, test, account, _resolved(records), failures)


def _resolved(records: Sequence[Record]) -> float:
    seen = [record["diagnostics"] for record in records if "auc_weight" in record["diagnostics"]]
    evident = [(np.array(d["auc_weight"], float) > 0) | (np.array(d["loss_weight"], float) > 0) for d in seen]
    return float(np.mean(evident)) if evident else math.nan
