"""From a site's raw records to model inputs, standardised with federated moments.

Sites send sums over their training records (`feature_sums`); the server adds them and broadcasts
the pooled `moments`; each site encodes its own records with those. Under privacy nothing is summed:
the moments are `public_moments`. Values are float32, whose
squares float64 holds exactly, so plain sums of squares need no shift to be accurate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.batch import MultimodalBatch
from fedfair.data.checks import checked_indices, checked_raw
from fedfair.data.pixels import Pixels, Raw, observed
from fedfair.data.schema import Schema, SiteRecords, TableModality, TextModality
from fedfair.errors import ConfigError, InconsistentUpdates, ShapeError, nearest
from fedfair.stored import Stored, StoredBatch

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
        columns = _numeric(modality)
        raw = _in_memory(checked_raw(records, name, modality))[:, columns].astype(np.float64)
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
    columns = {name: [m.columns[j].name for j in _numeric(m)] for name, m in _tables(schema).items()}
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


def encode(
    records: SiteRecords, schema: Schema, moments: Mapping[str, NDArray[np.float64]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the model's inputs and which record has which modality.

    A numeric column becomes its z-score (0 if missing) and an observed flag, a categorical one a
    one-hot code (all 0 if missing), in column order. Arrays, volumes and words pass through, with zeros
    for what is missing.

    Parameters
    ----------
    records : SiteRecords
        n records.
    schema : Schema
        M modalities.
    moments : Mapping[str, NDArray[np.float64]]
        What `moments` returned, [2, n_numeric] per table modality.

    Returns
    -------
    tuple[dict[str, torch.Tensor], torch.Tensor]
        Float32 [n, D] or [n, *shape] per modality (int64 for words), and bool [n, M]: at least one value
        observed.

    Raises
    ------
    ShapeError, DataError
        If records or moments do not fit the schema.
    """
    present = torch.from_numpy(observed_modalities(records, schema))
    return {name: _encoded(records, name, schema, moments) for name in schema.modalities}, present


def observed_modalities(records: SiteRecords, schema: Schema) -> NDArray[np.bool_]:
    """Return bool [n, M]: which record has at least one observed value of which modality.

    Raises
    ------
    ShapeError, DataError
        If the records do not fit the schema.
    """
    raws = [checked_raw(records, name, modality) for name, modality in schema.modalities.items()]
    return np.stack([observed(raw) for raw in raws], axis=1)


def to_batch(
    records: SiteRecords,
    schema: Schema,
    moments: Mapping[str, NDArray[np.float64]],
    groups: NDArray[np.int64],
) -> MultimodalBatch:
    """Return the encoded records as one batch, a `StoredBatch` where some modality is `Pixels`.

    Parameters
    ----------
    records, schema, moments
        As for `encode`.
    groups : NDArray[np.int64]
        [n]: the value of the modulated attribute, or `cells`.

    Raises
    ------
    ShapeError, DataError
        If something does not fit the schema.
    """
    checked_indices("labels", records.labels, len(records), len(schema.classes))
    if groups.shape != (len(records),):
        raise ShapeError(f"`groups` must be [{len(records)}], got {list(groups.shape)}")
    present = torch.from_numpy(observed_modalities(records, schema))
    labels, own, all_cells = map(torch.tensor, (records.labels, groups, cells(records, schema)))
    images = {name: raw for name in schema.modalities if isinstance(raw := records.modalities[name], Pixels)}
    inputs = {n: _encoded(records, n, schema, moments) for n in schema.modalities if n not in images}
    if not images:
        return MultimodalBatch(inputs, present, labels, own, all_cells)
    stored = {name: Stored(raw) for name, raw in images.items()}
    return StoredBatch(inputs, present, labels, own, all_cells, stored, tuple(schema.modalities))


def cells(records: SiteRecords, schema: Schema) -> NDArray[np.int64]:
    """Return each record's index [n] into the product of all attributes' groups.

    C order over `schema.attributes`: the last attribute varies fastest. 0 without attributes.

    Raises
    ------
    ShapeError, DataError
        If an attribute is absent or out of range.
    """
    index = np.zeros(len(records), np.int64)
    for name, groups in schema.attributes.items():
        values = records.attributes.get(name)
        index = index * len(groups) + checked_indices(name, values, len(records), len(groups))
    return index


def num_cells(schema: Schema) -> int:
    """Return the number of combinations of all attributes' groups (1 without attributes)."""
    return int(np.prod([len(groups) for groups in schema.attributes.values()], dtype=np.int64))


def _in_memory(raw: Raw) -> NDArray[np.float32]:
    return raw.values() if isinstance(raw, Pixels) else raw


def _encoded(
    records: SiteRecords, name: str, schema: Schema, moments: Mapping[str, NDArray[np.float64]]
) -> torch.Tensor:
    """Return one modality as the model takes it."""
    raw, modality = _in_memory(records.modalities[name]), schema.modalities[name]
    if isinstance(modality, TableModality):
        value = _encode_table(raw, modality, _moments_of(name, modality, moments))
    else:
        value = np.where(np.isnan(raw), 0, raw)
    kind = np.int64 if isinstance(modality, TextModality) else np.float32
    return torch.from_numpy(value.astype(kind))


def _tables(schema: Schema) -> dict[str, TableModality]:
    """Return the table modalities."""
    return {name: m for name, m in schema.modalities.items() if isinstance(m, TableModality)}


def _numeric(modality: TableModality) -> list[int]:
    """Return the positions of the numeric columns."""
    return [j for j, column in enumerate(modality.columns) if not column.categories]


def _moments_of(
    name: str, modality: TableModality, moments: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return a modality's moments, refused unless [2, n_numeric]."""
    expected, found = (2, len(_numeric(modality))), moments.get(name)
    if found is None or found.shape != expected:
        shape = None if found is None else list(found.shape)
        raise ShapeError(f"`moments` of {name} must be {list(expected)}, got {shape}")
    return found


def _encode_table(
    raw: NDArray[np.float32], modality: TableModality, moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the encoded table [n, D]."""
    scores = np.full(raw.shape, np.nan)
    scores[:, _numeric(modality)] = (raw[:, _numeric(modality)] - moments[0]) / moments[1]
    blocks = []
    for column, value, score in zip(modality.columns, raw.T, scores.T, strict=True):
        if column.categories:
            blocks.append(value[:, None] == np.arange(len(column.categories)))
        else:
            blocks.append(np.stack([np.nan_to_num(score), ~np.isnan(value)], axis=1))
    return np.concatenate(blocks, axis=1).astype(np.float64)
