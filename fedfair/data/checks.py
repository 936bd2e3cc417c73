"""Checks that raw records fit the schema, whichever adapter made them; no message shows a value."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedfair.data.pixels import Pixels, Raw
from fedfair.data.schema import (
    UNKNOWN,
    ArrayModality,
    Modality,
    Schema,
    SiteRecords,
    TableModality,
    TextModality,
    VolumeModality,
)
from fedfair.errors import DataError, ShapeError, counted, nearest


def check_site(site: str, sites: Collection[str]) -> None:
    """Refuse a site that the schema does not name.

    Raises
    ------
    DataError
        Naming the nearest site.
    """
    if site not in sites:
        raise DataError(
            f"`site` must be one of the schema's {len(sites)}, got {site!r}{nearest(site, sites)}"
        )


def checked_raw(records: SiteRecords, name: str, modality: Modality) -> Raw:
    """Return a modality's raw values; of `Pixels` none is read.

    Raises
    ------
    ShapeError
        If they are absent or not [n, columns] or [n, *shape].
    DataError
        If a value is infinite, a category is no index, a word none of the vocabulary, or an array (or a
        slice of a volume) is only partly missing, or a table or text is `Pixels`.
    """
    tail = (len(modality.columns),) if isinstance(modality, TableModality) else modality.shape
    raw = records.modalities.get(name)
    if raw is None or raw.shape != (len(records), *tail):
        raise ShapeError(
            f"`{name}` must be {[len(records), *tail]}, got {None if raw is None else list(raw.shape)}"
        )
    if isinstance(raw, Pixels):
        if isinstance(modality, TableModality | TextModality):
            raise DataError(f"`{name}` must be float32, got Pixels: only images and volumes may be these")
        if isinstance(modality, ArrayModality):
            _refuse_partly(raw.seen, name)
        return raw
    infinite = int(np.isinf(raw).sum())
    if infinite:
        raise DataError(f"`{name}` must be finite or NaN, got {infinite} infinite values")
    if isinstance(modality, TableModality):
        _check_codes(raw, modality)
    elif isinstance(modality, TextModality):
        _check_words(raw, name, modality)
    elif isinstance(modality, VolumeModality):
        _check_whole(raw.reshape(-1, *modality.shape[1:]), f"slices of {name}")
    else:
        _check_whole(raw, name)
    return raw


def _check_codes(raw: NDArray[np.float32], modality: TableModality) -> None:
    """Refuse a categorical value that is no index into its column's vocabulary."""
    for column, value in zip(modality.columns, raw.T, strict=True):
        size = len(column.categories)
        wrong = value[~np.isnan(value) & ~np.isin(value, np.arange(size))]
        if size and len(wrong):
            raise DataError(
                f"`{column.name}` must be an index in 0 .. {size - 1} or NaN, "
                f"got {counted(len(wrong), 'other value')}"
            )


def _check_words(raw: NDArray[np.float32], name: str, modality: TextModality) -> None:
    """Refuse what is no word of the vocabulary, and gaps between words."""
    missing = np.isnan(raw)
    word = (raw >= 1) & (raw < modality.vocabulary) & (raw == np.floor(raw))
    if wrong := int((~missing & ~word).sum()):
        raise DataError(
            f"`{name}` must hold whole numbers in 1 .. {modality.vocabulary - 1} or NaN, "
            f"got {counted(wrong, 'other')}"
        )
    if gaps := int((missing[:, :-1] & ~missing[:, 1:]).any(axis=1).sum()):
        raise DataError(
            f"`{name}` must be NaN after the last word only, got gaps in {counted(gaps, 'record')}"
        )


def _check_whole(raw: NDArray[np.float32], name: str) -> None:
    """Refuse arrays that are only partly missing: there is no telling what the gap means."""
    _refuse_partly(~np.isnan(raw.reshape(len(raw), math.prod(raw.shape[1:]))), name)


def _refuse_partly(seen: NDArray[np.bool_], name: str) -> None:
    """Refuse records of which some parts [n, k] are there and others are not."""
    if partly := int((seen.any(axis=1) & ~seen.all(axis=1)).sum()):
        raise DataError(f"`{name}` must be NaN nowhere or everywhere in a record, got {partly} in between")


def checked_indices(name: str, values: NDArray[np.int64] | None, length: int, size: int) -> NDArray[np.int64]:
    """Return labels or groups.

    Raises
    ------
    ShapeError
        If they are absent or not [length].
    DataError
        If one is outside ``0 .. size-1``.
    """
    if values is None or values.shape != (length,):
        raise ShapeError(f"`{name}` must be [{length}], got {None if values is None else list(values.shape)}")
    if values.dtype.kind not in "iu":
        raise DataError(f"`{name}` must be integers in 0 .. {size - 1}, got {values.dtype}")
    if outside := int(((values < 0) | (values >= size)).sum()):
        raise DataError(f"`{name}` must be in 0 .. {size - 1}, got {outside} other values")
    return values


def check_coverage(schema: Schema, counts: NDArray[np.float64], modulated: Collection[str]) -> None:
    """Refuse a class, modality or known group of a modulated attribute without any training record.

    Parameters
    ----------
    schema : Schema
        M modalities, C classes, and attributes.
    counts : NDArray[np.float64]
        [M + 1, cells, C] pooled records by head, cell of all attributes and label.
    modulated : Collection[str]
        Attributes whose groups a method is to serve; of others an empty group is not estimable.

    Raises
    ------
    DataError
        Naming it.
    """
    attributes = schema.attributes
    by_cell = counts[0].reshape(*(len(g) for g in attributes.values()), len(schema.classes))
    for m, name in enumerate(schema.modalities):
        if counts[m + 1].sum() == 0:
            raise DataError(f"modality `{name}` must be observed at some site, got no record; remove it")
    for axis, (attribute, groups) in enumerate(attributes.items()):
        totals = by_cell.sum(tuple(i for i in range(by_cell.ndim) if i != axis))
        for name, total in zip(groups, totals, strict=True):
            if total == 0 and name != UNKNOWN and attribute in modulated:
                raise DataError(
                    f"group `{name}` of attribute `{attribute}` must have a training record at some site, "
                    "got none; modulate another attribute, or join the group to another in the data"
                )
    for name, total in zip(schema.classes, counts[0].sum(0), strict=True):
        if total == 0:
            raise DataError(f"class `{name}` must have a training record at some site, got none")
