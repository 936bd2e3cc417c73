"""Site: one hospital's side of a run, free of Flower.

Its records are split, standardised with pooled moments and held here; only sums come out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.config import Config
from fedfair.data import DataAdapter
from fedfair.data.encode import (
    cells,
    feature_sums,
    num_cells,
    observed_modalities,
    to_batch,
)
from fedfair.data.schema import Schema, SiteRecords
from fedfair.data.split import hashed_split, train_test_split
from fedfair.errors import ConfigError, DataError
from fedfair.local import SiteUpdate, train
from fedfair.measure import RecordBounds, measure
from fedfair.models import MultimodalModel, build_model
from fedfair.paths import Scales
from fedfair.plan import row_plan
from fedfair.seeding import derive_seed, torch_generator
from fedfair.signals import Signals, bin_logits
from fedfair.terms import PreparedTerms
from fedfair.wire import Download, Survey


class Workbench:
    """The model that a process trains: built once, loaded with each download."""

    def __init__(self, config: Config, schema: Schema) -> None:
        self.device = choose_device(config.training.device)
        dtype = torch.float64 if config.training.dtype == "float64" else torch.float32
        model = build_model(config.model.name, schema, config.model.options, config.seed)
        self.model: MultimodalModel = model.to(self.device, dtype)
        self.blocks = ParameterBlocks(self.model)
        self.kind = torch.zeros((), dtype=dtype, device=self.device)

    def vectors(self) -> dict[str, NDArray[np.floating]]:
        """Return a copy of the model's block vectors."""
        return {name: value.cpu().numpy().copy() for name, value in self.blocks.vectors.items()}

    def load(self, model: Mapping[str, NDArray[np.floating]]) -> None:
        """Put downloaded block vectors into the model."""
        # A copy, since what comes off the wire cannot be written to.
        self.blocks.load(
            {
                name: torch.tensor(value, dtype=self.kind.dtype, device=self.device)
                for name, value in model.items()
            }
        )


