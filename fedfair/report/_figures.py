"""The figures of the report, as SVG text to set into the page. Needs matplotlib."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedfair.report._absent import present, shown
from fedfair.report._load import Experiment, Run
from fedfair.report._results import number

Array = NDArray[np.float64]

# Okabe and Ito's palette, which colour-blind readers can tell apart; the baseline is grey and dashed.
BASELINE_COLOUR = "#5f6368"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[Any, object] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Text stays text, so the page's own font sets it and it can be searched.
    "svg.fonttype": "none",
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a name may hold a dollar sign
}
CURVES = (
    ("train_loss", "Training loss"),
    ("auc", "AUC"),
    ("es_auc", "ES-AUC"),
    ("worst_group_auc", "Worst-group AUC"),
)
FEW_ROUNDS = 12  # a line through so few shows where they are
COEFFICIENT_TICKS = {"1/4": 1 / 4, "1/2": 1 / 2, "2/3": 2 / 3, "1": 1.0, "3/2": 3 / 2, "2": 2.0, "4": 4.0}


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour per arm; the first, the baseline, is grey."""
    return dict(zip(arms, itertools.chain([BASELINE_COLOUR], itertools.cycle(COLOURS)), strict=False))


def svg(figure: Figure, name: str) -> str:
    """Return the figure as an <svg> element that fills its container's width."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The salt makes element ids repeat between calls and differ between figures of one page.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, dpi=200)
    text = buffer.getvalue()
    # Names of groups repeat between figures, where ids must not, and nothing refers to them.
    element = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)


@mpl.rc_context(STYLE)
def curves(experiment: Experiment) -> str | None:
    """Return loss and AUCs over rounds: a line per arm, the mean over seeds, in a band of all seeds.

    What is not known of any round is left out; None if nothing is.
    """
    known = {(key, title): lines for key, title in CURVES if (lines := _lines(experiment, key))}
    if not known:
        return None
    columns = min(2, len(known))
    rows = -(-len(known) // columns)
    figure = Figure(figsize=(8.8, 2.6 * rows), layout="constrained")
    colours = arm_colours(experiment.arms)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, ((_, title), lines) in zip(panels, known.items(), strict=False):
        axes.set_title(title)
        for arm, (rounds, values) in lines.items():
            _curve(axes, rounds, values, arm, colours[arm], arm == experiment.baseline)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("round")
    for axes in figure.axes[len(known) :]:
        axes.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return svg(figure, "curves")


def _lines(experiment: Experiment, key: str) -> dict[str, tuple[Array, Array]]:
    """Return by arm the rounds [R] in which a metric is known for some seed, and the metric [seeds, R]."""
    lines = {}
    for arm in experiment.arms:
        runs = [run for run in experiment.runs.values() if run.arm == arm and run.records]
        rounds, values = _over_rounds(runs, key)
        known = ~np.isnan(values).all(0)
        if known.any():
            lines[arm] = rounds[known], values[:, known]
    return lines


def _over_rounds(runs: Sequence[Run], key: str) -> tuple[Array, Array]:
    """Return the rounds [R] on record and the metric [seeds, R], NaN where a run has none."""
    by_run = [
        {
            r["round"]: number(r["train_loss"] if key == "train_loss" else r["test"].get(key))
            for r in run.records
        }
        for run in runs
    ]
    rounds = sorted(set().union(*by_run))
    values = [[values.get(r, np.nan) for r in rounds] for values in by_run]
    return np.array(rounds, dtype=np.float64), np.array(values).reshape(len(runs), len(rounds))


def _curve(axes: Axes, rounds: Array, values: Array, arm: str, colour: str, dashed: bool) -> None:
    axes.fill_between(rounds, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.15, lw=0)
    axes.plot(
        rounds,
        np.nanmean(values, 0),
        color=colour,
        ls="--" if dashed else "-",
        lw=1.6,
        label=arm,
        marker="o" if rounds.size <= FEW_ROUNDS else None,
        ms=3.5,
    )


@mpl.rc_context(STYLE)
def coefficients(experiment: Experiment, arm: str) -> str | None:
    """Return an arm's coefficients over rounds as a heat map, or None if all are one.

    Rows are blocks by group, colour is log2 of the coefficient (geometric mean over seeds): white
    is 1, which is federated averaging.
    """
    rounds, values = mean_coefficients(experiment, arm)
    if not rounds.size or np.allclose(values, 1.0):
        return None
    labels, groups = _block_labels(experiment), shown(experiment, experiment.attribute)
    there = np.tile(present(experiment, experiment.attribute), len(labels))
    values = values[there]
    figure = Figure(figsize=(8.8, 1.1 + 0.2 * len(values)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    exponents = np.log2(np.clip(values, 0.25, 4.0))
    limit = max(float(np.abs(exponents).max()), np.log2(1.5))  # small deviations shall look small
    image = axes.imshow(
        exponents,
        cmap="PuOr_r",
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        extent=(rounds[0] - 0.5, rounds[-1] + 0.5, len(values) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(values)), [f"{block} · {group}" for block in labels for group in groups])
    axes.hlines(np.arange(1, len(labels)) * len(groups) - 0.5, *axes.get_xlim(), color="#5f6368", lw=0.6)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    ticks = {np.log2(k): label for label, k in COEFFICIENT_TICKS.items() if abs(np.log2(k)) <= limit}
    bar = figure.colorbar(image, ax=axes, ticks=list(ticks), pad=0.01, aspect=30)
    bar.ax.set_yticklabels(list(ticks.values()))
    return svg(figure, f"coefficients-{arm}")


def mean_coefficients(experiment: Experiment, arm: str) -> tuple[Array, Array]:
    """Return the rounds [R] that every run with records has, and the coefficients [(2M + 1) G, R]."""
    runs = [
        {r["round"]: r["coefficients"] for r in run.records if r["coefficients"]}
        for run in experiment.runs.values()
        if run.arm == arm and run.last_round > 0
    ]
    rounds = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not rounds:
        return np.array([]), np.array([])
    stacked = np.array([[run[r]["fused"] + run[r]["unimodal"] for r in rounds] for run in runs])
    # A coefficient may be zero, and a logarithm may not.
    mean = np.exp(np.log(np.maximum(stacked, 1e-6)).mean(0))
    return np.array(rounds, dtype=np.float64), mean.reshape(len(rounds), -1).T


def _block_labels(experiment: Experiment) -> list[str]:
    modalities = experiment.schema["modalities"]
    encoders = [f"encoder {name}" for name in modalities]
    return ["fusion", *encoders, *(f"head {name}" for name in modalities)]


@mpl.rc_context(STYLE)
def unimodal(experiment: Experiment) -> str | None:
    """Return the AUC of each modality's head beside the fused one, a dot per arm, a line over seeds."""
    rows = [*experiment.schema["modalities"], "all together (fused)"]
    colours = {
        arm: c
        for arm, c in arm_colours(experiment.arms).items()
        if not np.isnan(_head_aucs(experiment, arm)).all()
    }
    if not colours:
        return None
    figure = Figure(figsize=(8.8, 0.9 + (0.16 + 0.14 * len(colours)) * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, (arm, colour) in enumerate(colours.items()):
        values = _head_aucs(experiment, arm)
        known = ~np.isnan(values).all(1)
        y, values = (np.arange(len(rows)) + 0.6 * ((i + 0.5) / len(colours) - 0.5))[known], values[known]
        axes.hlines(y, np.nanmin(values, 1), np.nanmax(values, 1), color=colour, lw=1.2, alpha=0.6)
        marker = "s" if arm == experiment.baseline else "o"
        axes.plot(np.nanmean(values, 1), y, marker, color=colour, ms=5, label=arm)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("AUC on the test records that have the modality")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return svg(figure, "unimodal")


def _head_aucs(experiment: Experiment, arm: str) -> Array:
    """Return the AUC [M + 1, seeds] of each modality's head, then of the fused one."""
    names = experiment.schema["modalities"]
    tests = experiment.compared(arm).values()
    return np.array(
        [[number(t["unimodal_auc"].get(name)) for t in tests] for name in names]
        + [[number(t["auc"]) for t in tests]]
    )
