"""The figure of who took part, as SVG text to set into the page. Drawing needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedfair.report._rounds import ABSENT, FAILED, TOOK_PART, Presence, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {TOOK_PART: (214, 230, 242), FAILED: (213, 94, 0), ABSENT: (255, 255, 255)}
LABELS = {TOOK_PART: "took part", FAILED: "failed or refused", ABSENT: "not there"}
EDGE = "#9aa0a6"
MANY_ROUNDS = 80  # from here on a cell is too narrow for an edge and a mark
WIDTH, ROW, AROUND = 8.8, 0.22, 0.55  # inches, the last two per site and per panel


def presence(runs: Sequence[Presence]) -> str | None:
    """Return a cell per site and round, a panel per run; None if every site took part in every round."""
    if not runs:
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    from fedfair.report._figures import STYLE, svg

    heights = [len(run.states) for run in runs]
    with mpl.rc_context(STYLE):
        size = (WIDTH, 0.5 + sum(ROW * height + AROUND for height in heights))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(runs), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, run in zip(panels, runs, strict=True):
            _panel(axes, run)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        panels[-1].set_xlabel("round")
        colours = {state: tuple(part / 255 for part in colour) for state, colour in COLOURS.items()}
        keys = [Patch(fc=colours[state], ec=EDGE, lw=0.5, label=label) for state, label in LABELS.items()]
        figure.legend(handles=keys, loc="outside upper left", ncols=len(keys))
        return svg(figure, "presence")


def _panel(axes: Axes, run: Presence) -> None:
    """Draw one run; a cross tells a failure where colours do not."""
    cells = np.array(list(run.states.values()))
    left, right = run.rounds[0] - 0.5, run.rounds[-1] + 0.5
    shown = np.array([COLOURS[state] for state in (TOOK_PART, FAILED, ABSENT)], dtype=np.uint8)[cells]
    axes.imshow(shown, aspect="auto", extent=(left, right, len(cells) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.hlines(np.arange(1, len(cells)) - 0.5, left, right, color=EDGE, lw=0.4)
    if len(run.rounds) <= MANY_ROUNDS:
        axes.vlines(np.arange(left + 1, right), -0.5, len(cells) - 0.5, color=EDGE, lw=0.4)
        sites, rounds = np.nonzero(cells == FAILED)
        axes.plot(run.rounds[0] + rounds, sites, "x", color="white", ms=4, mew=1.2)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_title(title(run.run))
    axes.set_yticks(range(len(cells)), list(run.states))
