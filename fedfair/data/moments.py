"""Means and standard deviations of a federation's table columns, from the sums of each site.

Sites send sums over their training records (`feature_sums`); the server adds them and broadcasts
the pooled `moments`. Under privacy nothing is summed: the moments are `public_moments`. Values are
float32, whose squares float64 holds exactly, so plain sums of squares need no shift to be accurate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import checked_raw
from fedfair.data.pixels import in_memory
from fedfair.data.schema import Schema, SiteRecords, TableModality
from fedfair.errors import ConfigError, InconsistentUpdates, nearest

FeatureSums = dict[str, NDArray[np.float64]]
"""Per table modality [3, n_numeric]: count, sum and sum of squares of the observed values."""

Moments = dict[str, NDArray[np.float64]]
"""Per table modality [2, n_numeric]: mean and standard deviation."""


def feature_sums(records: SiteRecords, schema: Schema) -> FeatureSums:
    """Return the count, sum and sum of squares of every numeric column's observed values.

    Parameters
    ----------
    records : SiteRecords
        The records to sum over, normally a site's training records.
    schema : Schema
        The schema; array modalities have no sums.

    Raises
    ------
    ShapeError, DataError
        If the records do not fit the schema.
    """
    sums = {}
    for name, modality in _tables(schema).items():
        columns = numeric_columns(modality)
        raw = in_memory(checked_raw(records, name, modality))[:, columns].astype(np.float64)
        value = np.nan_to_num(raw)
        sums[name] = np.stack([np.isfinite(raw).sum(axis=0), value.sum(axis=0), (value**2).sum(axis=0)])
    return sums


def add_feature_sums(a: FeatureSums, b: FeatureSums) -> FeatureSums:
    """Return the sums over both record sets together.

    Raises
    ------
    InconsistentUpdates
        If modalities or shapes differ.
    """
    shapes = [{name: value.shape for name, value in sums.items()} for sums in (a, b)]
    if shapes[0] != shapes[1]:
        raise InconsistentUpdates(
            f"`feature_sums` must have one shape at every site, got {shapes[0]} and {shapes[1]}"
        )
    return {name: a[name] + b[name] for name in a}


def moments(sums: FeatureSums) -> Moments:
    """Return mean and standard deviation (divisor n) of every numeric column.

    Where nothing was observed the mean is 0. The standard deviation is 1 where nothing was
    observed or all values agree to about 1e-6 of their size, float32's own precision.

    Raises
    ------
    InconsistentUpdates
        If a sum is not finite, or a count or sum of squares is negative.
    """
    result = {}
    for name, value in sums.items():
        if not np.isfinite(value).all() or (value[[0, 2]] < 0).any():
            raise InconsistentUpdates(
                f"`feature_sums` of {name} must be finite with counts >= 0, got {value.tolist()}"
            )
        mean, mean_square = value[1:] / np.maximum(value[0], 1)
        variance = mean_square - mean**2
        # The difference of two rounded sums is noise below this share of them.
        constant = variance <= 1e-12 * mean_square
        result[name] = np.stack([mean, np.sqrt(np.where(constant, 1.0, variance))])
    return result


def public_moments(schema: Schema, ranges: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return moments that no record is behind: a column's [low, high] is taken as mean -+ 2 sd.

    Parameters
    ----------
    schema : Schema
        Its numeric columns need a range each; a column of that name in two modalities shares it.
    ranges : Mapping[str, Any]
        [low, high] per column, public knowledge such as physiological limits.

    Raises
    ------
    ConfigError
        If a numeric column has no range, or a range no column.
    """
    columns = {name: [m.columns[j].name for j in numeric_columns(m)] for name, m in _tables(schema).items()}
    known = {column for names in columns.values() for column in names}
    for column in sorted(known ^ set(ranges)):
        if column in ranges:
            raise ConfigError(
                f"`data.ranges` must name numeric columns, got {column!r}{nearest(column, known)}"
            )
        raise ConfigError(
            f"`data.ranges.{column}` must be [low, high], public limits of that column, got none; mean and "
            "deviation of the records would leave the site without noise"
        )
    ends = {column: np.asarray(pair, dtype=np.float64) for column, pair in ranges.items()}
    return {
        name: np.array([[ends[c].mean() for c in names], [np.ptp(ends[c]) / 4 for c in names]])
        for name, names in columns.items()
    }


def _tables(schema: Schema) -> dict[str, TableModality]:
    """Return the table modalities."""
    return {name: m for name, m in schema.modalities.items() if isinstance(m, TableModality)}


def numeric_columns(modality: TableModality) -> list[int]:
    """Return the positions of the numeric columns."""
    return [j for j, column in enumerate(modality.columns) if not column.categories]
