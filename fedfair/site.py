"""Site: one hospital's side of a run, free of Flower.

Its records are split, standardised with pooled moments and held here; only sums come out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.config import Config
from fedfair.data import DataAdapter
from fedfair.data.checks import checked_indices
from fedfair.data.crossing import group_names, memberships
from fedfair.data.encode import cells, num_cells, observed_modalities, to_batch
from fedfair.data.moments import feature_sums
from fedfair.data.schema import Schema, SiteRecords
from fedfair.data.split import Sides, Split, given_sides, hashed_split, split_sides, train_test_split
from fedfair.device import check_mixed_precision, choose_device, dropout_seeded
from fedfair.errors import DataError
from fedfair.frozen import precomputed
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
        if config.training.mixed_precision:
            check_mixed_precision(self.device)
            self.model.mixed_precision = True
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


class Batches(NamedTuple):
    """A site's records as a model takes them.

    Attributes
    ----------
    train : MultimodalBatch
        To train on, by group of the modulated attribute.
    round, test : MultimodalBatch
        To measure in every round (the validation records, if there are any), and in the end; by cell.
    """

    train: MultimodalBatch
    round: MultimodalBatch
    test: MultimodalBatch


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
        # An adapter may be anybody's, and what is wrong with its labels must not be NumPy's to say.
        checked_indices("labels", records.labels, len(records), len(self.schema.classes))
        cells(records, self.schema)
        sides = _sides(records, config, name)
        # Under privacy even this would tell of the records, and noise alone is an honest answer.
        if len(sides.train) == 0 and not config.privacy.on:
            raise DataError(f"site {name} must have a training record, got none")
        self._train_records = records.select(sides.train)
        self._test_records = records.select(sides.test)
        # What rounds measure; a model chosen by test records would look better than it is.
        chooses = config.data.validation_fraction > 0
        self._round_records = records.select(sides.validation) if chooses else self._test_records
        self._tensors: tuple[bytes, Batches] | None = None

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
        batches = self._batches(bench, download)
        return self._measured(bench, batches.train, batches.test)

    def validate(self, bench: Workbench, download: Download) -> SiteUpdate:
        """Return the signals on training and validation records, as a round would, and no rows."""
        bench.load(download.model)
        batches = self._batches(bench, download)
        return self._measured(bench, batches.train, batches.round)

    def spent(self) -> tuple[float, float] | None:
        """Return epsilon and delta that the site's records have cost so far; None without privacy."""
        return None

    def guard(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Let the arrays of an upload leave; a private site refuses what it has not declared."""

    def signals(self, bench: Workbench, download: Download) -> Signals:
        """Return the training signals of the downloaded model, by group of the modulated attribute."""
        bench.load(download.model)
        return self._measure_train(bench, self._batches(bench, download).train)

    def work(self, bench: Workbench, download: Download, round_number: int) -> SiteUpdate:
        """Measure the downloaded model, then train it; return the sums of both.

        With `data.validation_fraction` the test signals are those of the validation records.

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
        batches = self._batches(bench, download)
        before = self._measured(bench, batches.train, batches.round)
        labels = (self.name, round_number)
        with dropout_seeded(bench.device, derive_seed(self.config.seed, *labels, "dropout")):
            rows = train(
                bench.model,
                bench.blocks,
                batches.train,
                row_plan(self.config, self.schema),
                Scales.build(download.coefficients, bench.kind),
                self._terms(bench, download),
                self.config.training,
                torch_generator(self.config.seed, *labels, "batches"),
            )
        return dataclasses.replace(before, rows={key: value.cpu().numpy() for key, value in rows.items()})

    def _batches(self, bench: Workbench, download: Download) -> Batches:
        key = b"".join(download.moments[name].tobytes() for name in sorted(download.moments))
        if self._tensors is None or self._tensors[0] != key:
            self._tensors = key, self._encoded(bench, download.moments)
        return self._tensors[1]

    def _encoded(self, bench: Workbench, moments: Mapping[str, NDArray[np.float64]]) -> Batches:
        def encoded(records: SiteRecords, groups: NDArray[np.int64]) -> MultimodalBatch:
            batch = to_batch(records, self.schema, moments, groups).to(bench.device, bench.kind.dtype)
            return precomputed(bench.model, batch, self.config.training.chunk_size)

        train, test, chosen = self._train_records, self._test_records, self._round_records
        tests = encoded(test, cells(test, self.schema))
        return Batches(
            encoded(train, memberships(train, self.schema.attributes, self.config.data.attribute)),
            tests if chosen is test else encoded(chosen, cells(chosen, self.schema)),
            tests,
        )

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
            len(group_names(self.schema.attributes, self.config.data.attribute)),
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

    def _measured(self, bench: Workbench, train: MultimodalBatch, test: MultimodalBatch) -> SiteUpdate:
        """Return the signals of both; no test signals if the run wants none."""
        privacy = self.config.privacy
        unseen = privacy.on and privacy.evaluation == "none"
        tested = None if unseen else self._measure_test(bench, test)
        return SiteUpdate(self.name, {}, self._measure_train(bench, train), tested)

    def _counts(self, records: SiteRecords) -> NDArray[np.float64]:
        shape = (num_cells(self.schema), len(self.schema.classes))
        everyone = np.ones((1, len(records)), dtype=bool)
        heads = np.concatenate([everyone, observed_modalities(records, self.schema).T])
        flat = cells(records, self.schema) * shape[1] + records.labels
        counts = [np.bincount(flat[head], minlength=shape[0] * shape[1]).reshape(shape) for head in heads]
        return np.stack(counts).astype(np.float64)


def _sides(records: SiteRecords, config: Config, name: str) -> Sides:
    """Return what each record is for."""
    if config.split == "given":
        return given_sides(records, name, config.data.validation_fraction > 0)
    split: Split = hashed_split if config.split == "hashed" else train_test_split
    fractions = config.data.test_fraction, config.data.validation_fraction
    return split_sides(split, records, *fractions, config.seed, name)
