"""What modulation adds to a whole round: the work of four sites and the server's commit, no messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks._cases import open_case
from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, interleave
from fedfair.coordinator import Coordinator
from fedfair.site import Site, Workbench

TURNS = {"heart": 30, "image + table": 8}
MODES: dict[str, dict[str, Any]] = {
    "update": {"mode": "update"},
    "update, split rows": {"mode": "update", "split_rows": True},
    "weights": {"mode": "weights"},
}
METHODS = ("dual_mimo", "multifair")


def tables() -> Iterator[Table]:
    """Yield one table: a row per model and mode."""
    columns = ("model", "mode", "fedavg", *(f"{method} / fedavg" for method in METHODS))
    rows = []
    for case, turns in TURNS.items():
        for mode, training in MODES.items():
            actions = [rounds(case, method, training) for method in ("fedavg", *METHODS)]
            fedavg, *others = interleave(actions, turns)
            compared = [compare(own, fedavg) for own in others]
            rows.append(
                (case, mode, milliseconds(compared[0].peer_seconds), *(str(each) for each in compared))
            )
    yield Table("round-overhead", columns, rows)


def rounds(case: str, method: str, training: dict[str, Any]) -> Callable[[], object]:
    """Return a function that runs the next round of a run; the first two, with warm-up, are behind it."""
    config, adapter = open_case(case, {"method": {"name": method}, "training": training})
    bench = Workbench(config, adapter.schema)
    sites = [Site(name, config, adapter) for name in adapter.schema.sites]
    coordinator = Coordinator(config, adapter.schema, bench.vectors())
    coordinator.standardise({site.name: site.survey for site in sites})

    def play() -> None:
        download, number = coordinator.download(), coordinator.round + 1
        coordinator.commit([site.work(bench, download, number) for site in sites])

    play()
    play()
    return play
