"""Which site each node may be: the centre registered every key under one site's name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedfair.federation.settings import slug
from fedfair.secagg import PublicKeys, load_public_keys


class Roster:
    """The nodes that the centre let in.

    Parameters
    ----------
    path : Path | None
        As ``fedfair federation start`` keeps it; None where anybody may be any site (a simulation).
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sites: dict[int, str] = {}

    def allows(self, node: int, site: str) -> bool:
        """Whether the node's key was registered for the site."""
        if self._path is None:
            return True
        if node not in self._sites:
            self._sites = {int(e["node"]): name for name, e in _entries(self._path).items() if e["node"]}
        return self._sites.get(node) == slug(site)

    def keys(self) -> PublicKeys | None:
        """Return the sites' public keys as they are registered now; None where anybody may be any site.

        Raises
        ------
        ConfigError
            If one is not of an elliptic curve.
        """
        if self._path is None:
            return None
        entries = _entries(self._path)
        return _Keys(load_public_keys({name: e["key"].encode() for name, e in entries.items() if e["key"]}))


class _Keys(Mapping[str, Any]):
    """Keys by site, whose slug the roster has."""

    def __init__(self, by_slug: PublicKeys) -> None:
        self._by_slug = by_slug

    def __getitem__(self, site: str) -> object:
        return self._by_slug[slug(site)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_slug)

    def __len__(self) -> int:
        return len(self._by_slug)


def _entries(path: Path) -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return entries
