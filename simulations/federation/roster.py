"""Which sites may connect: the keys in the centre's folder, kept the same as the SuperLink's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fedfair.errors import RunError
from simulations.federation.control import Centre

ROSTER = "nodes.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A site's public key, and the node id it was let in with (empty if another program did it)."""

    key: str
    node: str


class Roster:
    """The sites that the SuperLink knows, by the stem of their key's file.

    A key that is added to ``centre/nodes`` is registered and one that is taken away is turned away,
    while the programs run.

    Parameters
    ----------
    centre : Centre
        Its SuperLink answers.
    """

    def __init__(self, centre: Centre) -> None:
        self._centre = centre
        self._refused: dict[str, str] = {}
        present = centre.nodes()
        self._entries = {
            site: entry for site, entry in read_roster(centre.state).items() if entry.node in present
        }

    def update(self, say: Say) -> None:
        """Bring the SuperLink in line with the folder; say what changed and which key it refuses."""
        keys = {path.stem: path for path in sorted((self._centre.root / "nodes").glob("*.pub"))}
        wanted = {site: _key(path) for site, path in keys.items()}
        for site, entry in list(self._entries.items()):
            if wanted.get(site) != entry.key:
                self._turn_away(site, entry, say)
        for site in sorted(wanted.keys() - self._entries.keys()):
            self._let_in(site, wanted[site], keys[site], say)

    def _let_in(self, site: str, key: str, path: Path, say: Say) -> None:
        try:
            node = self._centre.register(path)
        except RunError as error:
            if self._refused.get(site) != str(error):
                self._refused[site] = str(error)
                say(f"site {site} cannot connect, its key {path} is refused: {error}")
            return
        self._entries[site] = Entry(key, node or "")
        self._save()
        if node:
            say(f"site {site} may connect now")

    def _turn_away(self, site: str, entry: Entry, say: Say) -> None:
        if entry.node:
            self._centre.unregister(entry.node)
        del self._entries[site]
        self._save()
        say(f"site {site} may not connect with its old key any more")

    def _save(self) -> None:
        text = json.dumps({site: asdict(entry) for site, entry in self._entries.items()}, indent=1)
        partial = self._centre.state / (ROSTER + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._centre.state / ROSTER)


def read_roster(state: Path) -> dict[str, Entry]:
    """Return what a roster saved; nothing if there is none yet."""
    file = state / ROSTER
    if not file.is_file():
        return {}
    return {site: Entry(**entry) for site, entry in json.loads(file.read_text(encoding="utf-8")).items()}


def _key(path: Path) -> str:
    """Return the key without its comment."""
    return " ".join(path.read_text(encoding="utf-8").split()[:2])
