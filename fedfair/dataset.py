"""The data set that a configuration names."""

from __future__ import annotations

from fedfair.config import Config
from fedfair.data import DataAdapter, open_dataset


def dataset_of(config: Config) -> DataAdapter:
    """Return the adapter of all sites, records dealt out as the configuration says.

    Raises
    ------
    ConfigError, DataError
        As `open_dataset` does.
    """
    data = config.data
    return open_dataset(data.name, data.path, data.options, config.seed, partition=data.partition)
