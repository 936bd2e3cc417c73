"""The report's page, and the same headline as plain text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedfair.data.schema import UNKNOWN
from fedfair.errors import counted
from fedfair.metrics import auc_bound
from fedfair.report import _privacy, _rounds, _sums, _tables
from fedfair.report._absent import absent, shown
from fedfair.report._load import Experiment, load
from fedfair.report._macros import MACROS
from fedfair.report._privacy_page import PRIVACY
from fedfair.report._results import METRICS, Estimate, Verdict, differences, headline, verdicts
from fedfair.report._rounds_page import ROUNDS
from fedfair.report._style import STYLE
from fedfair.report._table_sections import TABLES
from fedfair.report._template import PAGE
from fedfair.resolution import AUC_SD, RATE_SD

REPORT = "report.html"
PARTS = {"page": PAGE, "macros": MACROS, "privacy": PRIVACY, "tables": TABLES, "rounds": ROUNDS}
MOST_PANELS, MOST_FAILURES = 6, 40  # runs in the figure of who took part, rows in the table of failures


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into an experiment's folder and return its path.

    The page is one file without scripts or links, whole or interrupted experiments alike.

    Raises
    ------
    RunError
        If the folder holds no experiment.
    """
    path = folder / REPORT
    path.write_text(render(load(folder)), encoding="utf-8")
    return path


