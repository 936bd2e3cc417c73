"""What a data set is made of, agreed by every site before the first round."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedfair.data.pixels import Raw
from fedfair.errors import DataError


@dataclass(frozen=True)
class Column:
    """One column of a table: numeric when `categories` is empty, else categorical.

    Attributes
    ----------
    name : str
        The column's name.
    categories : tuple[str, ...]
        The vocabulary, the same at every site. A raw value is the index into it, or NaN.
    """

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableModality:
    """A modality that is a table; raw values are float [n, len(columns)] with NaN for missing.

    Encoded width D: two per numeric column (z-score, observed flag), one per category.
    """

    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded record, ``(D,)``."""
        return (sum(len(c.categories) or 2 for c in self.columns),)


@dataclass(frozen=True)
class ArrayModality:
    """A modality that is an array per record (image, volume, signal), used as it is.

    Raw values are float32 [n, *shape]; a record whose modality is missing has NaN everywhere.
    """

    shape: tuple[int, ...]


@dataclass(frozen=True)
class VolumeModality:
    """A modality that is a stack of slices, as many as a record has.

    Raw values are float32 [n, *shape] with shape (slices, height, width), the most that any record has;
    slices that a record does not have are NaN everywhere, and a record without the modality has none.
    Encoded, they are zeros: a slice of zeros says nothing.
    """

    shape: tuple[int, int, int]


@dataclass(frozen=True)
class TextModality:
    """A modality that is words, each as a number that every site gives it alike.

    Raw values are float32 [n, length], whole numbers in ``1 .. vocabulary - 1`` and NaN after the last
    word. Encoded, they are int64 with 0 after the last word.

    Attributes
    ----------
    length : int
        The most words of a record, longer texts are cut; the encoded record has this shape.
    vocabulary : int
        The number of different numbers, 0 included; at most 2^24, which float32 tells apart.
    """

    length: int
    vocabulary: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded record, ``(length,)``."""
        return (self.length,)


TRAIN, VALIDATION, TEST = 0, 1, 2
"""What a record is for."""

UNKNOWN = "unknown"
"""The group, the last of its attribute, of the records of whom nobody knows the attribute."""

Modality = TableModality | ArrayModality | VolumeModality | TextModality


@dataclass(frozen=True)
class Schema:
    """Names and shapes shared by all sites.

    Attributes
    ----------
    modalities : Mapping[str, Modality]
        M modalities, in order.
    classes : tuple[str, ...]
        C class names; a label is the index into it. For C = 2 class 1 is the positive one.
    attributes : Mapping[str, tuple[str, ...]]
        Each demographic attribute with its group names; they are inputs of no modality. Records of a group
        `UNKNOWN` train the model like all others, and are left out where groups are compared.
    sites : tuple[str, ...]
        K site names.
    """

    modalities: Mapping[str, Modality]
    classes: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    sites: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous schema."""
        if not self.modalities or len(self.classes) < 2 or not self.sites:
            raise DataError(
                "a schema needs at least one modality, two classes and one site, got "
                f"{list(self.modalities)}, {list(self.classes)}, {list(self.sites)}"
            )
        for name in (*self.modalities, *self.attributes):
            if not name.replace("_", "").replace("-", "").isalnum():
                raise DataError(f"`{name}` must be letters, digits, - and _ to name a modality or attribute")
        for name, groups in self.attributes.items():
            if UNKNOWN in groups[:-1] or list(groups) == [UNKNOWN]:
                raise DataError(
                    f"`{UNKNOWN}` must be the last group of `{name}`, after one that is known, got "
                    f"{list(groups)}; records of whom nobody knows the attribute belong there, others do not"
                )

    def digest(self) -> str:
        """Return a hash of all names, shapes and their order, which two sides compare."""
        text = repr([list(part.items()) for part in (self.modalities, self.attributes)])
        return hashlib.sha256(f"{text}{self.classes}{self.sites}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SiteRecords:
    """The raw records of one site. They never leave it.

    Attributes
    ----------
    modalities : Mapping[str, Raw]
        Raw values per modality: float32 [n, ...], NaN where missing; or `Pixels`, for images and volumes.
    labels : NDArray[np.int64]
        [n] in ``0 .. C-1``.
    attributes : Mapping[str, NDArray[np.int64]]
        [n] per attribute, ``0 .. G-1``.
    sides : NDArray[np.int8] | None
        [n], `TRAIN`, `VALIDATION` or `TEST`, where the data set itself says what each record is for; -1
        (`fedfair.data.split.NOT_SAID`) where it does not say so of a record, or says two things.
    """

    modalities: Mapping[str, Raw]
    labels: NDArray[np.int64]
    attributes: Mapping[str, NDArray[np.int64]]
    sides: NDArray[np.int8] | None = None

    def __len__(self) -> int:
        """Return n."""
        return int(self.labels.shape[0])

    def select(self, index: NDArray[np.int64]) -> SiteRecords:
        """Return the records at `index`, in that order."""
        return SiteRecords(
            {name: raw[index] for name, raw in self.modalities.items()},
            self.labels[index],
            {name: groups[index] for name, groups in self.attributes.items()},
            None if self.sides is None else self.sides[index],
        )


@runtime_checkable
class DataAdapter(Protocol):
    """What a data set must offer: its schema, and the records of one site."""

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`; raise `DataError` when there are none."""
