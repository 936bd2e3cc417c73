"""Read an experiment's folder: what was planned, and what of it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

from fedfair.data.crossing import group_names, known
from fedfair.errors import RunError, counted
from fedfair.report._evaluation import Evaluation, load_evaluation, metrics_of
from fedfair.uploads import ALL

Record = Mapping[str, Any]

EXPERIMENT, ROUNDS, EVALUATION = "experiment.json", "rounds.jsonl", "evaluation.npz"
PRIVACY, OUTCOME, LEDGERS = "privacy.json", "outcome.json", "ledgers"


@dataclass(frozen=True)
class Run:
    """One seed of one arm: a record per model, and the final evaluation if it was reached.

    `privacy` is what the run promised and spent, `outcome` how it ended, and `folder` where it lies; None
    and empty if there is none.
    """

    seed: int
    arm: str
    records: tuple[Record, ...] = ()
    evaluation: Evaluation | None = None
    privacy: Mapping[str, Any] | None = None
    folder: Path = Path()
    outcome: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last_round(self) -> int:
        """Rounds behind the last model on record; -1 if there is none."""
        return int(self.records[-1]["round"]) if self.records else -1

    @property
    def last_tested(self) -> int:
        """Rounds behind the last model whose test metrics are known; -1 if there is none."""
        return max((int(r["round"]) for r in self.records if r["test"]), default=-1)

    @property
    def capped(self) -> str | None:
        """Why training ended early at the privacy cap, or None."""
        return None if self.privacy is None else self.privacy["stopped"]

    @property
    def stopped(self) -> str | None:
        """Why training ended early, for whatever reason, or None."""
        return self.capped or self.outcome.get("stopped")

    def test_at(self, round_number: int) -> Record | None:
        """Return the test metrics of the model after `round_number` rounds, or None."""
        return next((r["test"] for r in self.records if r["round"] == round_number and r["test"]), None)


@dataclass(frozen=True)
class Experiment:
    """What experiment.json says, and the runs that were found.

    Attributes are those of the file; `arms[0]` is the baseline. `runs` holds one `Run` for every
    planned (seed, arm), empty if it was not started.
    """

    name: str
    command: str
    status: str
    created: str
    finished: str | None
    synthetic: bool
    seeds: Sequence[int]
    arms: Sequence[str]
    attribute: str
    rounds: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    code_digest: str
    schema: Mapping[str, Any]
    runs: Mapping[tuple[int, str], Run] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def attributes(self) -> Mapping[str, Sequence[str]]:
        """Group names of each attribute, in the order of the product cells."""
        attributes: Mapping[str, Sequence[str]] = self.schema["attributes"]
        return attributes

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of the modulated attribute or crossing."""
        return group_names(self.attributes, self.attribute)

    @property
    def known_groups(self) -> tuple[str, ...]:
        """Those of `groups` that are compared, and that methods see."""
        return tuple(compress(self.groups, known(self.attributes, self.attribute)))

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of groups of each attribute."""
        return tuple(len(groups) for groups in self.attributes.values())

    @property
    def min_count(self) -> int:
        """Records of a class below which a group's AUC is not estimated."""
        return int(self.config.get("report", {}).get("group_min", 10))

    @property
    def resamples(self) -> int:
        """Bootstrap resamples."""
        return int(self.config.get("report", {}).get("resamples", 1000))

    @property
    def privacy(self) -> Mapping[str, Any]:
        """The privacy section of the configuration; mode off if it has none."""
        return {"mode": "off", **self.config.get("privacy", {})}

    @property
    def private(self) -> bool:
        """Whether the experiment is about differential privacy."""
        return bool(self.privacy["mode"] != "off")

    @property
    def summed(self) -> bool:
        """Whether the server saw sums over sites alone, so that nothing of one site is known."""
        return bool(self.config.get("secure", {}).get("enabled", False))

    @property
    def shown_sites(self) -> tuple[str, ...]:
        """Whose figures an evaluation holds: each site's, or those of all together."""
        return (ALL,) if self.summed else tuple(self.schema["sites"])

    @property
    def untested(self) -> bool:
        """Whether test metrics are not to be known at all."""
        return self.private and self.privacy.get("evaluation") == "none"

    @property
    def validated(self) -> bool:
        """Whether rounds were measured on validation records, and only the kept model on test records."""
        return float(self.config.get("data", {}).get("validation_fraction", 0.0)) > 0

    @cached_property
    def compared_round(self) -> int:
        """The round whose models are compared; -1 if no model was evaluated.

        The last planned one as soon as any run reached it, else the last one that all runs with a
        record have reached, so that arms are never compared at different rounds. A run that ended
        early for a reason of its own has reached its end; where rounds saw validation records, the kept
        models are compared.
        """
        if self.validated:
            return self.rounds if any(run.evaluation for run in self.runs.values()) else -1
        found = [run for run in self.runs.values() if run.records]
        reached = [self.rounds if run.stopped else run.last_tested for run in found]
        if not any(run.last_tested >= 0 for run in found):
            return -1
        return self.rounds if max(reached) >= self.rounds else min(reached)

    def compared(self, arm: str) -> dict[int, Record]:
        """Return by seed the test metrics of an arm's models after `compared_round` rounds.

        Of a run that ended early they are those of its last model, and of its kept one where rounds
        were measured on validation records.
        """
        runs = [self.runs[seed, arm] for seed in self.seeds]
        if self.validated:
            return {run.seed: self._tested(run.evaluation) for run in runs if run.evaluation}
        last = [run.last_round if run.stopped else self.compared_round for run in runs]
        found = {run.seed: run.test_at(number) for run, number in zip(runs, last, strict=True)}
        return {seed: test for seed, test in found.items() if test is not None}

    def _tested(self, evaluation: Evaluation) -> Record:
        return metrics_of(evaluation, self.shown_sites, self.schema, self.attribute, self.min_count)

    @cached_property
    def shown_seed(self) -> int:
        """The first seed with the most final evaluations: tables of one seed show this one."""
        return max(self.seeds, key=lambda seed: len(self._evaluated(seed)))

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The final evaluations of the shown seed, by arm."""
        return self._evaluated(self.shown_seed)

    def _evaluated(self, seed: int) -> dict[str, Evaluation]:
        return {arm: e for arm in self.arms if (e := self.runs[seed, arm].evaluation)}

    def gaps(self) -> list[str]:
        """Return one phrase per planned run that is not whole; empty if the experiment is."""
        return [
            f"seed {run.seed}, {run.arm}: {missing}"
            for run in self.runs.values()
            if (missing := self._missing(run))
        ]

    def _missing(self, run: Run) -> str:
        if not run.records:
            return "no results"
        if run.last_round < self.rounds and (run.capped or not run.stopped):
            cap = ", where it reached its privacy cap" if run.capped else ""
            return f"{run.last_round} of {counted(self.rounds, 'round')}{cap}"
        return "" if run.evaluation or self.untested else "no final evaluation"


def load(folder: Path) -> Experiment:
    """Return the experiment in `folder`, whole or interrupted.

    Raises
    ------
    RunError
        If there is no experiment.json or it lacks a key.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        raise RunError(f"`folder` must hold {EXPERIMENT}, got {folder}; give the folder of an experiment")
    plan = json.loads(path.read_text(encoding="utf-8"))
    names = {item.name for item in fields(Experiment)} - {"runs"}
    if missing := sorted(names - plan.keys()):
        raise RunError(f"{path} must have the keys {missing}, it does not; run the experiment again")
    pairs = [(seed, arm) for seed in plan["seeds"] for arm in plan["arms"]]
    runs = {(seed, arm): _load_run(folder / f"seed-{seed}" / arm, seed, arm) for seed, arm in pairs}
    return Experiment(**{name: plan[name] for name in names}, runs=runs)


def _load_run(folder: Path, seed: int, arm: str) -> Run:
    rounds = folder / ROUNDS
    lines = rounds.read_text(encoding="utf-8").splitlines() if rounds.is_file() else []
    # A crash may leave the last line half written.
    records = tuple(json.loads(line) for line in lines if line.endswith("}"))
    evaluation = load_evaluation(folder / EVALUATION)
    return Run(seed, arm, records, evaluation, _told(folder / PRIVACY), folder, _told(folder / OUTCOME) or {})


def _told(path: Path) -> Mapping[str, Any] | None:
    """Return what a run wrote of itself, or None if it did not get so far."""
    found: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found
