"""Coordinator: the server's side of a run, free of Flower.

It holds the global model and the method's memory, turns pooled signals into coefficients and
moves the model. A round is committed as a whole or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fedfair.aggregation import check_update, combine
from fedfair.coefficients import Coefficients, LossTerms
from fedfair.config import Config
from fedfair.data.checks import check_coverage
from fedfair.data.crossing import axes, group_names, known
from fedfair.data.moments import FeatureSums, add_feature_sums, moments, public_moments
from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, DataError, RoundRefused, RunError, counted
from fedfair.local import SiteUpdate
from fedfair.masking import expanded, of_known
from fedfair.modulation import Modulation
from fedfair.paths import Path
from fedfair.plan import row_plan
from fedfair.privacy.clipping import norm_bounds
from fedfair.privacy.ledger import Ledger
from fedfair.privacy.server import protect, usable
from fedfair.recombination import applied
from fedfair.signals import Signals
from fedfair.wire import Download, Survey

Vector = NDArray[np.floating]


@dataclass(frozen=True)
class Committed:
    """What a committed round produced.

    Attributes
    ----------
    train, test : Signals | None
        Of the model that the round started from, pooled over sites; None if nothing was released.
    test_by_site : Mapping[str, Signals]
        The same test signals before pooling.
    modulation : Modulation
        The method's answer to the training signals.
    applied : Coefficients
        The coefficients that made the next model: the fresh ones, kept near the others, where the server
        recombines group rows, else those that the sites trained along.
    """

    train: Signals | None
    test: Signals | None
    test_by_site: Mapping[str, Signals]
    modulation: Modulation
    applied: Coefficients


class Coordinator:
    """The state of a run between rounds.

    Parameters
    ----------
    config : Config
        The run's configuration.
    schema : Schema
        The data's schema.
    model : Mapping[str, Vector]
        The initial model, one vector per block; copied.
    ledger : Ledger | None
        The server's own, for site-level privacy.

    Raises
    ------
    ConfigError
        If the attribute, a block name or the number of sites does not fit the schema.
    """

    def __init__(
        self, config: Config, schema: Schema, model: Mapping[str, Vector], ledger: Ledger | None = None
    ) -> None:
        axes(schema.attributes, config.data.attribute, "data.attribute")  # refuses an unknown one
        if config.server.min_sites > len(schema.sites):
            raise ConfigError(
                f"`server.min_sites` must be at most {len(schema.sites)}, the sites of the data, "
                f"got {config.server.min_sites}"
            )
        self.config, self.schema = config, schema
        self.modalities = tuple(schema.modalities)
        self.plan = row_plan(config, schema)
        self._known = known(schema.attributes, config.data.attribute)
        self.model: dict[str, Vector] = {name: np.array(value) for name, value in model.items()}
        self.velocity: dict[str, Vector] | None = {} if config.server.momentum else None
        self.round = 0
        self.memory: Mapping[str, NDArray[np.float64]] = {}
        self.terms = LossTerms()
        self.coefficients = self._initial_coefficients()
        self.moments: dict[str, NDArray[np.float64]] = {}
        self.surveyed: Mapping[str, str] = {}
        self.released: Signals | None = None
        self.ledger = ledger
        if config.privacy.on:
            self.moments = public_moments(schema, config.data.ranges)
            if isinstance(config.privacy.max_grad_norm, Mapping):
                # At a site a bound that is missing would cost the round's charge.
                norm_bounds(config.privacy.max_grad_norm, [b for b, v in self.model.items() if len(v)])
        self._fresh: Modulation | None = None

    def standardise(self, surveys: Mapping[str, Survey]) -> None:
        """Pool the sites' feature sums into moments and check that the data can be used.

        A resumed run keeps its moments, whoever answers now. Under privacy sites tell nothing here, and
        the moments are public.

        Parameters
        ----------
        surveys : Mapping[str, Survey]
            By site.

        Raises
        ------
        DataError
            If a class, a modality or a group has no training record at any site, or a site of a
            resumed run has other records than before.
        """
        if self.config.privacy.on:
            return
        if self.config.secure.enabled and self.moments:
            return  # a sum over the sites that answer now has no digest to compare
        found = {site: surveys[site].digest() for site in sorted(surveys)}
        if self.surveyed:
            for site in found:
                self.welcome(site, surveys[site])
            return
        counted = [survey.train_counts for survey in surveys.values() if survey.train_counts is not None]
        names = list(self.schema.attributes)
        modulated = [names[axis] for axis in axes(self.schema.attributes, self.config.data.attribute)]
        check_coverage(self.schema, np.sum(counted, axis=0), modulated)
        sums: FeatureSums = reduce(add_feature_sums, [surveys[site].features for site in found])
        self.moments, self.surveyed = moments(sums), found

    def welcome(self, site: str, survey: Survey) -> None:
        """Let a site take part that was not there when the moments were pooled, or is back.

        Raises
        ------
        DataError
            If it took part before, with other records.
        """
        if self.config.privacy.on:
            return
        digest = survey.digest()
        if self.surveyed.get(site, digest) != digest:
            raise DataError(
                f"site {site} must have the records that the run began with, got others; start a new run"
            )
        self.surveyed = {**self.surveyed, site: digest}

    def download(self) -> Download:
        """Return what the next round sends to every site."""
        return Download(self.model, self.moments, self.coefficients, self.terms)

    @property
    def values(self) -> int:
        """Values that one site sends for the model in a round."""
        groups = len(self._groups)
        return sum(self._lengths[p.block] * (groups if p.grouped else 1) for p in self._paths)

    def refresh(self, signals: Signals) -> None:
        """Choose this round's coefficients before training (two exchanges per round)."""
        self._fresh = self._answer(of_known(signals, self._known), signals)
        self.coefficients, self.terms = self._fresh.coefficients, self._fresh.terms

    def check(self, update: SiteUpdate) -> None:
        """Refuse an update that would poison the sum.

        Raises
        ------
        InconsistentUpdates
            Naming the site and the array.
        """
        groups, private = len(self._groups), self.config.privacy.mode == "sample"
        check_update(update, self._paths, self.modalities, self._lengths, groups, private)

    def commit(self, updates: Sequence[SiteUpdate]) -> Committed:
        """Choose the coefficients and move the model by checked updates; all or nothing.

        Parameters
        ----------
        updates : Sequence[SiteUpdate]
            Each passed `check`. In any order; they are summed in the order of the site names.

        Raises
        ------
        InconsistentUpdates
            If the updates do not fit together, or there is none.
        RoundRefused
            If a known group has fewer training records than `server.min_group_records`.
        RunError
            If the new model is not finite; the last checkpoint holds the one before.
        """
        ordered = sorted(updates, key=lambda update: update.site)
        paths = self._paths
        protected = protect(
            self.config, self.schema, self.round + 1, ordered, paths, self._lengths, self.ledger
        )
        train, test = protected.train, protected.test
        self._check_groups(train)
        modulation = self._modulation(train)
        coefficients = self.coefficients
        if self.plan.grouped:
            coefficients = applied(self.config, modulation.coefficients, coefficients, ordered, train)
        combine(
            self.model,
            protected.updates,
            coefficients,
            paths,
            self.modalities,
            self.config.server.learning_rate,
            self.velocity,
            self.config.server.momentum,
            protected.denominators,
        )
        if not all(np.isfinite(value.sum()) for value in self.model.values()):
            raise RunError(
                f"the model must stay finite, got NaN or infinity in round {self.round + 1}; "
                "lower `training.learning_rate`"
            )
        self.round += 1
        self.memory, self.coefficients, self.terms = (
            modulation.memory,
            modulation.coefficients,
            modulation.terms,
        )
        self._fresh = None
        by_site = {u.site: u.test for u in ordered if u.test is not None}
        return Committed(train, test, by_site, modulation, coefficients)

    def _modulation(self, train: Signals | None) -> Modulation:
        """Return the method's answer; what was last released goes on acting until the next release."""
        if self._fresh is not None:
            return self._fresh
        if train is None:
            return Modulation(self.coefficients, self.terms, self.memory)
        shown = of_known(train, self._known)
        if train.variance is None:
            return self._answer(shown, train)
        self.released, settled, seen = usable(self.released, shown, self.config.privacy.statistics)
        modulation = self._answer(settled, train)
        return dataclasses.replace(modulation, diagnostics={**modulation.diagnostics, **seen})

    def _answer(self, shown: Signals, everyone: Signals) -> Modulation:
        """Return the method's answer to the signals of the known groups, as one for all groups."""
        return expanded(self.config.method.modulate(shown, self.memory), self._known, everyone.counts)

    @property
    def _lengths(self) -> dict[str, int]:
        return {name: len(value) for name, value in self.model.items()}

    @property
    def _paths(self) -> Sequence[Path]:
        return self.plan.paths(self.modalities, self.coefficients.live, bool(self.terms))

    @property
    def _groups(self) -> tuple[str, ...]:
        return group_names(self.schema.attributes, self.config.data.attribute)

    def _check_groups(self, train: Signals | None) -> None:
        """Refuse a round in which a known group has too few records to be heard."""
        wanted = self.config.server.min_group_records
        if train is None or not wanted:
            return
        told = zip(self._groups, train.counts[0].sum(-1), self._known, strict=True)
        for group, records, asked in told:
            if asked and records < wanted:
                raise RoundRefused(
                    f"group {group!r} must have at least {counted(wanted, 'training record')} at the sites "
                    f"that answered (`server.min_group_records`), got {records:g}"
                )

    def _initial_coefficients(self) -> Coefficients:
        """Return the method's coefficients before any signal is known."""
        heads, classes = len(self.modalities) + 1, len(self.schema.classes)
        groups = len(self._groups)
        scored = 1 if classes == 2 else classes
        empty = Signals(
            np.zeros((heads, groups, classes)),
            np.zeros((heads, groups)),
            np.zeros((heads, groups, scored, 2, self.config.train_bins)),
            None,
        )
        return self._answer(of_known(empty, self._known), empty).coefficients