def render(experiment: Experiment) -> str:
    """Return the page of an experiment."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader(PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "number": number_text,
        "signed": signed_text,
        "percent": percent_text,
        "moment": moment_text,
        "epsilon": epsilon_text,
        "counted": counted,
    }
    return environment.get_template("page").render(_context(experiment)).strip() + "\n"


def _context(experiment: Experiment) -> dict[str, Any]:
    compared = differences(experiment)
    patients = _tables.patient_rows(experiment)
    seed_counts = {len(experiment.compared(arm)) for arm in experiment.arms}
    config = yaml.safe_dump(dict(experiment.config), sort_keys=False, allow_unicode=True)
    return {
        "x": experiment,
        "style": STYLE,
        "binary": len(experiment.schema["classes"]) == 2,
        "groups": shown(experiment, experiment.attribute),
        "absent": absent(experiment, experiment.attribute),
        "masked": any(UNKNOWN in groups for groups in experiment.attributes.values()),
        "seed_counts": seed_counts,
        "many": max(seed_counts) > 1,
        "totals": _totals(experiment, patients),
        "released": any(e.released for e in experiment.evaluations.values()),
        "linear": AUC_SD,
        "rate_limit": RATE_SD,
        "sums": _sums.opening(experiment),
        "privacy": _private(experiment),
        "rounds": _training(experiment),
        "gaps": experiment.gaps(),
        "metrics": METRICS,
        "headline": headline(experiment),
        "differences": compared,
        "verdicts": verdicts(experiment, compared),
        "group_tables": _tables.group_tables(experiment),
        "count_heads": _tables.count_heads(experiment),
        "site_rows": _tables.site_rows(experiment),
        "pooled_and_within": _tables.pooled_and_within(experiment),
        "patient_rows": patients,
        "coverage_rows": _tables.coverage_rows(experiment),
        "config": config,
        **_score_bins(experiment),
        **_drawn(experiment),
    }


def _totals(experiment: Experiment, rows: Sequence[_tables.PatientRow]) -> dict[str, int]:
    """Return how many training and test records there are, as far as that may be known."""
    train = [row.train for row in rows if row.train is not None]
    pooled = [e.pooled.counts[0].sum() for e in experiment.evaluations.values()]
    return {"train": int(np.sum(train)), "test": round(float(pooled[0])) if pooled else 0}


def _private(experiment: Experiment) -> dict[str, Any]:
    """Return what the privacy section shows; empty if nothing is protected."""
    if not experiment.private:
        return {}
    return {
        "accounts": _privacy.accounts(experiment),
        "stops": _privacy.stops(experiment),
        "not_private": _privacy.not_private(experiment),
        "constants": _privacy.constants(experiment),
        "unprotected": _privacy.unprotected(experiment),
        "ledgers": _privacy.ledgers(experiment),
        "tables": _privacy.released_tables(experiment),
    }


def _training(experiment: Experiment) -> dict[str, Any]:
    """Return what the section on the rounds shows."""
    from fedfair.report import _rounds_figure

    missed = _rounds.presences(experiment)
    return {
        "any": any(run.last_round > 0 for run in experiment.runs.values()),
        "presence": _rounds_figure.presence(missed[:MOST_PANELS]),
        "left_out": len(missed[MOST_PANELS:]),
        "failures": _rounds.failures(experiment),
        "most": MOST_FAILURES,
        "repeated": _rounds.repeated(experiment),
        "endings": _rounds.endings(experiment),
        "notices": _rounds.notices(experiment),
    }


def _score_bins(experiment: Experiment) -> dict[str, float]:
    """Return the number of bins, and the largest error that binning may cause in an overall AUC."""
    fused = [e.pooled.histograms[0].sum(0) for e in experiment.evaluations.values()]
    bounds = [float(auc_bound(histogram).max()) for histogram in fused]
    known = [bound for bound in bounds if bound >= 0]  # noise may leave none
    return {"bins": fused[0].shape[-1] if fused else 0, "bound": max(known, default=math.nan)}


def _drawn(experiment: Experiment) -> dict[str, Any]:
    from fedfair.report import _figures

    maps = [(arm, _figures.coefficients(experiment, arm), _live(experiment, arm)) for arm in experiment.arms]
    return {
        "curves": _figures.curves(experiment),
        "coefficients": [item for item in maps if item[1]],
        "unimodal": _figures.unimodal(experiment),
    }


def _live(experiment: Experiment, arm: str) -> bool:
    records = (r for seed in experiment.seeds for r in experiment.runs[seed, arm].records)
    return any(record["coefficients"]["live"] for record in records if record["coefficients"])


def number_text(value: float) -> str:
    """Return three decimals, or n.e. for not estimable."""
    return "n.e." if math.isnan(value) else f"{value:.3f}"


def signed_text(value: float) -> str:
    """Return three decimals with a sign, no negative zero, and a minus rather than a hyphen."""
    return "n.e." if math.isnan(value) else f"{value:+z.3f}".replace("-", "\N{MINUS SIGN}")


def percent_text(part: int, whole: int) -> str:
    """Return a share as a whole percentage, or n.e. of nothing."""
    return f"{part / whole:.0%}" if whole else "n.e."


def moment_text(moment: str | None) -> str:
    """Return an ISO date and time as people write it, or that there is none yet."""
    return moment.replace("T", " ").replace("+00:00", " UTC") if moment else "not finished"


def epsilon_text(value: float | None) -> str:
    """Return four digits, infinite for what JSON has no number for, or unknown."""
    if value is None or value == math.inf:
        return "infinite"
    return "unknown" if math.isnan(value) else f"{value:.4g}"


def comparison_table(folder: Path) -> str:
    """Return the headline of an experiment as an aligned plain-text table.

    A line per method, then per method a line of paired differences from the baseline, then the
    verdict, then what was promised of privacy. Intervals are those of the report.

    Raises
    ------
    RunError
        If the folder holds no experiment.
    """
    experiment = load(folder)
    compared = differences(experiment)
    rows = [["method", *(metric.label for metric in METRICS), "seeds"]]
    for arm, row in headline(experiment).items():
        rows.append([arm, *(_cell(row[m.key], ".3f") for m in METRICS), str(row["auc"].seeds)])
    for arm, changes in compared.items():
        cells = [_cell(changes[m.key].estimate, "+z.3f") for m in METRICS]
        rows.append([f"{arm} - {experiment.baseline}", *cells, str(changes["auc"].estimate.seeds)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    gaps = [f"incomplete: {gap}" for gap in experiment.gaps()]
    said = [_sentence(verdict) for verdict in verdicts(experiment, compared)]
    table = [lines[0], "-" * len(lines[0]), *lines[1:]]
    if experiment.untested:
        table = ["test figures are not released (`privacy.evaluation: none`)"]
    return "\n".join([*table, *gaps, *said, *_privacy.statement_lines(experiment)])


def _sentence(verdict: Verdict) -> str:
    parts = {
        "better in": [metric.label for metric, _ in verdict.better],
        "worse in": [metric.label for metric, _ in verdict.worse],
        "no difference shown in": [metric.label for metric in verdict.not_shown],
        "not estimable": [metric.label for metric in verdict.not_known],
    }
    said = [f"{words} {', '.join(labels)}" for words, labels in parts.items() if labels]
    return f"{verdict.heading}: {verdict.remark or '; '.join(said) + '.'}"


def _cell(estimate: Estimate, form: str) -> str:
    if math.isnan(estimate.value):
        return "n.e."
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.value:{form}}{interval}"
