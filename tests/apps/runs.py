"""Runs of the real apps in this process, small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict

from client.app import app as client_app
from server.app import app as server_app
from simulations.grid import InProcessGrid

ROOT = Path(__file__).resolve().parents[2]
HEART = ROOT / "configs" / "heart.yaml"
PRIVATE = ROOT / "configs" / "heart_private.yaml"
SHORT = ("rounds=2", "report.resamples=20")


def run(
    output: Path, overrides: Sequence[str] = SHORT, sites: int = 4, workers: int = 0, config: Path = HEART
) -> Path:
    """Run configs/heart.yaml (or what the arguments name) and return its folder."""
    values = {"config": str(config), "overrides": ";".join(overrides), "output": str(output)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values)
    with InProcessGrid(client_app, sites, workers) as grid:
        server_app(grid, context)
    return output


def rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the round records without their times, which differ from run to run."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    """Return the final model."""
    state: Mapping[str, torch.Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return state


def same_bits(a: Path, b: Path) -> bool:
    """Return whether two runs ended with the same bits and the same records."""
    left, right = weights(a), weights(b)
    return (
        list(left) == list(right)
        and all(torch.equal(left[k], right[k]) for k in left)
        and rounds(a) == rounds(b)
    )
