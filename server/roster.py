"""Which site each node may be: the centre registered every key under one site's name."""

from __future__ import annotations

import json
from pathlib import Path

from fedfair.federation.settings import slug


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
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            self._sites = {int(e["node"]): name for name, e in entries.items() if e["node"]}
        return self._sites.get(node) == slug(site)
