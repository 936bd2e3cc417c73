"""From a site's raw records to model inputs, standardised with federated moments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedfair.batch import MultimodalBatch
from fedfair.data.checks import checked_indices, checked_raw
from fedfair.data.moments import numeric_columns
from fedfair.data.pixels import Pixels, in_memory, observed
from fedfair.data.schema import Schema, SiteRecords, TableModality, TextModality
from fedfair.errors import ShapeError
from fedfair.stored import Stored, StoredBatch


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
    """Return the records as a model takes them, a `StoredBatch` where some modality is `Pixels`.

    A numeric column becomes its z-score (0 if missing) and an observed flag, a categorical one a
    one-hot code (all 0 if missing), in column order. Arrays, volumes and words pass through, with zeros
    for what is missing. A modality is present where at least one of its values was observed.

    Parameters
    ----------
    records : SiteRecords
        n records.
    schema : Schema
        M modalities.
    moments : Mapping[str, NDArray[np.float64]]
        What `fedfair.data.moments.moments` returned, [2, n_numeric] per table modality.
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
    order = tuple(schema.modalities)
    return StoredBatch(inputs, present, labels, own, all_cells, stored=stored, order=order)


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


def _encoded(
    records: SiteRecords, name: str, schema: Schema, moments: Mapping[str, NDArray[np.float64]]
) -> torch.Tensor:
    """Return one modality as the model takes it."""
    raw, modality = in_memory(records.modalities[name]), schema.modalities[name]
    if isinstance(modality, TableModality):
        value = _encode_table(raw, modality, _moments_of(name, modality, moments))
    else:
        value = np.where(np.isnan(raw), 0, raw)
    kind = np.int64 if isinstance(modality, TextModality) else np.float32
    return torch.from_numpy(value.astype(kind))


def _moments_of(
    name: str, modality: TableModality, moments: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return a modality's moments, refused unless [2, n_numeric]."""
    expected, found = (2, len(numeric_columns(modality))), moments.get(name)
    if found is None or found.shape != expected:
        shape = None if found is None else list(found.shape)
        raise ShapeError(f"`moments` of {name} must be {list(expected)}, got {shape}")
    return found


def _encode_table(
    raw: NDArray[np.float32], modality: TableModality, moments: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the encoded table [n, D]."""
    scores = np.full(raw.shape, np.nan)
    scores[:, numeric_columns(modality)] = (raw[:, numeric_columns(modality)] - moments[0]) / moments[1]
    blocks = []
    for column, value, score in zip(modality.columns, raw.T, scores.T, strict=True):
        if column.categories:
            blocks.append(value[:, None] == np.arange(len(column.categories)))
        else:
            blocks.append(np.stack([np.nan_to_num(score), ~np.isnan(value)], axis=1))
    return np.concatenate(blocks, axis=1).astype(np.float64)
