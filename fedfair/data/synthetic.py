"""Synthetic records of any size, to try methods at scale. No patient is behind them.

In modality m a record of class y and sex g has the vector ``signal[m][g] * direction[m, y] + noise``,
noise standard normal. Directions are scaled so that the root mean square distance between two
classes is 1; for two classes the best AUC that modality m allows in group g is therefore
``Phi(signal[m][g] / sqrt(2))``. Group differences here are parameters, not findings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair.data.checks import check_site
from fedfair.data.options import as_integer, as_items, as_mapping, as_number, entries
from fedfair.data.schema import ArrayModality, Schema, SiteRecords
from fedfair.errors import ConfigError
from fedfair.seeding import numpy_generator

_ATTRIBUTES = {"sex": ("female", "male"), "age": ("<50", "50-59", "60+")}
_MODALITIES = {
    "image": {"width": 32, "signal": [1.2, 2.0], "missing": 0.1},
    "table": {"width": 8, "signal": [1.2, 1.2]},
}


@dataclass(frozen=True)
class _Modality:
    """Vector width, signal by sex, and the rate at which records lack the modality."""

    width: int
    signal: tuple[float, ...]
    missing: float

    @classmethod
    def from_options(cls, options: object, where: str) -> _Modality:
        """Read ``{width, signal: [female, male], missing}``."""
        found = entries(options, where, ["width", "signal"], ["missing"])
        signal = [as_number(x, f"{where}.signal", 0) for x in as_items(found["signal"], f"{where}.signal")]
        if len(signal) != len(_ATTRIBUTES["sex"]):
            raise ConfigError(
                f"`{where}.signal` must hold one number per group {_ATTRIBUTES['sex']}, got {signal}"
            )
        missing = as_number(found.get("missing", 0.0), f"{where}.missing", 0, 1)
        return cls(as_integer(found["width"], f"{where}.width", 1), tuple(signal), missing)


class SyntheticAdapter:
    """Synthetic sites; each is generated from (seed, site) alone, when it is loaded.

    Parameters
    ----------
    options : object
        A mapping; every key may be left out. `sites` (8) and `records` (256 per site): counts.
        `classes` (2). `concentration` (10): class, sex and age shares of a site are drawn from a
        symmetric Dirichlet; the larger, the more alike the sites. `modalities`: name to
        ``{width, signal: [female, male], missing: 0}``. A record that would lack every modality
        keeps one at random.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If an option is unknown or out of range.
    """

    def __init__(self, options: object, seed: int) -> None:
        where = "data.options"
        found = entries(
            options, where, optional=["sites", "records", "classes", "concentration", "modalities"]
        )
        sites = as_integer(found.get("sites", 8), f"{where}.sites", 1)
        classes = as_integer(found.get("classes", 2), f"{where}.classes", 2)
        modalities = as_mapping(found.get("modalities", _MODALITIES), f"{where}.modalities")
        self._seed = seed
        self._records = as_integer(found.get("records", 256), f"{where}.records", 1)
        self._concentration = as_number(found.get("concentration", 10.0), f"{where}.concentration", 1e-3)
        self._modalities = {
            name: _Modality.from_options(value, f"{where}.modalities.{name}")
            for name, value in modalities.items()
        }
        self._directions = {
            name: _directions(numpy_generator(seed, "synthetic", "directions", name), classes, modality.width)
            for name, modality in self._modalities.items()
        }
        self._schema = Schema(
            {name: ArrayModality((modality.width,)) for name, modality in self._modalities.items()},
            tuple(f"class {c}" for c in range(classes)),
            _ATTRIBUTES,
            tuple(f"site-{k:04d}" for k in range(1, sites + 1)),
        )

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
        rates = np.array([modality.missing for modality in self._modalities.values()])
        absent = rng.random((self._records, len(rates))) < rates
        kept = rng.integers(len(rates), size=self._records)
        absent[np.arange(self._records), kept] &= ~absent.all(axis=1)
        modalities = {}
        for m, (name, modality) in enumerate(self._modalities.items()):
            signal = np.array(modality.signal)[attributes["sex"], None]
            raw = signal * self._directions[name][labels] + rng.standard_normal(
                (self._records, modality.width)
            )
            raw[absent[:, m]] = np.nan
            modalities[name] = raw.astype(np.float32)
        return SiteRecords(modalities, labels, attributes)

    def _draw(self, rng: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Return one index in ``0 .. size-1`` per record, with shares drawn for the site."""
        return rng.choice(size, self._records, p=rng.dirichlet(np.full(size, self._concentration)))


def _directions(rng: np.random.Generator, classes: int, width: int) -> NDArray[np.float64]:
    """Return class means [C, d] with root mean square pairwise distance 1."""
    means = rng.standard_normal((classes, width))
    means -= means.mean(axis=0)
    # The mean squared distance over pairs of C centred points is 2 / (C - 1) times their summed squares.
    return means / np.sqrt(2 * (means**2).sum() / (classes - 1))
