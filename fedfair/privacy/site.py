"""One hospital's side of a run under sample-level privacy: charge, compute, add noise, declare.

Nothing but noised sums and public constants leaves it. The ledger is charged before anything is
computed, so a crash can waste budget but never hide a release.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair import wire
from fedfair.batch import MultimodalBatch
from fedfair.budget import charges, releases_statistics, round_events, unit
from fedfair.coefficients import Coefficients
from fedfair.config import Config
from fedfair.data import DataAdapter
from fedfair.data.crossing import group_names
from fedfair.data.encode import num_cells
from fedfair.data.moments import public_moments
from fedfair.device import dropout_seeded
from fedfair.errors import PrivacyError
from fedfair.local import SiteUpdate
from fedfair.measure import RecordBounds
from fedfair.paths import Scales
from fedfair.plan import row_plan
from fedfair.privacy.accounting import Event
from fedfair.privacy.edge import Declaration, Public, Released, guard
from fedfair.privacy.isolation import check_isolation, made_up_batch
from fedfair.privacy.ledger import Ledger
from fedfair.privacy.noise import Noise
from fedfair.privacy.opacus_engine import check_opacus, opacus_mechanism, train_with_opacus
from fedfair.privacy.per_record import record_gradients
from fedfair.privacy.release import release
from fedfair.privacy.sample_level import mechanism, train_privately
from fedfair.privacy.server import statistics_layout
from fedfair.privacy.settings import statistics_event, training_event
from fedfair.signals import Signals, signal_shapes
from fedfair.site import Site, Workbench
from fedfair.wire import Download

TEST_IS_PUBLIC = Public("the run declares its test records public (`privacy.evaluation: exact`)")
FOLLOWS = Public("follows from public constants alone")


class PrivateSite(Site):
    """A site that adds its own noise and keeps its own account.

    Parameters
    ----------
    name, config, adapter
        As for `Site`; the configuration resolved.
    ledger : Ledger
        On this site's disk.
    run : str
        What the ledger calls this run.
    """

    def __init__(self, name: str, config: Config, adapter: DataAdapter, ledger: Ledger, run: str) -> None:
        super().__init__(name, config, adapter)
        self._ledger, self._run = ledger, run
        self._charged: tuple[Event, ...] = ()
        self._declared: dict[str, Declaration] = {}
        self._layout = statistics_layout(config, self.schema)
        self._moments = public_moments(self.schema, config.data.ranges)
        self._checked = False

    def spent(self) -> tuple[float, float] | None:
        """Return epsilon and delta of the site's account, over all runs on its records."""
        statement = self._ledger.statement(unit(self.config))
        return statement.epsilon, statement.delta

    def work(self, bench: Workbench, download: Download, round_number: int) -> SiteUpdate:
        """Charge the round, release statistics if it is their turn, and train with noise.

        Raises
        ------
        PrivacyError
            If the run has no such round: what is charged follows from its number.
        """
        if not 1 <= round_number <= self.config.rounds:
            raise PrivacyError(
                f"a round to train in must be in 1 .. {self.config.rounds}, got {round_number}"
            )
        download = self._checked_download(download)
        self._begin(bench, round_number)
        bench.load(download.model)
        batches = self._batches(bench, download)
        train_signals, test_signals = self._released(bench, batches.train, batches.round, round_number)
        rows = self._train(bench, download, round_number)
        return SiteUpdate(self.name, rows, train_signals, test_signals)

    def assess(self, bench: Workbench, download: Download) -> SiteUpdate:
        """Charge and release the statistics of the final model."""
        number = self.config.rounds + 1
        download = self._checked_download(download)
        self._begin(bench, number)
        bench.load(download.model)
        batches = self._batches(bench, download)
        return SiteUpdate(self.name, {}, *self._released(bench, batches.train, batches.test, number))

    def validate(self, bench: Workbench, download: Download) -> SiteUpdate:
        """Refuse: nobody is charged for a measurement outside of rounds and the final evaluation.

        Raises
        ------
        PrivacyError
            Always.
        """
        del bench, download
        raise PrivacyError("a model must be measured in a round or at the end, got a request in between")

    def signals(self, bench: Workbench, download: Download) -> Signals:
        """Refuse: a second exchange would ask for exact sums, or be charged twice.

        Raises
        ------
        PrivacyError
            Always.
        """
        del bench, download
        raise PrivacyError(
            "`training.exchanges` must be 1 under `privacy.mode` sample, got a request for signals"
        )

    def guard(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Refuse whatever is not declared, or was not charged for."""
        guard(self.name, arrays, self._declared, self._charged)
        self._declared = {}

    def _checked_download(self, download: Download) -> Download:
        """Refuse coefficients or terms that do not fit before a record is touched; take no moments from it.

        A mismatch that only shows where a group or a label occurs would tell that it does.
        """
        coefficients, terms = download.coefficients, download.terms
        heads, groups, classes = self._layout.heads, self._num_groups, len(self.schema.classes)
        wanted: list[tuple[NDArray[np.float64], tuple[int, ...]]]
        wanted = [(coefficients.fused, (heads, groups)), (coefficients.unimodal, (heads - 1, groups))]
        if terms.fairness is not None:
            bins = (heads - 1, groups, self._layout.scored, 2, self.config.train_bins)
            wanted += [(terms.fairness.slopes, (heads - 1, groups)), (terms.fairness.histograms, bins)]
        fits = all(array.shape == shape for array, shape in wanted)
        if terms.direction is not None:
            fits = fits and terms.direction.ndim == 2 and terms.direction.shape[0] == classes
        if not fits:
            raise PrivacyError("coefficients and terms of a download must fit the schema, they do not")
        return dataclasses.replace(download, moments=self._moments)

    def _begin(self, bench: Workbench, number: int) -> None:
        if not self._checked:
            # Before any charge, and on made-up records: later a refusal would tell of the real ones.
            self._check_model(bench)
            self._checked = True
        self._declared, self._charged = {}, ()
        if events := round_events(self.config, number):
            last = charges(self.config, self.config.rounds + 1) if number <= self.config.rounds else ()
            self._ledger.charge(self._run, charges(self.config, number), last)
            self._charged = events

    def _check_model(self, bench: Workbench) -> None:
        model, blocks, groups = bench.model, bench.blocks, self._num_groups
        check_isolation(model, blocks, self.schema, bench.kind, groups)
        if self.config.privacy.engine == "opacus":
            check_opacus(model, blocks, self.schema, bench.kind, groups)
            return
        neutral = Coefficients.neutral(len(model.modalities), groups, self.config.method.live)
        batch = made_up_batch(self.schema, bench.kind, groups)
        record_gradients(model.train(), blocks, batch, Scales.build(neutral, bench.kind), None)

    @property
    def _num_groups(self) -> int:
        return len(group_names(self.schema.attributes, self.config.data.attribute))

    def _noise(self, number: int, purpose: str) -> Noise:
        seed = self.config.privacy.noise_seed
        if seed is None:
            return Noise.from_os()
        return Noise.fixed(seed, self.config.seed, self.name, number, purpose)

    def _released(
        self, bench: Workbench, train_batch: MultimodalBatch, test_batch: MultimodalBatch, number: int
    ) -> tuple[Signals | None, Signals | None]:
        """Return the signals of both batches, each released, exact by declaration, or None."""
        test = None
        if self.config.privacy.evaluation == "exact":
            test = self._measure_test(bench, test_batch)
            self._declared |= dict.fromkeys(wire.pack_signals("test", test), TEST_IS_PUBLIC)
        if not releases_statistics(self.config, number):
            return None, test
        bounds = RecordBounds(self._layout.loss_bound, self._layout.gradient_norm)
        parts = [self._measure_train(bench, train_batch, bounds)]
        if self.config.privacy.evaluation == "released":
            # A record is in one of the two at most, so both together are one release.
            parts.append(self._measure_test(bench, test_batch, bounds))
        event = statistics_event(self.config.privacy)
        released = release(parts, self._layout, event.noise_multiplier, self._noise(number, "statistics"))
        groups = (self._num_groups, num_cells(self.schema))
        for prefix, own, signals in zip(("train", "test"), groups, released, strict=False):
            self._declare(bench, prefix, own, signals, event)
        return released[0], released[1] if len(released) > 1 else test

    def _declare(self, bench: Workbench, prefix: str, groups: int, signals: Signals, event: Event) -> None:
        """Declare released signals; shapes follow from schema, model and configuration."""
        layout, classes = self._layout, len(self.schema.classes)
        width = bench.model.fusion.classifier.in_features + 1
        shapes = signal_shapes(layout.heads, groups, classes, self.config.privacy.statistics.bins, width)
        for name in wire.pack_signals(prefix, signals):
            field = name.partition("/")[2]
            if field == "variance":
                self._declared[name] = FOLLOWS
            else:
                self._declared[name] = Released(event, layout.sensitivity(field), shapes[field])

    def _train(self, bench: Workbench, download: Download, number: int) -> dict[str, NDArray[np.floating]]:
        model, blocks = bench.model, bench.blocks
        scales, terms = Scales.build(download.coefficients, bench.kind), self._terms(bench, download)
        paths = row_plan(self.config, self.schema).paths(model.modalities, scales.live, terms is not None)
        describe, train = mechanism, train_privately
        if self.config.privacy.engine == "opacus":
            describe, train = opacus_mechanism, train_with_opacus
        public = describe(blocks, paths, scales, model.modalities, self.config.privacy)
        records, noise = self._batches(bench, download).train, self._noise(number, "training")
        with _secret_dropout(bench.device, noise):
            rows = train(model, blocks, records, scales, terms, self.config.training, public, noise)
        event = training_event(self.config.privacy)
        sent = {key: value.cpu().numpy() for key, value in rows.items()}
        for key, shape in public.shapes.items():
            self._declared[f"rows/{key}"] = Released(event, public.sensitivities[key], shape)
        return sent


@contextlib.contextmanager
def _secret_dropout(device: torch.device, noise: Noise) -> Iterator[None]:
    """Let dropout follow from the site's own noise.

    A record more moves the others' masks by a place; who knew the masks would see their sum change by
    more than one record's part.
    """
    secret = noise.generator()
    with dropout_seeded(device, int(torch.randint(2**62, (), generator=secret))):
        # A seed of the CPU's generator is one of 2^32; this is its whole state.
        torch.default_generator.set_state(secret.get_state())
        yield
