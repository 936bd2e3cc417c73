from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from fedfair.report import _figures as figures
from fedfair.report._load import Run, load


def test_figures_draw_each_arm_and_block(folder: Path) -> None:
    experiment = load(folder)
    curves, unimodal = figures.curves(experiment), figures.unimodal(experiment)
    for arm, colour in figures.arm_colours(experiment.arms).items():
        assert arm in curves
        assert colour.lower() in curves
        assert unimodal is not None
        assert colour.lower() in unimodal
    heat = figures.coefficients(experiment, "dual_mimo")
    assert heat is not None
    for block in ("fusion", "encoder stress test", "head ecg"):
        assert f"{block} · female" in heat
    assert figures.coefficients(experiment, "fedavg") is None


def test_colours_repeat_only_after_the_palette() -> None:
    arms = [f"arm{i}" for i in range(9)]
    colours = figures.arm_colours(arms)
    assert list(colours) == arms
    assert len(set(list(colours.values())[:7])) == 7


def test_coefficients_are_averaged_geometrically_and_may_be_zero(folder: Path) -> None:
    def run(seed: int, factor: float) -> Run:
        table = {"fused": [[factor, 1.0]] * 4, "unimodal": [[0.0, factor]] * 3, "live": False}
        return Run(
            seed, "dual_mimo", ({"round": 0, "coefficients": None}, {"round": 1, "coefficients": table})
        )

    experiment = dataclasses.replace(
        load(folder), runs={(s, "dual_mimo"): run(s, f) for s, f in ((0, 1.0), (1, 4.0))}
    )
    rounds, values = figures.mean_coefficients(experiment, "dual_mimo")
    assert rounds.tolist() == [1]
    np.testing.assert_allclose(values[:8, 0], [2, 1] * 4)
    assert (values[8::2, 0] < 1e-5).all()
    assert figures.coefficients(experiment, "dual_mimo") is not None
