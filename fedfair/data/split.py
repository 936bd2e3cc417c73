"""Training, validation and test records of one site: every record is on exactly one of the three sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.pixels import Pixels, Raw
from fedfair.data.schema import TEST, TRAIN, VALIDATION, SiteRecords
from fedfair.errors import DataError
from fedfair.seeding import numpy_generator

Index = NDArray[np.int64]
Split = Callable[[SiteRecords, float, int, str, str], tuple[Index, Index]]


NOT_SAID = -1
"""Among a data set's own sides: nothing says what the record is for, or two things say different sides."""


class Sides(NamedTuple):
    """Ascending indices of a site's records, by what they are for.

    Attributes
    ----------
    train, validation, test : Index
        To train on, to choose a model by, and to say how good the chosen one is.
    """

    train: Index
    validation: Index
    test: Index


def split_sides(
    split: Split, records: SiteRecords, test_fraction: float, validation_fraction: float, seed: int, site: str
) -> Sides:
    """Return the three sides: the test records first, then the validation records out of the rest.

    The test records are the same for every `validation_fraction`.

    Parameters
    ----------
    split : Split
        `train_test_split` or `hashed_split`.
    records, test_fraction, seed, site
        As for `train_test_split`.
    validation_fraction : float
        In [0, 1), of the records that are not test records; 0 leaves that side empty.
    """
    rest, test = split(records, test_fraction, seed, site, "split")
    if validation_fraction == 0 or len(rest) == 0:
        return Sides(rest, rest[:0], test)
    train, validation = split(records.select(rest), validation_fraction, seed, site, "validation")
    return Sides(rest[train], rest[validation], test)


def given_sides(records: SiteRecords, site: str, validates: bool) -> Sides:
    """Return the sides that the data set itself names.

    Parameters
    ----------
    records : SiteRecords
        The site's.
    site : str
        Its name, for the message.
    validates : bool
        Whether validation records are wanted; else they are left out: nobody trains or tests on them.

    Raises
    ------
    DataError
        If the data set names no sides, or not that of every record, or no record is for validation and some
        are wanted.
    """
    if records.sides is None:
        raise DataError(
            "`data.split` must be stratified or hashed for data that do not say what their records are for, "
            "got given; change it, or leave out `data.options.split: none` if it is there"
        )
    if (records.sides == NOT_SAID).any():
        raise DataError(
            f"site {site} must have its records in folders Training, Validation, Test or their sides in a "
            "table (a column `use`, or meta_site1_race_train.csv and its like) for `data.split: given`, got "
            "some with no side or two; mend that, or set `data.split: stratified`"
        )
    train, validation, test = (np.flatnonzero(records.sides == side) for side in (TRAIN, VALIDATION, TEST))
    if validates and len(validation) == 0:
        raise DataError(
            f"site {site} must have validation records for `data.validation_fraction` above 0 with "
            "`data.split: given`, got none"
        )
    return Sides(train, validation if validates else validation[:0], test)


def train_test_split(
    records: SiteRecords, test_fraction: float, seed: int, site: str, purpose: str = "split"
) -> tuple[Index, Index]:
    """Return the ascending indices of train and test records, stratified by label and attributes.

    A stratum is one label with one group of every attribute. It gives ``floor(test_fraction * n)``
    of its n records to the test set, or one more: the extra ones, which make the total
    ``round(test_fraction * n)``, go to strata drawn in proportion to what the floor cut off.
    A site of one or two records can end up with an empty side.

    Parameters
    ----------
    records : SiteRecords
        The site's n records.
    test_fraction : float
        In (0, 1).
    seed : int
        The run's seed.
    site : str
        The site's name; with the seed it fixes the draw.
    purpose : str
        What is set apart; another purpose is another draw.

    Raises
    ------
    DataError
        If `test_fraction` is outside (0, 1) or the site has no records.
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"`test_fraction` must be in (0, 1), got {test_fraction}")
    if len(records) == 0:
        raise DataError(f"`{site}` must have records to split, got none")
    strata = np.stack([records.labels, *records.attributes.values()])
    _, stratum, sizes = np.unique(strata, axis=1, return_inverse=True, return_counts=True)
    rng = numpy_generator(seed, site, purpose)
    quota = _quotas(sizes, test_fraction, rng)
    order = rng.permutation(len(records))
    shuffled = stratum.reshape(-1)[order]
    test = np.sort(np.concatenate([order[shuffled == s][:q] for s, q in enumerate(quota)]))
    return np.setdiff1d(np.arange(len(records)), test), test


def hashed_split(
    records: SiteRecords, test_fraction: float, seed: int, site: str, purpose: str = "split"
) -> tuple[Index, Index]:
    """Return the ascending indices of train and test records, each record's side decided by itself.

    A record goes to the test set if a hash of (seed, site, purpose, its values) is below `test_fraction`.
    Adding or removing one record therefore moves no other one, which a stratified draw does not
    give and record-level privacy rests on. Equal records share a side; either side may be empty.

    Parameters
    ----------
    records, test_fraction, seed, site, purpose
        As for `train_test_split`.

    Raises
    ------
    DataError
        If `test_fraction` is outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"`test_fraction` must be in (0, 1), got {test_fraction}")
    salt = f"{seed}\x1f{site}\x1f{purpose}".encode()
    columns: list[Raw | Index] = [*records.modalities.values(), records.labels, *records.attributes.values()]
    shares = np.empty(len(records))
    for i in range(len(records)):
        digest = hashlib.sha256(salt)
        for column in columns:
            digest.update(_bytes(column, i))
        shares[i] = int.from_bytes(digest.digest()[:8], "big") / 2.0**64
    return np.flatnonzero(shares >= test_fraction), np.flatnonzero(shares < test_fraction)


def _bytes(column: Raw | Index, i: int) -> bytes:
    """Return a record's values as bytes, the same whether an image is read from 8 bits or not."""
    if isinstance(column, Pixels):
        return column[np.array([i])].values().tobytes()
    own = column[i]
    # Missing values must have one pattern of bits, or equal records could part.
    return np.where(np.isnan(own), np.nan, own).tobytes() if own.dtype.kind == "f" else own.tobytes()


def _quotas(sizes: Index, test_fraction: float, rng: np.random.Generator) -> Index:
    """Return how many records of each stratum go to the test set."""
    share = test_fraction * sizes
    quota: Index = np.floor(share).astype(np.int64)
    extra = round(test_fraction * int(sizes.sum())) - int(quota.sum())
    if extra:
        cut = share - quota
        quota[rng.choice(len(sizes), extra, replace=False, p=cut / cut.sum())] += 1
    return quota
