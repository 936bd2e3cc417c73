"""The kept model on the test records: signals by site, and the metrics they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfair.record import metric_record
from fedfair.signals import Signals, Variance

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """The final model on the test records, by site, head and product cell.

    Attributes
    ----------
    counts, train_counts : Array
        [K, H, cells, C] test and training records; the latter are zeros if nobody may know them. K is 1
        where the server saw sums over all sites alone.
    losses : Array
        [K, H, cells].
    histograms : Array
        [K, H, cells, T, 2, Q].
    variance : Array
        [K, 3] of the noise in a cell of histograms, losses and head gradients; zeros if exact.
    """

    counts: Array
    losses: Array
    histograms: Array
    train_counts: Array
    variance: Array

    @property
    def released(self) -> bool:
        """Whether the test signals carry noise."""
        return bool(self.variance.any())

    @property
    def pooled(self) -> Signals:
        """The test signals of all sites together."""
        summed = (self.counts.sum(0), self.losses.sum(0), self.histograms.sum(0))
        return Signals(*summed, variance=_noise(self.variance.sum(0)))

    def site(self, index: int) -> Signals:
        """Return the test signals of one site."""
        own = (self.counts[index], self.losses[index], self.histograms[index])
        return Signals(*own, variance=_noise(self.variance[index]))


def _noise(variance: Array) -> Variance | None:
    return Variance(*variance.tolist()) if variance.any() else None


def load_evaluation(path: Path) -> Evaluation | None:
    """Return the evaluation in a file, or None if there is none."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        stored = {"variance": np.zeros((len(arrays["counts"]), 3)), **arrays}
    return Evaluation(**{item.name: stored[item.name] for item in fields(Evaluation)})


def metrics_of(
    evaluation: Evaluation, sites: Sequence[str], schema: Mapping[str, Any], attribute: str, min_count: int
) -> dict[str, Any]:
    """Return the metrics by one attribute as the record of a round has them.

    Parameters
    ----------
    evaluation : Evaluation
        Of the kept model.
    sites : Sequence[str]
        Whose signals these are, [K].
    schema : Mapping[str, Any]
        Names of modalities and of the groups of each attribute, as an experiment stores them.
    attribute : str
        One of the schema's.
    min_count : int
        Records of a class below which an AUC is not estimable.
    """
    by_site = {site: evaluation.site(k) for k, site in enumerate(sites)}
    attributes, modalities = schema["attributes"], schema["modalities"]
    return metric_record(evaluation.pooled, by_site, attributes, attribute, modalities, min_count)