class Site:
    """One site's records and what it computes on them.

    Parameters
    ----------
    name : str
        One of the schema's sites.
    config : Config
        The run's configuration.
    adapter : DataAdapter
        The data set.

    Raises
    ------
    DataError
        If the site has no training record.
    """

    def __init__(self, name: str, config: Config, adapter: DataAdapter) -> None:
        self.name, self.config, self.schema = name, config, adapter.schema
        records = adapter.load(name)
        split = hashed_split if config.split == "hashed" else train_test_split
        train_index, test_index = split(records, config.data.test_fraction, config.seed, name)
        # Under privacy even this would tell of the records, and noise alone is an honest answer.
        if len(train_index) == 0 and not config.privacy.on:
            raise DataError(f"site {name} must have a training record, got {len(records)} records in all")
        self._train_records = records.select(train_index)
        self._test_records = records.select(test_index)
        self._tensors: tuple[bytes, MultimodalBatch, MultimodalBatch] | None = None

    @cached_property
    def survey(self) -> Survey:
        """What the site tells before the first round; under privacy, that it is there."""
        if self.config.privacy.on:
            return Survey({})
        return Survey(
            feature_sums(self._train_records, self.schema),
            self._counts(self._train_records),
            self._counts(self._test_records),
        )

    def assess(self, bench: Workbench, download: Download) -> SiteUpdate:
        """Return the signals of the downloaded model on training and test records, and no rows."""
        bench.load(download.model)
        train_batch, test_batch = self._batches(bench, download)
        return SiteUpdate(
            self.name, {}, self._measure_train(bench, train_batch), self._test(bench, test_batch)
        )

    def guard(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Let the arrays of an upload leave; a private site refuses what it has not declared."""

    def signals(self, bench: Workbench, download: Download) -> Signals:
        """Return the training signals of the downloaded model, by group of the modulated attribute."""
        bench.load(download.model)
        return self._measure_train(bench, self._batches(bench, download)[0])

    def work(self, bench: Workbench, download: Download, round_number: int) -> SiteUpdate:
        """Measure the downloaded model, then train it; return the sums of both.

        Parameters
        ----------
        bench : Workbench
            The process's model.
        download : Download
            Model, moments, coefficients and terms of this round.
        round_number : int
            From 1; with the seed and the site's name it fixes every draw.
        """
        bench.load(download.model)
        train_batch, test_batch = self._batches(bench, download)
        before = self._measure_train(bench, train_batch)
        test = self._test(bench, test_batch)
        labels = (self.name, round_number)
        with dropout_seeded(bench.device, derive_seed(self.config.seed, *labels, "dropout")):
            rows = train(
                bench.model,
                bench.blocks,
                train_batch,
                row_plan(self.config, self.schema),
                Scales.build(download.coefficients, bench.kind),
                self._terms(bench, download),
                self.config.training,
                torch_generator(self.config.seed, *labels, "batches"),
            )
        return SiteUpdate(self.name, {key: value.cpu().numpy() for key, value in rows.items()}, before, test)

    def _batches(self, bench: Workbench, download: Download) -> tuple[MultimodalBatch, MultimodalBatch]:
        key = b"".join(download.moments[name].tobytes() for name in sorted(download.moments))
        if self._tensors is None or self._tensors[0] != key:
            groups = self._train_records.attributes[self.config.data.attribute]
            kind = (bench.device, bench.kind.dtype)
            self._tensors = (
                key,
                to_batch(self._train_records, self.schema, download.moments, groups).to(*kind),
                to_batch(
                    self._test_records, self.schema, download.moments, cells(self._test_records, self.schema)
                ).to(*kind),
            )
        return self._tensors[1], self._tensors[2]

    def _terms(self, bench: Workbench, download: Download) -> PreparedTerms | None:
        if not download.terms:
            return None
        logits = torch.as_tensor(bin_logits(self.config.train_bins)).to(bench.kind)
        return PreparedTerms.build(download.terms, logits)

    def _measure_train(
        self, bench: Workbench, batch: MultimodalBatch, bounds: RecordBounds | None = None
    ) -> Signals:
        return measure(
            bench.model,
            batch,
            len(self.schema.attributes[self.config.data.attribute]),
            self.config.train_bins,
            self.config.training.chunk_size,
            self.config.method.needs_head_gradients,
            bounds,
        )

    def _measure_test(
        self, bench: Workbench, batch: MultimodalBatch, bounds: RecordBounds | None = None
    ) -> Signals:
        return measure(
            bench.model,
            batch,
            num_cells(self.schema),
            self.config.test_bins,
            self.config.training.chunk_size,
            bounds=bounds,
        )

    def _test(self, bench: Workbench, batch: MultimodalBatch) -> Signals | None:
        """Return the test signals, or None if the run wants none."""
        privacy = self.config.privacy
        return None if privacy.on and privacy.evaluation == "none" else self._measure_test(bench, batch)

    def _counts(self, records: SiteRecords) -> NDArray[np.float64]:
        shape = (num_cells(self.schema), len(self.schema.classes))
        everyone = np.ones((1, len(records)), dtype=bool)
        heads = np.concatenate([everyone, observed_modalities(records, self.schema).T])
        flat = cells(records, self.schema) * shape[1] + records.labels
        counts = [np.bincount(flat[head], minlength=shape[0] * shape[1]).reshape(shape) for head in heads]
        return np.stack(counts).astype(np.float64)


@contextlib.contextmanager
def dropout_seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generator, the only one dropout knows, and put it back afterwards."""
    on_gpu = device.type == "cuda"
    # On a CPU torch.manual_seed would also queue the seed, with a formatted stack, for each kind of
    # accelerator that is not there: a tenth of a small site's round.
    seed_all = torch.manual_seed if on_gpu else torch.default_generator.manual_seed
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        seed_all(seed)
        yield


def choose_device(name: str) -> torch.device:
    """Return the device `name`, or the first GPU if there is one for ``auto``.

    Raises
    ------
    ConfigError
        If torch knows no such device or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"`training.device` must be auto, cpu or a device of this machine, got {name!r}"
        ) from error
