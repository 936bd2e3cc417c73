"""A round that the centre cannot hold is refused before the first message."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfair.errors import RunError
from server import capacity
from server.capacity import Demand, require_room

GIGABYTE = 10**9


def test_what_fits_passes_and_a_byte_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demand = Demand(GIGABYTE, 2 * GIGABYTE, 4)
    needed = int(demand.link + demand.server)
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda _: Free(demand.disk))
    told = tmp_path / "meminfo"
    monkeypatch.setattr(capacity, "_MEMORY", told)
    told.write_text(f"MemTotal: 1 kB\nMemAvailable:   {-(-needed // 1024)} kB\n")
    require_room(demand, tmp_path)
    told.write_text(f"MemAvailable: {needed // 1024 - 1} kB\n")
    with pytest.raises(
        RunError, match=r"the centre must have 26 GB of memory free .*4 sites.*2 GB, got 26 GB"
    ):
        require_room(demand, tmp_path)


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_MEMORY", tmp_path / "none")  # a system that does not tell
    demand = Demand(GIGABYTE, 2 * GIGABYTE, 4)
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda _: Free(demand.disk - 1))
    with pytest.raises(RunError, match=r"the disk of .* must have 9 GB free"):
        require_room(demand, tmp_path)


class Free:
    """What `shutil.disk_usage` gives, as far as it is read."""

    def __init__(self, free: int) -> None:
        self.free = free
