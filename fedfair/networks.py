"""Stored networks: a run names one, and in which folder it lies is for each machine to say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fedfair.config import Config
from fedfair.errors import PrivacyError


def check_networks(config: Config, folder: Path | None) -> None:
    """Refuse a run that names a network other than by its name in the site's folder.

    Parameters
    ----------
    config : Config
        As the server sends it.
    folder : Path | None
        `weights` of the site's settings.

    Raises
    ------
    PrivacyError
        Naming the key of the run: any other path would tell what lies where at the site.
    """
    for modality, choice in _named(config).items():
        key, path = f"model.options.encoders.{modality}.path", choice["path"]
        if folder is None:
            raise PrivacyError(
                f"`{key}` must be left out, as the site's settings name no folder of networks, got {path!r}; "
                "the site may set `weights`"
            )
        if not _inside(path):
            raise PrivacyError(
                f"`{key}` must be a name in the site's folder `weights`, neither absolute nor with .., "
                f"got {path!r}"
            )


def with_networks(config: Config, folder: Path | None) -> Config:
    """Return the configuration with each network's name as its place in a folder, if there is one.

    An absolute path stays what it is.
    """
    named = _named(config)
    if folder is None or not named:
        return config
    own = {name: {**choice, "path": str(folder / str(choice["path"]))} for name, choice in named.items()}
    options = {**config.model.options, "encoders": {**config.model.options["encoders"], **own}}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, options=options))


def _named(config: Config) -> dict[str, Mapping[str, object]]:
    """Return the options of each encoder that names a network, by modality; others are not looked into."""
    found = config.model.options.get("encoders")
    choices = found.items() if isinstance(found, Mapping) else ()
    return {name: own for name, own in choices if isinstance(own, Mapping) and own.get("path") is not None}


def _inside(path: object) -> bool:
    """Return whether a path leads from a folder to a place in it."""
    if not isinstance(path, str):
        return False
    place = Path(path)
    return bool(place.parts) and not place.is_absolute() and ".." not in place.parts
