"""The figures of a privacy-budget experiment. Needs matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedfair.errors import counted
from fedfair.report._budget import DONE, MEASURES, Budget, Setting
from fedfair.report._figures import BASELINE_COLOUR, COLOURS, STYLE, svg
from fedfair.report._results import Estimate, Metric

CAPTION = 150  # characters a line
STATISTICS = ("gated", "oracle_statistics")  # differ in the statistics alone
MARKERS = "osD^vP"
GREYS = (BASELINE_COLOUR, "#9aa0a6")  # of arms without noise
WIDTH = 0.62  # of an epsilon's place on the axis that its arms share


@mpl.rc_context(STYLE)
def draw(budget: Budget, folder: Path) -> dict[str, str]:
    """Write the figures as PNG and SVG into `folder`; return them as SVG to set into a page, by name.

    ``statistics`` is empty unless both of its arms were run.
    """
    groups = [Metric(f"group_auc/{name}", f"AUC, {name}", True, "") for name in budget.groups]
    figures = {"auc": _levels(budget, MEASURES), "groups": _levels(budget, groups)}
    if any((own.arm, other.arm) == STATISTICS for own, other, _ in budget.pairs()):
        figures["statistics"] = _statistics(budget)
    drawn = dict.fromkeys(("auc", "groups", "statistics"), "")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        drawn[name] = svg(figure, name)
        (folder / f"{name}.svg").write_text(drawn[name], encoding="utf-8")
    return drawn


def _levels(budget: Budget, measures: Sequence[Metric]) -> Figure:
    """Return metrics against epsilon: a row per method, a column per metric, a mark per arm.

    Marks are means over seeds with 95 % t intervals, hollow where something left without noise.
    Federated averaging stands in every row.
    """
    figure = Figure(figsize=(10.4, 1.5 + 2.7 * len(budget.methods)), layout="constrained")
    panels = figure.subplots(len(budget.methods), len(measures), sharex=True, sharey=True, squeeze=False)
    for row, method in zip(panels, budget.methods, strict=True):
        for axes, measure in zip(row, measures, strict=True):
            _panel(axes, budget, method, measure.key)
        row[0].set_ylabel(method)
    for axes, measure in zip(panels[0], measures, strict=True):
        axes.set_title(measure.label)
    return _finish(figure, budget, budget.settings)


def _statistics(budget: Budget) -> Figure:
    """Return what noise on the statistics changes against epsilon, paired by seed: a column per metric."""
    figure = Figure(figsize=(10.4, 3.9), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    between = " \N{MINUS SIGN} ".join(STATISTICS)
    pairs = [(a, b) for a, b, _ in budget.pairs() if (a.arm, b.arm) == STATISTICS]
    for axes, measure in zip(panels, MEASURES, strict=True):
        axes.axhline(0, color=BASELINE_COLOUR, lw=0.9)
        for i, method in enumerate(budget.methods):
            found = {a.epsilon: a.minus(b, measure.key) for a, b in pairs if a.method == method}
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "label": method}
            _marks(axes, budget, found, _shift(i, len(budget.methods)), True, look)
        axes.set_title(f"{measure.label}, {between}")
        _epsilon_axis(axes, budget.epsilons, ())
    return _finish(figure, budget, [setting for pair in pairs for setting in pair])


def _panel(axes: Axes, budget: Budget, method: str, key: str) -> None:
    axes.axhline(0.5, color="#b3261e", lw=0.9, ls=":")
    reference = budget.find(budget.plan["reference"], method, math.inf)
    if reference and not math.isnan(level := reference.level(key).value):
        axes.axhline(level, color=BASELINE_COLOUR, lw=0.9, ls="--")
    found = [(arm, _settings(budget, arm, method)) for arm in budget.arms]
    quiet = [(arm, s) for arm, s in found if math.inf in s]
    noised = [(arm, s) for arm, s in found if s and math.inf not in s]
    for i, (arm, settings) in enumerate(noised):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "label": arm}
        _arm(axes, budget, settings, key, _shift(i, len(noised)), look)
    for i, (arm, settings) in enumerate(quiet):
        look = {"color": GREYS[i % len(GREYS)], "marker": "s", "label": arm}
        _arm(axes, budget, settings, key, _shift(i, len(quiet)), look)
    _epsilon_axis(axes, budget.epsilons, ["no noise"] * bool(quiet))


def _settings(budget: Budget, arm: str, method: str) -> dict[float, Setting]:
    found = {epsilon: budget.find(arm, method, epsilon) for epsilon in (*budget.epsilons, math.inf)}
    return {epsilon: setting for epsilon, setting in found.items() if setting}


def _arm(
    axes: Axes, budget: Budget, settings: dict[float, Setting], key: str, shift: float, look: dict[str, str]
) -> None:
    # A seed of the noise makes figures repeat; it is no property of an arm.
    private = not any(setting.config.privacy.exact for setting in settings.values())
    estimates = {epsilon: setting.level(key) for epsilon, setting in settings.items()}
    _marks(axes, budget, estimates, shift, private, look)


def _marks(
    axes: Axes,
    budget: Budget,
    estimates: dict[float, Estimate],
    shift: float,
    filled: bool,
    look: dict[str, str],
) -> None:
    places = [*sorted(budget.epsilons), math.inf]
    known = sorted((places.index(epsilon) + shift, e) for epsilon, e in estimates.items())
    x, y = np.array([place for place, _ in known]), np.array([e.value for _, e in known])
    ends = np.array([[e.value - e.low, e.high - e.value] for _, e in known]).reshape(-1, 2).T
    # An interval that is not known is not drawn.
    axes.errorbar(
        x,
        y,
        yerr=np.nan_to_num(ends),
        lw=1.2,
        elinewidth=1.1,
        ms=4.5,
        markerfacecolor=look["color"] if filled else "white",
        ls="-" if filled else ":",
        **look,  # type: ignore[arg-type]
    )


def _shift(index: int, count: int) -> float:
    return WIDTH * ((index + 0.5) / count - 0.5)


def _epsilon_axis(axes: Axes, epsilons: Sequence[float], more: Sequence[str]) -> None:
    labels = [f"{epsilon:g}" for epsilon in sorted(epsilons)] + list(more)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(visible=False, axis="x")


def _finish(figure: Figure, budget: Budget, behind: Sequence[Setting]) -> Figure:
    """Add the legend, and below what epsilon means and how many runs are behind the figure."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 8), columnspacing=1.2)
    done = sum(cell.status == DONE for setting in behind for cell in setting.cells)
    runs = f"{counted(done, 'run')}, seeds: {len(budget.plan['seeds'])}"
    marks = "marks are means over seeds with 95 % t intervals."
    said = textwrap.fill(budget.statement, CAPTION)
    figure.supxlabel(f"epsilon\n{said}\n{runs}; {marks}", fontsize=8, color="#57606a")
    return figure
