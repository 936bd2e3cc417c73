"""The in-process engine beside a plain PyTorch loop that does the same work per round."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks._run import experiment, run
from benchmarks._table import Table, milliseconds
from benchmarks._timing import Comparison, collector_off, compare, stopwatch
from fedfair.batch import MultimodalBatch
from fedfair.config import Config, parse
from fedfair.data import DataAdapter, open_dataset
from fedfair.data.encode import cells, num_cells, to_batch
from fedfair.data.split import train_test_split
from fedfair.models import build_model
from fedfair.signals import head_signals

ROUNDS = {10: 31, 100: 9, 1000: 4}
ROOT = Path(__file__).resolve().parents[1]


def tables() -> Iterator[Table]:
    """Yield the start, the cost per round, and the memory."""
    yield _start(sites=10, repetitions=5)
    columns = ("sites", "engine, per round", "loop, per round", "engine / loop (quartiles)", "per site")
    rows = []
    for sites, rounds in ROUNDS.items():
        cost = beside_the_loop(sites, rounds)
        rows.append(
            (
                str(sites),
                milliseconds(cost.seconds),
                milliseconds(cost.peer_seconds),
                str(cost),
                milliseconds(cost.seconds / sites),
            )
        )
    yield Table("engine-round", columns, rows)
    memory = _probe(sites=100, rounds=25)["memory"]
    cells = [f"{memory[after] / 2**20:.1f} MiB" for after in (4, 24)]
    yield Table("engine-memory", ("sites", "peak after round 5", "after round 25"), [("100", *cells)])


def _start(sites: int, repetitions: int) -> Table:
    found = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        probe = _probe(sites, rounds=1)
        found.append((probe["first_round"], probe["imports"], time.perf_counter() - begin))
    first, imports, whole = np.median(found, axis=0).tolist()
    columns = ("sites", "imports", "from there to the first round", "process, one round, all in all")
    return Table(
        "engine-start",
        columns,
        [(str(sites), milliseconds(imports), milliseconds(first), milliseconds(whole))],
    )


def _probe(sites: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks._run", str(sites), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def beside_the_loop(sites: int, rounds: int) -> Comparison:
    """Return the cost of one round of the engine beside one of the loop, turn by turn.

    The loop's round is run as the engine records one of its own, so the two alternate. The first
    round (data, imports) and the last exchange (no training) are left out.
    """
    plain = experiment(sites, rounds)
    config = parse(plain)
    loop = PlainLoop(config, open_dataset("synthetic", None, config.data.options, config.seed))
    engine: list[float] = []
    peer: list[float] = []
    began = time.perf_counter()

    def on_record() -> None:
        nonlocal began
        engine.append(time.perf_counter() - began)
        peer.append(stopwatch(loop.round))
        began = time.perf_counter()

    with collector_off():
        run(plain, sites, on_record)
    return compare(engine[1:rounds], peer[1:rounds])


class PlainLoop:
    """Federated averaging as one would write it by hand: no messages, no checks, no files.

    The work is the engine's: every site scores its training and test records with the global model
    (losses and histograms by group), trains one epoch of SGD, and its model is averaged.
    """

    def __init__(self, config: Config, adapter: DataAdapter) -> None:
        self.config, schema = config, adapter.schema
        self.model = build_model(config.model.name, schema, config.model.options, config.seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), config.training.learning_rate)
        self.groups = (len(schema.attributes[config.data.attribute]), num_cells(schema))
        self.sites: list[tuple[MultimodalBatch, MultimodalBatch]] = []
        for name in schema.sites:
            records = adapter.load(name)
            split = train_test_split(records, config.data.test_fraction, config.seed, name)
            train, test = (records.select(index) for index in split)
            self.sites.append(
                (
                    to_batch(train, schema, {}, train.attributes[config.data.attribute]),
                    to_batch(test, schema, {}, cells(test, schema)),
                )
            )
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def round(self) -> None:
        """Run one round."""
        records = sum(len(train) for train, _ in self.sites)
        mean = {name: torch.zeros_like(value) for name, value in self.state.items()}
        pooled: list[Any] = [0, 0]
        for train, test in self.sites:
            self.model.load_state_dict(self.state)
            for part, batch in enumerate((train, test)):
                pooled[part] = pooled[part] + self._signals(batch, self.groups[part])
            self._train(train)
            for name, value in self.model.state_dict().items():
                mean[name].add_(value, alpha=len(train) / records)
        self.state = mean

    @torch.no_grad()
    def _signals(self, batch: MultimodalBatch, groups: int) -> Any:  # noqa: ANN401, an array of arrays
        self.model.eval()
        embeddings = self.model.encode(batch)
        heads = [self.model.fusion(embeddings, batch.present), *self.model.unimodal(embeddings)]
        found = np.empty((len(heads), 3), dtype=object)
        for h, scores in enumerate(heads):
            kept = slice(None) if h == 0 else batch.present[:, h - 1]
            found[h] = head_signals(
                scores.logits[kept], batch.labels[kept], batch.groups[kept], groups, self.config.report.bins
            )
        return found

    def _train(self, records: MultimodalBatch) -> None:
        self.model.train()
        size = self.config.training.batch_size
        order = torch.randperm(len(records))
        for start in range(0, len(records), size):
            batch = records.select(order[start : start + size])
            self.optimizer.zero_grad()
            self._loss(batch).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def _loss(self, batch: MultimodalBatch) -> Tensor:
        embeddings = self.model.encode(batch)
        loss = cross_entropy(self.model.fusion(embeddings, batch.present).logits, batch.labels)
        # The unimodal heads are probes: they learn, and leave the encoders alone.
        for m, scores in enumerate(self.model.unimodal([z.detach() for z in embeddings])):
            each = cross_entropy(scores.logits, batch.labels, reduction="none") * batch.present[:, m]
            loss = loss + each.sum() / batch.present[:, m].sum().clamp(min=1)
        return loss
