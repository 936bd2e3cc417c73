"""Aggregation of large updates beside Flower's own and beside NumPy in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray

from benchmarks._table import Table, milliseconds
from benchmarks._timing import Action, compare, extra_memory, interleave, threads
from fedfair.aggregation import combine
from fedfair.coefficients import Coefficients
from fedfair.local import SiteUpdate
from fedfair.paths import Path
from fedfair.signals import Signals

SITES, PARAMETERS, TURNS = 8, 10_000_000, 9
Vector = NDArray[np.float32]


def tables() -> Iterator[Table]:
    """Yield time and memory of one aggregation, with one thread and with torch's own number."""
    columns = (
        "candidate",
        "threads",
        "time",
        "ratio to NumPy in place (quartiles)",
        "memory beyond the model",
    )
    rows: list[tuple[str, ...]] = []
    for number in dict.fromkeys((1, torch.get_num_interop_threads())):
        with threads(number):
            rows += _rows(str(number))
    yield Table("aggregation", columns, rows)


def _rows(number: str) -> Iterator[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal(PARAMETERS, dtype=np.float32) for _ in range(SITES)]
    grouped = [rng.standard_normal((3, PARAMETERS), dtype=np.float32) for _ in range(SITES)]
    actions: dict[str, Action] = {
        "NumPy in place": _numpy_in_place(updates),
        "fedfair, one row": _fedfair([update[None] for update in updates]),
        "fedfair, 3 group rows": _fedfair(grouped),
        "Flower's aggregate": _flower(updates),
    }
    taken = interleave(list(actions.values()), TURNS)
    for i, (name, action) in enumerate(actions.items()):
        cost = compare(taken[i], taken[0])
        memory = extra_memory(action) / (4 * PARAMETERS)
        yield name, number, milliseconds(cost.seconds), str(cost), f"{memory:.1f} models"


def _numpy_in_place(updates: list[Vector]) -> Action:
    out, scratch = np.zeros(PARAMETERS, np.float32), np.empty(PARAMETERS, np.float32)

    def run() -> None:
        for update in updates:
            np.multiply(update, np.float32(1 / SITES), out=scratch)
            np.add(out, scratch, out=out)

    return run


def _fedfair(rows: list[Vector]) -> Action:
    groups = rows[0].shape[0]
    path = Path("fusion", "fused" if groups > 1 else "all", groups > 1)
    updates = [
        SiteUpdate(f"site {k}", {path.key: own}, signals := _signals(groups), signals)
        for k, own in enumerate(rows)
    ]
    model = {"fusion": np.zeros(PARAMETERS, np.float32)}
    coefficients = Coefficients.neutral(1, groups)
    return lambda: combine(model, updates, coefficients, (path,), ("image",))


def _signals(groups: int) -> Signals:
    counts = np.ones((2, groups, 2))
    return Signals(counts, np.ones((2, groups)), np.zeros((2, groups, 1, 2, 2)))


def _flower(updates: list[Vector]) -> Action:
    """Flower decodes each array while it aggregates and encodes the result; both are its cost."""
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({"fusion": Array(update)}),
                "metrics": MetricRecord({"num-examples": 1.0}),
            }
        )
        for update in updates
    ]
    return lambda: aggregate_arrayrecords(records, "num-examples")
