"""The records of all sites dealt out again to virtual ones, to study how unlike sites may be.

Only where one machine holds all records. What a partition makes is a parameter of the experiment, and no
finding about hospitals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.options import as_integer, as_mapping, as_number, as_texts, entries
from fedfair.data.pixels import concatenated, observed, without
from fedfair.data.schema import DataAdapter, Schema, SiteRecords
from fedfair.errors import ConfigError, DataError, nearest
from fedfair.seeding import numpy_generator

LABEL = "label"
_TRIES = 200


@dataclass(frozen=True)
class Partition:
    """How to deal records out.

    Attributes
    ----------
    sites : int
        K virtual sites, ``site-0001`` and so on; 0 keeps the data's own.
    over : tuple[str, ...]
        ``label`` and attributes: records that agree in all of them are one category. Empty: all records
        are one, and sites differ by chance alone.
    concentration : float
        Of the symmetric Dirichlet distribution of a category's shares; the smaller, the more unlike the
        sites.
    smallest : int
        Records that every site has at least; shares are drawn again until they do.
    missing : Mapping[str, float]
        Rate at which records lack a modality, at sites that `missing_at` does not name.
    missing_at : Mapping[str, Mapping[str, float]]
        The same by site.
    """

    sites: int = 0
    over: tuple[str, ...] = ()
    concentration: float = 1.0
    smallest: int = 1
    missing: Mapping[str, float] = field(default_factory=dict)
    missing_at: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: object) -> Partition:
        """Read a mapping, of which every key may be left out.

        Raises
        ------
        ConfigError
            If a key is unknown or a value no such thing.
        """
        where = "data.partition"
        known = [each.name for each in dataclasses.fields(cls)]
        found = entries(options, where, [], known)
        given = {key: value for key, value in found.items() if value is not None}
        over = given.get("over", [])
        at = as_mapping(given.get("missing_at", {}), f"{where}.missing_at")
        return cls(
            as_integer(given.get("sites", 0), f"{where}.sites", 0),
            () if over == [] else as_texts([over] if isinstance(over, str) else over, f"{where}.over"),
            as_number(given.get("concentration", 1.0), f"{where}.concentration", 1e-3, 1e6),
            as_integer(given.get("smallest", 1), f"{where}.smallest", 1),
            _rates(given.get("missing", {}), f"{where}.missing"),
            {site: _rates(rates, f"{where}.missing_at.{site}") for site, rates in at.items()},
        )


def _rates(options: object, where: str) -> dict[str, float]:
    return {
        name: as_number(rate, f"{where}.{name}", 0, 1) for name, rate in as_mapping(options, where).items()
    }


class Partitioned:
    """An adapter whose sites are virtual.

    Parameters
    ----------
    base : DataAdapter
        Gives all records.
    partition : Partition
        How to deal them out.
    seed : int
        The run's; it decides who gets which record, and which records lack a modality.

    Raises
    ------
    ConfigError
        If the partition names what the data do not have.
    """

    def __init__(self, base: DataAdapter, partition: Partition, seed: int) -> None:
        self._base, self._partition, self._seed = base, partition, seed
        names = tuple(f"site-{number:04d}" for number in range(1, partition.sites + 1))
        self._schema = dataclasses.replace(base.schema, sites=names) if names else base.schema
        _check_names(partition, self._schema)

    @property
    def schema(self) -> Schema:
        """The data's, with the virtual sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of a virtual site, in the order of the data's sites."""
        check_site(site, self._schema.sites)
        if not self._partition.sites:
            return self._thinned(self._base.load(site), site)
        place = self._schema.sites.index(site)
        return self._thinned(self._pool.select(np.flatnonzero(self._dealt == place)), site)

    @cached_property
    def _pool(self) -> SiteRecords:
        return pooled([self._base.load(site) for site in self._base.schema.sites])

    @cached_property
    def _dealt(self) -> NDArray[np.int64]:
        """The place of each record's virtual site, [n]."""
        partition, records = self._partition, self._pool
        # Without this, a thousand draws would find out.
        possible = partition.sites * partition.smallest <= len(records)
        parts = [records.labels if name == LABEL else records.attributes[name] for name in partition.over]
        category = (
            np.unique(np.stack(parts), axis=1, return_inverse=True)[1] if parts else np.zeros(len(records))
        )
        rng = numpy_generator(self._seed, "partition")
        for _ in range(_TRIES if possible else 0):
            dealt = _deal(category.astype(np.int64), partition.sites, partition.concentration, rng)
            if np.bincount(dealt, minlength=partition.sites).min() >= partition.smallest:
                return dealt
        raise ConfigError(
            f"`data.partition.smallest` must be what {partition.sites} sites of {len(records)} records can "
            f"have, got {partition.smallest}; take fewer sites or a larger `concentration`"
        )

    def _thinned(self, records: SiteRecords, site: str) -> SiteRecords:
        """Return the records without the modalities that chance takes away; each keeps one that it has."""
        rates = {**self._partition.missing, **self._partition.missing_at.get(site, {})}
        if not any(rates.values()):
            return records
        rng = numpy_generator(self._seed, "partition", "missing", site)
        names = list(records.modalities)
        present = np.stack([observed(records.modalities[name]) for name in names], axis=1)
        lost = rng.random(present.shape) < [rates.get(name, 0.0) for name in names]
        # Of those that a record has, one at random stays if all would go.
        kept = np.where(present, rng.random(present.shape), -1.0).argmax(axis=1)
        bare = ~(present & ~lost).any(axis=1)
        lost[np.flatnonzero(bare), kept[bare]] = False
        modalities = {name: without(records.modalities[name], lost[:, m]) for m, name in enumerate(names)}
        return dataclasses.replace(records, modalities=modalities)


def _check_names(partition: Partition, schema: Schema) -> None:
    """Refuse names that the data do not have."""
    modalities = tuple(schema.modalities)
    for where, wanted, known in (
        ("over", partition.over, (LABEL, *schema.attributes)),
        ("missing", partition.missing, modalities),
        ("missing_at", partition.missing_at, schema.sites),
        *((f"missing_at.{site}", rates, modalities) for site, rates in partition.missing_at.items()),
    ):
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"`data.partition.{where}` must name one of {list(known[:20])}, got {name!r}"
                    f"{nearest(name, known)}"
                )


def pooled(parts: Sequence[SiteRecords]) -> SiteRecords:
    """Return the records of several sites as those of one.

    Raises
    ------
    DataError
        If there is none.
    """
    if not parts:
        raise DataError("`parts` must hold the records of a site, got none")
    first, sides = parts[0], [part.sides for part in parts if part.sides is not None]
    return SiteRecords(
        {name: concatenated([part.modalities[name] for part in parts]) for name in first.modalities},
        np.concatenate([part.labels for part in parts]),
        {name: np.concatenate([part.attributes[name] for part in parts]) for name in first.attributes},
        np.concatenate(sides) if len(sides) == len(parts) else None,
    )


def _deal(
    category: NDArray[np.int64], sites: int, concentration: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a site per record: each category's records are split by shares from Dir(concentration).

    After Hsu, Qi and Brown, arXiv 1909.06335, and Li et al., arXiv 2102.02079, whose shares are over sites
    for each class.
    """
    dealt = np.empty(len(category), np.int64)
    for value in np.unique(category):
        members = rng.permutation(np.flatnonzero(category == value))
        shares = rng.dirichlet(np.full(sites, concentration))
        ends = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for site, own in enumerate(np.split(members, ends)):
            dealt[own] = site
    return dealt
