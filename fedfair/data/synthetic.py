"""Synthetic records of any size, to try methods at scale. No patient is behind them.

In modality m a record of class y and sex g has the vector ``signal[m][g] * direction[m, y] + noise``,
noise standard normal. Directions are scaled so that the root mean square distance between two
classes is 1; for two classes the best AUC that modality m allows in group g is therefore
``Phi(signal[m][g] / sqrt(2))``. Group differences here are parameters, not findings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.options import as_integer, as_items, as_mapping, as_number, entries
from fedfair.data.schema import ArrayModality, Schema, SiteRecords
from fedfair.errors import ConfigError
from fedfair.seeding import numpy_generator

_ATTRIBUTES = {"sex": ("female", "male"), "age": ("<50", "50-59", "60+")}
_IMAGE = {"width": 32, "signal": [1.2, 2.0], "missing": 0.1}
_TABLE = {"width": 8, "signal": [1.2, 1.2]}
_COUNTS = {"sites": 8, "records": 256, "classes": 2}
_DEFAULTS = {**_COUNTS, "concentration": 10.0, "modalities": {"image": _IMAGE, "table": _TABLE}}


class _Modality(NamedTuple):
    """Vector width, signal by sex, and the rate at which records lack the modality."""

    width: int
    signal: tuple[float, ...]
    missing: float


def _modality(options: object, where: str) -> _Modality:
    """Read ``{width, signal: [female, male], missing}``."""
    found = {"missing": 0.0, **entries(options, where, ["width", "signal"], ["missing"])}
    signal = tuple(as_number(x, f"{where}.signal", 0) for x in as_items(found["signal"], f"{where}.signal"))
    if len(signal) != len(_ATTRIBUTES["sex"]):
        raise ConfigError(f"`{where}.signal` must be two numbers, for women and men, got {list(signal)}")
    width = as_integer(found["width"], f"{where}.width", 1)
    return _Modality(width, signal, as_number(found["missing"], f"{where}.missing", 0, 1))


class SyntheticAdapter:
    """Synthetic sites; each is generated from (seed, site) alone, when it is loaded.

    Parameters
    ----------
    options : object
        A mapping; every key may be left out. `sites`, `records` per site and `classes`: counts.
        `concentration`: a site's class, sex and age shares are drawn from a symmetric Dirichlet;
        the larger, the more alike the sites. `modalities`: name to ``{width, signal: [female,
        male], missing: 0}``; a record that would lack every modality keeps one at random.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError, DataError
        If an option is unknown or out of range.
    """

    def __init__(self, options: object, seed: int) -> None:
        where = "data.options"
        found = {**_DEFAULTS, **entries(options, where, optional=_DEFAULTS)}
        counts = {name: as_integer(found[name], f"{where}.{name}", 1) for name in _COUNTS}
        modalities = as_mapping(found["modalities"], f"{where}.modalities")
        self._seed, self._records = seed, counts["records"]
        self._concentration = as_number(found["concentration"], f"{where}.concentration", 0.01)
        self._modalities = {m: _modality(value, f"{where}.modalities.{m}") for m, value in modalities.items()}
        self._schema = Schema(
            {name: ArrayModality((modality.width,)) for name, modality in self._modalities.items()},
            tuple(f"class {c}" for c in range(counts["classes"])),
            _ATTRIBUTES,
            tuple(f"site-{k:04d}" for k in range(1, counts["sites"] + 1)),
        )
        self._directions = {
            name: _directions(counts["classes"], modality.width, seed, name)
            for name, modality in self._modalities.items()
        }

    @property
    def schema(self) -> Schema:
        """The schema shared by all sites."""
        return self._schema

    def load(self, site: str) -> SiteRecords:
        """Return the records of `site`; raise `DataError` when the schema does not name it."""
        check_site(site, self._schema.sites)
        rng = numpy_generator(self._seed, "synthetic", site)
        labels = self._draw(rng, len(self._schema.classes))
        attributes = {name: self._draw(rng, len(groups)) for name, groups in _ATTRIBUTES.items()}
        rates = [modality.missing for modality in self._modalities.values()]
        absent = rng.random((self._records, len(rates))) < rates
        kept = rng.integers(len(rates), size=self._records)
        absent[np.arange(self._records), kept] &= ~absent.all(axis=1)
        modalities = {}
        for m, (name, modality) in enumerate(self._modalities.items()):
            raw = rng.standard_normal((self._records, modality.width))
            raw += np.array(modality.signal)[attributes["sex"], None] * self._directions[name][labels]
            raw[absent[:, m]] = np.nan
            modalities[name] = raw.astype(np.float32)
        return SiteRecords(modalities, labels, attributes)

    def _draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Return one index in ``0 .. size-1`` per record, with shares drawn for the site."""
        return rng.choice(size, self._records, p=rng.dirichlet(np.full(size, self._concentration)))


def _directions(classes: int, width: int, seed: int, name: str) -> NDArray[np.float64]:
    """Return a modality's class means [C, d], root mean square pairwise distance 1."""
    rng = numpy_generator(seed, "synthetic", "directions", name)
    means: NDArray[np.float64] = rng.standard_normal((classes, width))
    means -= means.mean(axis=0)
    # The mean squared distance over pairs of C centred points is 2 / (C - 1) times their summed squares.
    means /= np.sqrt(2 * (means**2).sum() / (classes - 1))
    return means
