"""Data sets: what the sites hold, in one form whatever the source.

`open_dataset` turns a configuration's `data` block into an adapter; the adapter gives the schema
that all sites share, for which it needs no records, and one site's raw records. Splitting is in
`split`, standardising and encoding for the model in `encode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedfair.data.eye import PROFILES, EyeAdapter
from fedfair.data.heart import heart, heart_spec
from fedfair.data.own_table import SITE_FILE, OwnTable
from fedfair.data.partition import Partition, Partitioned
from fedfair.data.phantom import NOTICE, SYNTHETIC, PhantomAdapter
from fedfair.data.schema import DataAdapter, Schema, SiteRecords
from fedfair.data.spec import TableSpec
from fedfair.data.synthetic import SyntheticAdapter
from fedfair.data.table import TableAdapter, read_csv
from fedfair.errors import ConfigError, nearest
from fedfair.plugins import call_factory, import_factory

__all__ = [
    "DataAdapter",
    "OwnTable",
    "Schema",
    "SiteRecords",
    "SyntheticAdapter",
    "TableAdapter",
    "TableSpec",
    "is_made_up",
    "open_dataset",
    "read_csv",
]

Options = Mapping[str, object]

_MADE_UP = ("synthetic", "phantom")
_BUILT_IN = ("heart", "csv", *_MADE_UP, *PROFILES)


def open_dataset(
    name: str,
    path: str | None,
    options: Options,
    seed: int,
    owner: str | None = None,
    partition: Options | None = None,
) -> DataAdapter:
    """Return the adapter of a data set.

    Parameters
    ----------
    name : str
        ``heart`` (four real hospitals, shipped), ``csv`` (a table at `path`, described by
        `TableSpec` options), ``synthetic`` and ``phantom`` (see `SyntheticAdapter` and
        `PhantomAdapter`), ``fairvision``, ``fairvlmed`` or ``fairfedmed`` (a folder at `path`, see
        `EyeAdapter`), or a user's own ``package.module:factory``, called as
        ``factory(path=..., options=..., seed=...)``.
    path : str | None
        Where the data are; for none that is made up, and for ``heart`` only with an owner. None at the
        server of a deployment: an adapter then still gives its schema, and fails when it is to load.
    options : Mapping[str, object]
        The data set's own options.
    seed : int
        The run's seed; only synthetic data depend on it.
    owner : str | None
        The site whose own file `path` is: all its rows are that site's. It is read at the first
        `load`; a file of several sites is read here.
    partition : Mapping[str, object] | None
        Deals the records out to virtual sites, see `Partition`; not with an owner.

    Raises
    ------
    ConfigError
        If the name, path or options are unknown or do not go together.
    DataError
        If the data cannot be read.
    """
    adapter = _open(name, path, options, seed, owner)
    if not partition:
        return adapter
    if owner is not None:
        raise ConfigError(
            "`data.partition` must be left out where a site has its own records: it is for simulations"
        )
    return Partitioned(adapter, Partition.from_options(partition), seed)


def _open(name: str, path: str | None, options: Options, seed: int, owner: str | None) -> DataAdapter:
    if ":" in name:
        return _own(name, path, options, seed)
    if name not in _BUILT_IN:
        raise ConfigError(
            f"`data.name` must be one of {list(_BUILT_IN)} or `package.module:factory`, got {name!r}"
            f"{nearest(name, _BUILT_IN)}"
        )
    if name == "csv":
        spec = TableSpec.from_options(options)
        if path is None or owner is not None:
            return OwnTable(path, spec, owner)
        return TableAdapter(read_csv(path), spec)
    if name in PROFILES:
        return EyeAdapter(name, path, options, seed, owner)
    if path is not None and (name in _MADE_UP or owner is None):
        key = "`data.path`" if owner is None else SITE_FILE
        shown = repr(path) if owner is None else "a file"
        raise ConfigError(f"{key} must be left out for {name}, got {shown}; for your own table use csv")
    if name in _MADE_UP:
        return SyntheticAdapter(options, seed) if name == "synthetic" else PhantomAdapter(options, seed)
    if options:
        raise ConfigError(f"`data.options` must be left out for heart, got {sorted(options)}")
    return heart() if path is None else OwnTable(path, heart_spec(), owner)


def is_made_up(name: str, path: str | None) -> bool:
    """Return whether nobody is behind the records, as far as the name or the folder tells."""
    notice = None if path is None else Path(path) / NOTICE
    return name in _MADE_UP or (notice is not None and notice.is_file() and _is_notice(notice))


def _is_notice(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.readline().strip() == SYNTHETIC


def _own(name: str, path: str | None, options: Options, seed: int) -> DataAdapter:
    """Return what the user's factory makes."""
    factory = import_factory("data.name", name)
    adapter = call_factory("data.name", factory, path=path, options=options, seed=seed)
    if not (isinstance(adapter, DataAdapter) and isinstance(adapter.schema, Schema)):
        made = type(adapter).__name__
        raise ConfigError(
            f"`data.name` must make an adapter with `schema` and `load`, got {made} by {name!r}"
        )
    return adapter
