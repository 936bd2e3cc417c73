"""The lines of a run: on the disk when they are written, and one that a crash cut costs itself alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from fedfair.record import Made, RoundRecord, RunFolder


def line(number: int) -> RoundRecord:
    return RoundRecord(number, math.nan, {"auc": 0.5}, Made(sites=["north"], attempts=1), 1.0)


def numbers(folder: RunFolder) -> list[int]:
    return [json.loads(text)["round"] for text in (folder.path / "rounds.jsonl").read_text().splitlines()]


def test_a_line_is_on_the_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, own = RunFolder(tmp_path / "run"), os.fsync
    synced: list[tuple[str, int]] = []

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((path.name, path.stat().st_size if path.is_file() else 0))
        own(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder.append(line(0))
    size = (folder.path / "rounds.jsonl").stat().st_size
    folder.append(line(1))
    # Whole when it is synced, and its name with the first.
    assert synced == [("rounds.jsonl", size), ("run", 0), ("rounds.jsonl", 2 * size)]


def test_a_line_that_was_cut_and_later_ones_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for number in range(4):
        folder.append(line(number))
    with (folder.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "tr')
    folder.truncate(2)
    assert numbers(folder) == [0, 1, 2]
    folder.append(line(3))
    assert numbers(folder) == [0, 1, 2, 3]


def test_a_line_says_what_made_the_model(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append(line(0))
    assert json.loads((folder.path / "rounds.jsonl").read_text()) == {
        **{"round": 0, "train_loss": None, "test": {"auc": 0.5}, "seconds": 1.0},
        **{"coefficients": None, "diagnostics": {}, "sites": ["north"], "failed": {}, "attempts": 1},
    }


def test_the_outcome_is_told_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.save_outcome("enough", 3, "auc", ["a checkpoint is damaged"])
    assert json.loads((tmp_path / "run" / "outcome.json").read_text()) == {
        **{"stopped": "enough", "monitor": "auc", "best_round": 3, "notices": ["a checkpoint is damaged"]}
    }
