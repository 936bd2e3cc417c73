"""Images from the disk to the model: what an epoch of reading takes beside an epoch of computing.

The peer is PyTorch's DataLoader with two workers, over the same mapped file and over float32 in memory. All
take turns within their epoch, a tenth of it each time; building and opening are timed once.
"""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks._table import Table, milliseconds
from benchmarks._timing import Comparison, collector_off, compare, stopwatch
from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.coefficients import Coefficients
from fedfair.config import Config, parse
from fedfair.data.encode import to_batch
from fedfair.data.phantom import PhantomAdapter
from fedfair.data.pixels import Pixels
from fedfair.data.schema import SiteRecords
from fedfair.gradients import weighted_gradients
from fedfair.loading import batches
from fedfair.paths import Scales
from fedfair.site import Workbench
from fedfair.stored import StoredBatch

TURNS = 10
BATCH = 32
PEERS = 2  # workers of the DataLoader

Epoch = Iterator[object]
"""Does the work of one batch each time that it is asked."""


@dataclass(frozen=True)
class Case:
    """What is measured: images, patients and model."""

    title: str
    size: int
    slices: int
    patients: int
    encoders: dict[str, object]
    mixed: bool = False

    def options(self) -> dict[str, object]:
        """Return the data's options: one site, kept on the disk."""
        shape = {"size": self.size, "slices": self.slices, "patients": self.patients}
        return {**shape, "sites": 1, "cache": True}

    def config(self) -> Config:
        """Return the experiment."""
        model = {"embedding_dim": 32, "fusion": "attention", "encoders": self.encoders}
        return parse({"model": {"options": model}, "training": {"mixed_precision": self.mixed}})


VIT: dict[str, object] = {"name": "vit", "config": {"hidden_size": 768}, "tune": "lora", "rank": 8}
SMALL = Case("64 px, 8 B-scans; CNN", 64, 8, 10_000, {n: {"hidden": [8, 16, 32]} for n in ("slo", "oct")})
LARGE = Case("224 px, 32 B-scans; ViT-B/16, LoRA", 224, 32, 600, {"slo": VIT, "oct": VIT}, mixed=True)


def tables(cases: Iterable[Case] | None = None) -> Iterator[Table]:
    """Yield a table: a row per part of the pipeline; the large model on a GPU only."""
    chosen = cases or ((SMALL, LARGE) if torch.cuda.is_available() else (SMALL,))
    rows = [row for case in chosen for row in measure(case)]
    columns = (
        "images; model",
        "what",
        "time",
        "patients/s",
        "to the model's steps (quartiles)",
        "memory of its own",
    )
    yield Table("pipeline", columns, rows)


def measure(case: Case) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a case."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        build = stopwatch(partial(_open, case))
        before, opening = _own_memory(), stopwatch(partial(_open, case))
        records = _open(case)
        mapped = _own_memory() - before
        yield _row(case, "building the file", build, None, None)
        yield _row(case, "opening the file", opening, None, mapped)
        rig = _Rig(case, records)
        device = rig.bench.device.type
        loaded = {name: raw.values() for name, raw in records.modalities.items() if isinstance(raw, Pixels)}
        in_memory = float(sum(value.nbytes for value in loaded.values()))
        epochs: dict[str, tuple[Epoch, float | None]] = {
            "the model's steps": (rig.steps(), None),
            "fedfair: pipeline": (rig.pipeline(), mapped),
            "fedfair: pipeline and steps": (rig.both(), mapped),
            f"DataLoader, {PEERS} workers, mapped": (rig.peer(_Mapped(records)), mapped),
            f"DataLoader, {PEERS} workers, float32": (rig.peer(_Loaded(loaded)), in_memory),
        }
        taken = _turns([epoch for epoch, _ in epochs.values()], -(-case.patients // BATCH))
        for (what, (_, memory)), times in zip(epochs.items(), taken, strict=True):
            yield _row(case, f"{what} ({device})", sum(times), compare(times, taken[0]), memory)


def _open(case: Case) -> SiteRecords:
    return PhantomAdapter(case.options(), 0).load("site-1")


def _turns(epochs: Sequence[Epoch], count: int) -> list[list[float]]:
    """Return the seconds of every turn of every epoch of `count` batches."""
    taken: list[list[float]] = [[] for _ in epochs]
    ends = [count * turn // TURNS for turn in range(TURNS + 1)]
    with collector_off():
        for start, end in itertools.pairwise(ends):
            for own, epoch in zip(taken, epochs, strict=True):
                own.append(stopwatch(partial(_advance, epoch, end - start)))
    return taken


def _advance(epoch: Epoch, count: int) -> None:
    for _ in range(count):
        next(epoch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(
    case: Case, what: str, time: float, beside: Comparison | None, memory: float | None
) -> tuple[str, ...]:
    share = "" if beside is None else f"{beside.ratio:.3f} ({beside.low:.3f} to {beside.high:.3f})"
    held = "" if memory is None else f"{max(memory, 0) / 2**20:.0f} MiB"
    return (case.title, what, milliseconds(time), f"{case.patients / time:.0f}", share, held)


class _Rig:
    """A site's records, the model, and the epochs that are timed."""

    def __init__(self, case: Case, records: SiteRecords) -> None:
        self.schema = PhantomAdapter(case.options(), 0).schema
        self.bench = Workbench(case.config(), self.schema)
        self.blocks = ParameterBlocks(self.bench.model)
        groups = records.attributes["race"]
        neutral = Coefficients.neutral(len(self.schema.modalities), 3, True)
        self.scales = Scales.build(neutral, self.bench.kind)
        stored = to_batch(records, self.schema, {}, groups).to(self.bench.device, self.bench.kind.dtype)
        if not isinstance(stored, StoredBatch):
            raise TypeError("the images must be stored")
        self.stored = stored
        self.order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))
        # An epoch's worth of steps on a few batches that lie in memory: all would not fit.
        self.resident = list(batches(stored, self.order[: 8 * BATCH], BATCH))

    def steps(self) -> Epoch:
        """Compute on batches that are there."""
        return map(self._step, itertools.cycle(self.resident))

    def pipeline(self) -> Epoch:
        """Read."""
        return batches(self.stored, self.order, BATCH)

    def both(self) -> Epoch:
        """Read and compute."""
        return map(self._step, batches(self.stored, self.order, BATCH))

    def peer(self, data: Dataset[Any]) -> Epoch:
        """Read as PyTorch's tutorials do."""
        gpu = self.bench.device.type == "cuda"
        for batch in DataLoader(data, BATCH, shuffle=True, num_workers=PEERS, pin_memory=gpu):
            yield [value.to(self.bench.device, non_blocking=True) for value in batch]

    def _step(self, batch: MultimodalBatch) -> None:
        weighted_gradients(self.bench.model, self.blocks, batch, self.scales, None)


class _Mapped(Dataset[Any]):
    """Records of a mapped file, divided one by one."""

    def __init__(self, records: SiteRecords) -> None:
        self.parts = [raw.parts[0] for raw in records.modalities.values() if isinstance(raw, Pixels)]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, i: int) -> list[Tensor]:
        return [torch.tensor(part[i]).to(torch.float32).div_(255) for part in self.parts]


class _Loaded(Dataset[Any]):
    """Records that lie in memory as float32."""

    def __init__(self, loaded: dict[str, Any]) -> None:
        self.arrays = [torch.from_numpy(value) for value in loaded.values()]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, i: int) -> list[Tensor]:
        return [array[i] for array in self.arrays]


def _own_memory() -> float:
    """Return the memory that only this process has, without mapped files, which the system may take back."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
