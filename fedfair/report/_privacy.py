"""What the report says of privacy: what each run promised and spent, and whom nothing protects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedfair.config import load as load_config
from fedfair.errors import MissingDependency, PrivacyError
from fedfair.privacy.accounting import Event, epsilon
from fedfair.privacy.ledger import Ledger
from fedfair.privacy.settings import PrivacyConfig, statistics_event, training_event
from fedfair.report._load import LEDGERS, Experiment, Record, Run
from fedfair.report._results import number
from fedfair.report._rounds import by_run

EXACT_TEST = ("Test patients.", "The test figures are exact sums over them (evaluation: exact).")
OF_SITES = (("Sites from the server.", "It sees each site's update before noise, and must be trusted."),)
OF_RECORDS = (
    ("A hospital's mix.", "How many of its patients are of a group, or ill, is no one patient's secret."),
    ("A patient at two hospitals.", "What was spent at both adds up."),
)
OF_ALL = (
    ("Who takes part.", "Sites, their names, and all constants of the mechanism are public."),
    (
        "The choice among runs.",
        "Every method and seed has an account of its own, as if it alone had been run. On real patients "
        "their losses add up, and so does every trial before them.",
    ),
)


@dataclass(frozen=True)
class ArmAccount:
    """What the costliest seed of an arm promised and spent, and what it was made of.

    Attributes
    ----------
    arm, seed : str, int
        Which run.
    account : Record
        As the run wrote it.
    training, statistics : Event
        One round's training and one release.
    """

    arm: str
    seed: int
    account: Record
    training: Event
    statistics: Event


@dataclass(frozen=True)
class LedgerEntry:
    """What a site's ledger says: epsilon (NaN if nobody can tell), runs and steps."""

    epsilon: float
    runs: int
    steps: int


@dataclass(frozen=True)
class ReleasedRow:
    """One head on one group in a release; `..._kept` is the share of a gap that noise does not explain."""

    head: str
    group: str
    auc: float
    auc_sd: float
    resolved: bool
    auc_gap: float
    auc_gap_sd: float
    auc_kept: float
    loss_gap: float
    loss_gap_sd: float
    loss_kept: float


@dataclass(frozen=True)
class ReleasedTable:
    """The last release of one arm."""

    arm: str
    seed: int
    round: int
    rows: Sequence[ReleasedRow]


def accounts(experiment: Experiment) -> list[ArmAccount]:
    """Return the account of each arm that has one: of the seed that spent most."""
    found = []
    for arm in experiment.arms:
        runs = [run for seed in experiment.seeds if (run := experiment.runs[seed, arm]).privacy]
        if runs:
            run = max(runs, key=_spent)
            privacy = load_config(run.folder / "config.yaml").privacy
            found.append(
                ArmAccount(
                    arm, run.seed, run.privacy or {}, training_event(privacy), statistics_event(privacy)
                )
            )
    return found


def _spent(run: Run) -> float:
    value = (run.privacy or {})["epsilon"]
    return math.inf if value is None else float(value)


def stops(experiment: Experiment) -> list[str]:
    """Return why training ended at the cap, once for all runs of which it is told."""
    return by_run((run, run.capped or "") for run in experiment.runs.values())


def not_private(experiment: Experiment) -> list[str]:
    """Return why the figures are no promise; empty if they are one, or nothing is protected at all."""
    told = [run.privacy["not_private"] for run in experiment.runs.values() if run.privacy]
    return list(dict.fromkeys(reason for reason in (*told, _configured(experiment)) if reason))


def _configured(experiment: Experiment) -> str | None:
    privacy = experiment.privacy
    return PrivacyConfig(exact=privacy.get("exact", []), noise_seed=privacy.get("noise_seed")).not_private


def statement_lines(experiment: Experiment) -> list[str]:
    """Return what the terminal says of privacy; nothing if the experiment is not about it."""
    if not experiment.private:
        return []
    found = {item.arm: item.account["statement"] for item in accounts(experiment)}
    lines = [
        f"privacy of {arm}: {found.get(arm, 'not known before a run has ended')}" for arm in experiment.arms
    ]
    return [*lines, *stops(experiment), *(f"NOT PRIVATE: {reason}" for reason in not_private(experiment))]


