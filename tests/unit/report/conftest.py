"""Experiment folders in the format that a simulation writes, made of random records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfair.assessment import assess, json_safe
from fedfair.metrics import macro_auc
from fedfair.signals import Signals

Array = NDArray[np.float64]

SITES = ("Cleveland", "Budapest", "Zurich", "Long Beach")
MODALITIES = ("history", "ecg", "stress test")
ATTRIBUTES = {"sex": ["female", "male"], "age": ["under 50", "50 to 59", "60 and over"]}
CELLS = (2, 3)
BINS = 64


def site_histograms(rng: np.random.Generator, skill: Array, gap: float, classes: int) -> tuple[Array, ...]:
    """Return counts [H, cells, C], losses [H, cells] and histograms [H, cells, T, 2, Q] of one site."""
    n, heads = int(rng.integers(70, 110)), 1 + len(MODALITIES)
    cell = np.ravel_multi_index((rng.random(n) < 0.7, rng.integers(0, 3, n)), CELLS)
    label = rng.integers(0, classes, n)
    scored = (1,) if classes == 2 else tuple(range(classes))
    counts, losses = np.zeros((heads, 6, classes)), np.zeros((heads, 6))
    histograms = np.zeros((heads, 6, len(scored), 2, BINS))
    for h in range(heads):
        seen = rng.random(n) < (1.0 if h == 0 else 1.2 - 0.3 * h)
        strength = skill[h] - gap * (cell < 3)
        logits = rng.normal(size=(n, classes)) + strength[:, None] * np.eye(classes)[label]
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.add.at(counts[h], (cell[seen], label[seen]), 1)
        np.add.at(losses[h], cell[seen], -np.log(shares[np.arange(n), label])[seen])
        for t, c in enumerate(scored):
            score = np.minimum((shares[:, c] * BINS).astype(int), BINS - 1)
            np.add.at(histograms[h, :, t], (cell[seen], (label == c)[seen].astype(int), score[seen]), 1)
    return counts, losses, histograms


def evaluation(seed: int, skill: Array, gap: float, classes: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    counts, losses, histograms = map(
        np.stack, zip(*(site_histograms(rng, skill, gap, classes) for _ in SITES), strict=True)
    )
    for stored in (counts, losses, histograms):
        stored[3, 3] = 0  # the last site has no stress test
    return {"counts": counts, "losses": losses, "histograms": histograms, "train_counts": 2 * counts}


def metrics_of(stored: Mapping[str, Array]) -> dict[str, Any]:
    pooled = Signals(*(stored[name].sum(0) for name in ("counts", "losses", "histograms")))
    table = assess(pooled, CELLS, 0, 10).to_dict(MODALITIES, ATTRIBUTES["sex"])
    by_site = macro_auc(stored["histograms"][:, 0].sum(1), 10)
    return {**table, "site_auc": dict(zip(SITES, map(json_safe, by_site.tolist()), strict=True))}


def coefficient_table(arm: str, done: float) -> dict[str, Any]:
    tilt = 0.8 * done if arm != "fedavg" else 0.0
    fused = [[1 + tilt, 1 - tilt / 3]] * (1 + len(MODALITIES))
    unimodal = [[2 ** (tilt * (m - 1)), 2 ** (tilt * (1 - m))] for m in range(len(MODALITIES))]
    return {"fused": fused, "unimodal": unimodal, "live": arm != "fedavg"}


def write_run(folder: Path, seed: int, arm: str, rounds: int, every: int, classes: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    lines, better = [], arm != "fedavg"
    for r in range(0, rounds + 1, every):
        done = 1 - math.exp(-5 * r / rounds)
        skill = np.array([1.9, 1.4, 1.0, 0.7]) * done + (0.15 * done if better else 0)
        stored = evaluation(1000 * seed + r, skill, (0.25 if better else 0.7) * done, len(classes))
        record = {
            "round": r,
            "train_loss": 0.7 - 0.3 * done - 0.01 * seed,
            "test": metrics_of(stored),
            "coefficients": coefficient_table(arm, done) if r else None,
            "diagnostics": {},
            "sites": list(SITES),
            "failed": {},
            "seconds": 0.5,
        }
        lines.append(json.dumps(record, allow_nan=False))
    (folder / "rounds.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    np.savez_compressed(folder / "evaluation.npz", **stored)


def write(
    folder: Path,
    seeds: Sequence[int] = (0, 1, 2),
    arms: Sequence[str] = ("fedavg", "dual_mimo"),
    rounds: int = 6,
    every: int = 2,
    classes: Sequence[str] = ("healthy", "disease"),
    **changes: Any,
) -> Path:
    plan = {
        "name": "heart",
        "command": "fedfair simulate configs/heart.yaml",
        "status": "complete",
        "created": "2026-11-22T09:00:00+00:00",
        "finished": "2026-11-22T09:12:31+00:00",
        "synthetic": False,
        "seeds": list(seeds),
        "arms": list(arms),
        "attribute": "sex",
        "rounds": rounds,
        "config": {"rounds": rounds, "report": {"bins": BINS, "group_min": 10, "resamples": 100}},
        "versions": {"fedfair": "0.1.0", "torch": "2.13.0"},
        "code_digest": "0123456789abcdef",
        "schema": {
            "modalities": list(MODALITIES),
            "classes": list(classes),
            "attributes": ATTRIBUTES,
            "sites": list(SITES),
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "experiment.json").write_text(json.dumps({**plan, **changes}), encoding="utf-8")
    for seed in seeds:
        for arm in arms:
            write_run(folder / f"seed-{seed}" / arm, seed, arm, rounds, every, classes)
    return folder


@pytest.fixture(scope="session")
def write_experiment() -> Callable[..., Path]:
    """Return a function (folder, seeds, arms, rounds, every, classes, **plan) that writes an experiment."""
    return write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of two arms, complete; tests only read it."""
    return write(tmp_path_factory.mktemp("report") / "heart")
