"""Coordinator: the server's side of a run, free of Flower.

It holds the global model and the method's memory, turns pooled signals into coefficients and
moves the model. A round is committed as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fedfair.aggregation import check_update, combine, pool
from fedfair.coefficients import Coefficients, LossTerms
from fedfair.config import Config
from fedfair.data.encode import FeatureSums, add_feature_sums, moments
from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, DataError, RunError, nearest
from fedfair.local import SiteUpdate
from fedfair.modulation import Modulation
from fedfair.paths import Path
from fedfair.plan import row_plan
from fedfair.signals import Signals
from fedfair.wire import Download, Survey

Vector = NDArray[np.floating]


@dataclass(frozen=True)
class Committed:
    """What a committed round produced.

    Attributes
    ----------
    train, test : Signals
        Of the model that the round started from, pooled over sites.
    test_by_site : Mapping[str, Signals]
        The same test signals before pooling.
    modulation : Modulation
        The method's answer to the training signals.
    applied : Coefficients
        The coefficients that made the next model: the fresh ones where the server recombines
        group rows, else those that the sites trained along.
    """

    train: Signals
    test: Signals
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

    Raises
    ------
    ConfigError
        If the attribute, a block name or the number of sites does not fit the schema.
    """

    def __init__(self, config: Config, schema: Schema, model: Mapping[str, Vector]) -> None:
        if config.data.attribute not in schema.attributes:
            raise ConfigError(
                f"`data.attribute` must be one of {list(schema.attributes)}, got {config.data.attribute!r}"
                f"{nearest(config.data.attribute, schema.attributes)}"
            )
        if config.server.min_sites > len(schema.sites):
            raise ConfigError(
                f"`server.min_sites` must be at most {len(schema.sites)}, the sites of the data, "
                f"got {config.server.min_sites}"
            )
        self.config, self.schema = config, schema
        self.modalities = tuple(schema.modalities)
        self.plan = row_plan(config, schema)
        self.model: dict[str, Vector] = {name: np.array(value) for name, value in model.items()}
        self.velocity: dict[str, Vector] | None = {} if config.server.momentum else None
        self.round = 0
        self.memory: Mapping[str, NDArray[np.float64]] = {}
        self.terms = LossTerms()
        self.coefficients = self._initial_coefficients()
        self.moments: dict[str, NDArray[np.float64]] = {}
        self.surveyed: Mapping[str, str] = {}
        self._fresh: Modulation | None = None

    def standardise(self, surveys: Mapping[str, Survey]) -> None:
        """Pool the sites' feature sums into moments and check that the data can be used.

        A resumed run keeps its moments, whoever answers now.

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
        found = {site: surveys[site].digest() for site in sorted(surveys)}
        if self.surveyed:
            for site, digest in found.items():
                if self.surveyed.get(site, digest) != digest:
                    raise DataError(
                        f"site {site} must have the records that the run began with, got others; "
                        "start a new run"
                    )
            return
        self._check_coverage(np.sum([s.train_counts for s in surveys.values()], axis=0))
        sums: FeatureSums = reduce(add_feature_sums, [surveys[site].features for site in found])
        self.moments, self.surveyed = moments(sums), found

    def download(self) -> Download:
        """Return what the next round sends to every site."""
        return Download(self.model, self.moments, self.coefficients, self.terms)

    def refresh(self, signals: Signals) -> None:
        """Choose this round's coefficients before training (two exchanges per round)."""
        self._fresh = self.config.method.modulate(signals, self.memory)
        self.coefficients, self.terms = self._fresh.coefficients, self._fresh.terms

    def commit(self, updates: Sequence[SiteUpdate]) -> Committed:
        """Check all updates, choose the coefficients, move the model; all or nothing.

        Parameters
        ----------
        updates : Sequence[SiteUpdate]
            In any order; they are summed in the order of the site names.

        Raises
        ------
        InconsistentUpdates
            If an update is refused.
        RunError
            If the new model is not finite; the last checkpoint holds the one before.
        """
        ordered = sorted(updates, key=lambda update: update.site)
        paths = self.plan.paths(self.modalities, self.coefficients.live, bool(self.terms))
        self._check(ordered, paths)
        train, test = pool(ordered)
        modulation = self._fresh or self.config.method.modulate(train, self.memory)
        combine(
            self.model,
            ordered,
            modulation.coefficients,
            paths,
            self.modalities,
            self.config.server.learning_rate,
            self.velocity,
            self.config.server.momentum,
        )
        if not all(np.isfinite(value.sum()) for value in self.model.values()):
            raise RunError(
                f"the model must stay finite, got NaN or infinity in round {self.round + 1}; "
                "lower `training.learning_rate`"
            )
        self.round += 1
        applied = modulation.coefficients if self.plan.grouped else self.coefficients
        self.memory, self.coefficients, self.terms = (
            modulation.memory,
            modulation.coefficients,
            modulation.terms,
        )
        self._fresh = None
        return Committed(train, test, {u.site: u.test for u in ordered}, modulation, applied)

    def _check(self, updates: Sequence[SiteUpdate], paths: Sequence[Path]) -> None:
        lengths = {name: len(value) for name, value in self.model.items()}
        groups = len(self.schema.attributes[self.config.data.attribute])
        for update in updates:
            check_update(update, paths, self.modalities, lengths, groups)

    def _check_coverage(self, counts: NDArray[np.float64]) -> None:
        """Refuse a class, modality or group without any training record, [H, cells, C]."""
        attributes = self.schema.attributes
        by_cell = counts[0].reshape(*(len(g) for g in attributes.values()), len(self.schema.classes))
        for m, name in enumerate(self.modalities):
            if counts[m + 1].sum() == 0:
                raise DataError(f"modality `{name}` must be observed at some site, got no record; remove it")
        for axis, (attribute, groups) in enumerate(attributes.items()):
            totals = by_cell.sum(tuple(i for i in range(by_cell.ndim) if i != axis))
            for name, total in zip(groups, totals, strict=True):
                if total == 0:
                    raise DataError(
                        f"group `{name}` of attribute `{attribute}` must have a training record at some "
                        "site, got none; remove the group or join it to another"
                    )
        for name, total in zip(self.schema.classes, counts[0].sum(0), strict=True):
            if total == 0:
                raise DataError(f"class `{name}` must have a training record at some site, got none")

    def _initial_coefficients(self) -> Coefficients:
        """Return the method's coefficients before any signal is known."""
        heads, classes = len(self.modalities) + 1, len(self.schema.classes)
        groups = len(self.schema.attributes[self.config.data.attribute])
        scored = 1 if classes == 2 else classes
        empty = Signals(
            np.zeros((heads, groups, classes)),
            np.zeros((heads, groups)),
            np.zeros((heads, groups, scored, 2, self.config.report.bins)),
            None,
        )
        return self.config.method.modulate(empty, {}).coefficients
