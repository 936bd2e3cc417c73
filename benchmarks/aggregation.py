"""The server's sum over sites beside Flower's own and beside the shortest in-place NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray

from benchmarks._table import Table, milliseconds
from benchmarks._timing import compare, extra_memory, interleave
from fedfair.aggregation import combine
from fedfair.coefficients import Coefficients
from fedfair.local import SiteUpdate
from fedfair.paths import RowPlan
from fedfair.signals import Signals
from fedfair.wire import from_bytes

SITES = 8
PARAMETERS = 10_000_000
BLOCKS = {"fusion": 100_000, "encoder/image": PARAMETERS - 200_000, "head/image": 100_000}
TURNS = 7
Floats = NDArray[np.float32]


def tables() -> Iterator[Table]:
    """Yield the times and memory for one row per site, and for one row per group."""
    columns = ("sites send", "what is timed", "time", "to in-place NumPy (quartiles)", "extra memory")
    rows: list[tuple[str, ...]] = [("one row", *cells) for cells in measured(one_row())]
    rows += [("3 group rows", *cells) for cells in measured(group_rows())]
    yield Table("aggregation", columns, rows)


def measured(actions: dict[str, Callable[[], object]]) -> list[tuple[str, ...]]:
    """Return the cells of each action; the last one is the peer of all."""
    times = interleave(list(actions.values()), TURNS)
    rows: list[tuple[str, ...]] = []
    for (name, action), own in zip(actions.items(), times, strict=True):
        beside = compare(own, times[-1])
        models = extra_memory(action) / (4 * PARAMETERS)
        ratio = "1" if own is times[-1] else str(beside)
        rows.append((name, milliseconds(beside.seconds), ratio, f"{models:.2f} models"))
    return rows


def one_row() -> dict[str, Callable[[], object]]:
    """Return the candidates for sites that send their model's change."""
    sites = [{f"{block}:all": value[None] for block, value in _vectors(k).items()} for k in range(SITES)]
    updates = [_update(str(k), site) for k, site in enumerate(sites)]
    sent = [{key: Array(value) for key, value in site.items()} for site in sites]
    model = _vectors(SITES)
    rows = {block: [site[f"{block}:all"][0] for site in sites] for block in BLOCKS}

    def from_messages() -> None:
        decoded = [{n: from_bytes(a.data, a.dtype, a.shape) for n, a in own.items()} for own in sent]
        _combine(model, [_update(str(k), own) for k, own in enumerate(decoded)], RowPlan())

    replies = [
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
        for arrays in sent
    ]
    return {
        "fedfair: sum": lambda: _combine(model, updates, RowPlan()),
        "fedfair: decode, sum": from_messages,
        "Flower: sum alone": lambda: [_as_flower(own) for own in rows.values()],
        "Flower: decode, sum, encode": lambda: aggregate_arrayrecords(replies, "num-examples"),
        "NumPy in place: sum": lambda: [_in_place(model[block], own) for block, own in rows.items()],
    }


def group_rows() -> dict[str, Callable[[], object]]:
    """Return the candidates for sites that send three rows, one per group."""
    plan = RowPlan(frozenset(BLOCKS))
    paths = plan.paths(("image",), True, False)
    sites = [
        {path.key: np.stack(3 * [_vectors(seed)[path.block]]) for path in paths} for seed in range(SITES)
    ]
    updates = [_update(f"{k}", site) for k, site in enumerate(sites)]
    model = _vectors(SITES)
    rows = {path.block: [row for site in sites for row in site[path.key]] for path in paths}
    return {
        "fedfair: sum": lambda: _combine(model, updates, plan),
        "NumPy in place: sum": lambda: [_in_place(model[block], own) for block, own in rows.items()],
    }


def _as_flower(rows: list[Floats]) -> Floats:
    """Return the sum as `aggregate_arrayrecords` takes it, once it has decoded the arrays."""
    total: Floats = rows[0] * 1e-3
    for row in rows[1:]:
        total += row * 1e-3
    return total


def _in_place(out: Floats, rows: list[Floats]) -> Floats:
    product = np.empty_like(out)
    for row in rows:
        np.multiply(row, np.float32(1e-3), out=product)
        out += product
    return out


def _combine(model: dict[str, Floats], updates: list[SiteUpdate], plan: RowPlan) -> None:
    coefficients = Coefficients.neutral(1, 3, live=True)
    combine(model, updates, coefficients, plan.paths(("image",), True, False), ("image",), 1e-3)


def _vectors(seed: int) -> dict[str, Floats]:
    generator = torch.Generator().manual_seed(seed)
    return {block: torch.randn(size, generator=generator).numpy() for block, size in BLOCKS.items()}


def _update(site: str, rows: dict[str, NDArray[np.floating]]) -> SiteUpdate:
    signals = Signals(np.ones((2, 3, 2)), np.ones((2, 3)), np.ones((2, 3, 1, 2, 2)))
    return SiteUpdate(site, rows, signals, signals)
