"""The tables of a privacy-budget experiment, and the same rows as ``results.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfair.privacy.settings import statistics_event, training_event
from fedfair.report._budget import DONE, FAILED, MEASURES, Budget, Cell, Setting
from fedfair.report._html import number_text, signed_text
from fedfair.report._results import Estimate, Metric

CONSTANTS = ("sigma_g", "q", "steps", "rounds", "sigma_h", "releases", "C", "clipping", "trained_values")


@dataclass(frozen=True)
class Table:
    """Text by row and column; the first `names` columns name the row."""

    title: str
    caption: str
    names: int
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table under its title."""
        lines = [self.heads, ["---"] * self.names + ["---:"] * (len(self.heads) - self.names), *self.rows]
        body = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
        return f"## {self.title}\n\n{self.caption}\n\n{body}\n"


def rows(budget: Budget) -> list[dict[str, Any]]:
    """Return one row per run: what it promised, how, and what it reached; None for not known."""
    return [
        {**_promise(setting, cell), **_mechanism(budget, setting), **_outcome(budget, cell)}
        for setting in budget.settings
        for cell in setting.cells
    ]


def _promise(setting: Setting, cell: Cell) -> dict[str, Any]:
    spent = math.inf if setting.config.privacy.exact else cell.account.get("epsilon")
    return {
        "arm": setting.arm,
        "method": setting.method,
        "epsilon_target": setting.epsilon,
        "epsilon_spent": spent if cell.account else None,
        **{key: cell.account.get(key) for key in ("delta", "unit", "relation", "accountant")},
    }


def _mechanism(budget: Budget, setting: Setting) -> dict[str, Any]:
    privacy, training = setting.config.privacy, training_event(setting.config.privacy)
    bound = privacy.max_grad_norm
    return {
        "sigma_g": training.noise_multiplier,
        "q": training.sample_rate,
        "steps": training.steps,
        "rounds": setting.config.rounds,
        "sigma_h": statistics_event(privacy).noise_multiplier if setting.releases else None,
        "releases": setting.releases,
        "C": json.dumps(bound) if isinstance(bound, Mapping) else bound,
        "clipping": privacy.clipping,
        "noise_units": privacy.noise_units,
        "trained_values": budget.plan["trained_values"],
        "not_private": setting.config.privacy.not_private,
    }


def _outcome(budget: Budget, cell: Cell) -> dict[str, Any]:
    return {
        "seed": cell.seed,
        **{m.key: cell.value(m.key) for m in MEASURES},
        **{f"auc_{group}": cell.value(f"group_auc/{group}") for group in budget.groups},
        "resolved_share": cell.resolved,
        "failed_answers": cell.failures,
        "status": cell.status,
        "error": cell.error,
    }


def csv_text(budget: Budget) -> str:
    """Return `rows` as CSV; an empty field is not known or not estimable."""
    table = rows(budget)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: "" if _unknown(value) else value for key, value in row.items()})
    return buffer.getvalue()


def tables(budget: Budget) -> list[Table]:
    """Return the tables: by arm, by group, differences, mechanisms."""
    groups = [Metric(f"group_auc/{name}", _counted(budget, name), True, "") for name in budget.groups]
    interval = "Mean over seeds with its 95% t interval"
    return [
        _levels(budget, "By arm", f"{interval}.", MEASURES),
        _levels(budget, "By group", f"{interval}: AUC by group, with test records of each class.", groups),
        _differences(budget),
        _mechanisms(budget),
    ]


def _levels(budget: Budget, title: str, caption: str, measures: Sequence[Metric]) -> Table:
    rows = [
        [*_names(s), _status(s), *(_text(s.level(m.key), number_text) for m in measures)]
        for s in budget.settings
    ]
    heads = ["arm", "method", "epsilon (spent)", "runs", *(m.label for m in measures)]
    return Table(title, caption, 3, heads, rows)


def _differences(budget: Budget) -> Table:
    rows = [
        [
            _minus(own, other),
            own.method,
            _epsilon(own),
            *(_text(own.minus(other, m.key), signed_text) for m in MEASURES),
        ]
        for own, other, _ in budget.pairs()
    ]
    heads = ["difference", "method", "epsilon (spent)", *(m.label for m in MEASURES)]
    meanings = {_minus(own, other): says for own, other, says in budget.pairs()}
    listed = "; ".join(f"{name}: {says}" for name, says in meanings.items())
    caption = f"Paired by seed: mean difference with its 95% t interval. {listed}."
    return Table("Differences", caption, 3, heads, rows)


def _minus(own: Setting, other: Setting) -> str:
    return f"{own.arm} \N{MINUS SIGN} {other.arm}"


def _mechanisms(budget: Budget) -> Table:
    rows = []
    for setting in budget.settings:
        known = _mechanism(budget, setting)
        shares = [cell.resolved for cell in setting.cells if not math.isnan(cell.resolved)]
        resolved = f"{sum(shares) / len(shares):.0%}" if shares else "-"
        rows.append(
            [*_names(setting), *(_plain(known[key]) for key in CONSTANTS), resolved, _accountant(setting)]
        )
    caption = (
        "Noise multipliers of gradients (sigma_g) and of one release of statistics (sigma_h), sampling rate "
        "q, steps per round, clipping bound C; resolved: share of group gaps that were told from noise."
    )
    heads = [
        "arm",
        "method",
        "epsilon (spent)",
        *(k.replace("_", " ") for k in CONSTANTS),
        "resolved",
        "accountant",
    ]
    return Table("Mechanisms", caption, 3, heads, rows)


def _names(setting: Setting) -> list[str]:
    return [setting.arm, setting.method, _epsilon(setting)]


def _epsilon(setting: Setting) -> str:
    """Return target and spent epsilon; a run that is no promise never shows a number alone."""
    if math.isinf(setting.epsilon):
        return "none (not private)"
    if setting.config.privacy.exact:
        return f"{setting.epsilon:g} (not private)"
    return f"{setting.epsilon:g} ({_plain(setting.spent)})"


def _accountant(setting: Setting) -> str:
    names = sorted({cell.account["accountant"] for cell in setting.cells if cell.account})
    return "-" if setting.config.privacy.exact or not names else " or ".join(names)


def _status(setting: Setting) -> str:
    done = sum(cell.status == DONE for cell in setting.cells)
    failed = sum(cell.status == FAILED for cell in setting.cells)
    return str(done) + (f", {failed} failed" if failed else "")


def _text(estimate: Estimate, form: Callable[[float], str]) -> str:
    if math.isnan(estimate.low):
        return form(estimate.value)
    return f"{form(estimate.value)} ({form(estimate.low)} to {form(estimate.high)})"


def _plain(value: object) -> str:
    if _unknown(value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counted(budget: Budget, group: str) -> str:
    """Return the group's name with its test records by class, of the first run that is done."""
    tests = (cell.test for cell in budget.cells if cell.status == DONE)
    counts: Iterable[float] = next(tests, {}).get("group_counts", {}).get(group, ())
    text = " + ".join(f"{n:g}" for n in counts)
    return f"{group} ({text})" if text else group


def _unknown(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