def ledgers(experiment: Experiment) -> dict[str, list[LedgerEntry | None]]:
    """Return by site what its ledger says of each arm in the shown seed; None where there is none."""
    by_arm = [_ledgers(experiment, experiment.runs[experiment.shown_seed, arm]) for arm in experiment.arms]
    sites = dict.fromkeys(site for found in by_arm for site in found)
    order = list(experiment.schema["sites"])
    ordered = sorted(sites, key=lambda site: order.index(site) if site in order else len(order))
    return {site: [found.get(site) for found in by_arm] for site in ordered}


def _ledgers(experiment: Experiment, run: Run) -> dict[str, LedgerEntry]:
    paths = sorted((run.folder / LEDGERS).glob("*.json"))
    return dict(_ledger(path, experiment, run) for path in paths)


def _ledger(path: Path, experiment: Experiment, run: Run) -> tuple[str, LedgerEntry]:
    """Return whose ledger it is, and what it says; NaN for one that cannot be read."""
    delta = float(experiment.privacy["target_delta"])
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        site, runs = str(document["site"]), len(document["runs"])
        events = Ledger(path, document["dataset"], site, delta, None).events()
    except (PrivacyError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"damaged ledger {path.name}", LedgerEntry(math.nan, 0, 0)
    spent = _known_epsilon(events, delta, run.privacy or {})
    return site, LedgerEntry(spent, runs, sum(event.steps for event in events))


def _known_epsilon(events: tuple[Event, ...], delta: float, account: Record) -> float:
    # A search of the accountant takes seconds, and most ledgers hold one run alone.
    if account and [vars(event) for event in events] == account["events"]:
        return math.inf if account["epsilon"] is None else float(account["epsilon"])
    return _epsilon(events, delta)


@lru_cache(maxsize=64)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    try:
        return epsilon(events, delta)
    except MissingDependency:
        return math.nan


def constants(experiment: Experiment) -> dict[str, object]:
    """Return the public constants of the mechanism by name, as far as the mode has them."""
    privacy = experiment.privacy
    records = privacy["mode"] == "sample"
    statistics: Mapping[str, object] = privacy.get("statistics") or {}
    names = {
        "clipping bound C of a site": privacy.get("clipping_norm"),
        "clipping bound C of a record": privacy.get("max_grad_norm"),
        "clipping": privacy.get("clipping") if records else None,
        "noise by block": privacy.get("noise_units") if records else None,
        "steps per round": privacy.get("local_steps"),
        "expected batch": privacy.get("expected_batch"),
        "rounds between releases": statistics.get("every"),
        "bins of a released histogram": statistics.get("bins"),
        "loss bound (nats)": statistics.get("loss_bound"),
        "memory of earlier releases": statistics.get("memory"),
        "cap on a ledger": privacy.get("max_epsilon"),
    }
    return {name: value for name, value in names.items() if value is not None}


def unprotected(experiment: Experiment) -> list[tuple[str, str]]:
    """Return what no figure on the page protects, each with a word of why."""
    mode, evaluation = experiment.privacy["mode"], experiment.privacy.get("evaluation")
    found = [EXACT_TEST] if evaluation == "exact" else []
    return [*found, *(OF_SITES if mode == "site" else OF_RECORDS), *OF_ALL]


def released_tables(experiment: Experiment) -> list[ReleasedTable]:
    """Return per arm the group statistics of its last release in the shown seed, as modulation saw them."""
    tables = []
    for arm in experiment.arms:
        records = experiment.runs[experiment.shown_seed, arm].records
        if last := next((r for r in reversed(records) if "auc_gap_sd" in r["diagnostics"]), None):
            tables.append(ReleasedTable(arm, experiment.shown_seed, last["round"], _rows(experiment, last)))
    return tables


def _rows(experiment: Experiment, record: Record) -> list[ReleasedRow]:
    seen = record["diagnostics"]
    gaps = [f"{kind}_{part}" for kind in ("auc", "loss") for part in ("gap", "gap_sd", "weight")]
    keys = ["auc", "auc_sd", "resolved", *gaps]
    heads = ["all together (fused)", *experiment.schema["modalities"]]
    rows = []
    for h, head in enumerate(heads):
        for g, group in enumerate(experiment.known_groups):
            auc, auc_sd, resolved, *rest = (number(seen[key][h][g]) for key in keys)
            rows.append(ReleasedRow(head, group, auc, auc_sd, bool(resolved), *rest))
    return rows
