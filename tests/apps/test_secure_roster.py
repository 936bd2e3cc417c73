"""Secure sums at a centre that knows its sites' keys: who does not sign is left out, the others go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from fedfair.errors import ConfigError, RunError
from fedfair.federation.consortium import slug
from fedfair.federation.keys import NodeKey, make_node_key, roster_text
from server.app import app as server_app
from server.roster import Roster
from simulations.grid import InProcessGrid
from tests.apps.runs import HEART, rounds
from tests.apps.test_site_settings import SITES

KEYS = {site: make_node_key(slug(site)) for site in SITES}


def registered(folder: Path, keys: dict[str, NodeKey], nodes: dict[str, int]) -> Path:
    file = folder / "nodes.json"
    entries = {
        slug(site): {"key": " ".join(key.public.decode().split()[:2]), "node": str(nodes[site])}
        for site, key in keys.items()
    }
    file.write_text(json.dumps(entries))
    return file


class Losing(InProcessGrid):
    """A grid one of whose nodes loses its key before the first message of a kind."""

    lost: tuple[int, str] = (0, "")
    gone = False

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked, (node, kind) = list(messages), self.lost
        if kind in {message.metadata.message_type for message in asked}:
            for key in ("key", "roster"):
                self._contexts[node].node_config.pop(key, None)
            self.gone = True
        # Its keys are in no roll, so it is sent none.
        called = {m.metadata.dst_node_id for m in asked if "roll" in m.content.config_records["secure"]}
        assert not self.gone or node not in called
        return super().push_messages(asked)


def run(folder: Path, lost: tuple[str, str] | None = None) -> Path:
    """Run with sites that sign; `lost` names one and the message before which it loses its key."""
    (folder / "roster.txt").write_bytes(roster_text({slug(s): key.public for s, key in KEYS.items()}))
    grid = Losing(client_app, len(SITES))
    nodes = dict(zip(SITES, grid._contexts, strict=True))
    for site, node in nodes.items():
        key = folder / f"{slug(site)}.key"
        key.write_bytes(KEYS[site].private)
        config = {"site": site, "key": str(key), "roster": str(folder / "roster.txt")}
        grid._contexts[node].node_config = dict(config)
    if lost is not None:
        grid.lost = (nodes[lost[0]], lost[1])
    values = {
        "config": str(HEART),
        "overrides": "rounds=2;report.resamples=20;secure.enabled=true;server.min_sites=3",
        "output": str(folder / "out"),
        "roster": str(registered(folder, KEYS, nodes)),
    }
    server_app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=values))
    return folder / "out"


def test_sites_that_sign_are_summed(tmp_path: Path) -> None:
    _, *records = rounds(run(tmp_path))
    assert [(record["sites"], record["failed"]) for record in records] == [(sorted(SITES), {})] * 2


def test_a_site_that_does_not_sign_stays_out_and_stops_nobody(tmp_path: Path) -> None:
    # Its receipt in the first round, its new keys for the second.
    _, *records = rounds(run(tmp_path, ("Hungary", "train")))
    assert len(records) == 2
    for record in records:
        assert record["sites"] == ["Cleveland", "Switzerland", "VA Long Beach"]
        assert list(record["failed"]) == ["Hungary"]


def test_a_site_that_cannot_sign_from_the_start_is_the_one_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Hungary is not: what is said to come from site 'Hungary' must be si"):
        run(tmp_path, ("Hungary", "query.secure"))


def test_a_roster_gives_keys_by_the_names_of_sites(tmp_path: Path) -> None:
    keys = Roster(registered(tmp_path, KEYS, dict.fromkeys(SITES, 1))).keys()
    assert keys is not None and len(keys) == len(SITES)
    assert keys["VA Long Beach"] != keys["Hungary"]
    assert "Hungary" in keys and "Mars" not in keys
    assert Roster(None).keys() is None


def test_a_roster_without_keys_or_with_other_ones(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"hungary": {"key": "", "node": "8"}}))
    assert Roster(file).keys() == {}
    file.write_text(json.dumps({"hungary": {"key": "ssh-rsa AAAA", "node": "8"}}))
    with pytest.raises(ConfigError, match="keys of site 'hungary' must be"):
        Roster(file).keys()
