"""The small parts of an exchange: failures in words, large replies on disk, which node is which site."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error

from fedfair.errors import RunError
from server import spool
from server.replies import in_words
from server.roster import Roster


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (2, "<class 'fedfair.errors.DataError'>:<'`sex` must be known'>", "`sex` must be known"),
        (2, "<class 'ValueError'>:<'it's\nwrong'>", "ValueError: it's wrong"),
        (2, "a\x1b[2J\r\n\u202eb" + 600 * "c", "a [2J   b" + 91 * "c" + " ... " + 395 * "c"),
        (2, "disk full", "disk full"),
        (5, "no heartbeat", "the node went offline (no heartbeat)"),
        (8, "", "its program ended"),
        (7, "", "code 7"),
    ],
)
def test_a_failure_is_told_in_the_sites_own_words(code: int, reason: str, words: str) -> None:
    assert in_words(Error(code, reason)) == words


def test_a_large_array_lies_on_disk_and_is_the_same(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((3, spool.LARGE // 8)).astype(np.float32)
    kept = spool.spooled(array, tmp_path)
    assert isinstance(kept, np.memmap)
    assert np.array_equal(kept, array)
    assert not list(tmp_path.iterdir())  # the file has no name: nothing is left behind
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1


def test_a_small_array_stays_in_memory(tmp_path: Path) -> None:
    array = np.zeros(10, dtype=np.float32)
    assert spool.spooled(array, tmp_path) is array


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LARGE", 0)
    with pytest.raises(RunError, match=r"must hold the sites' updates of one round, got: .*make room there"):
        spool.spooled(np.zeros(3), tmp_path / "none")


def test_a_roster_hears_of_sites_that_are_let_in_later(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps({"va-long-beach": {"key": "", "node": "7"}, "other": {"key": "", "node": ""}}))
    roster = Roster(file)
    assert roster.allows(7, "VA Long Beach")
    assert not roster.allows(7, "Hungary")
    assert not roster.allows(8, "Hungary")
    file.write_text(json.dumps({"hungary": {"key": "", "node": "8"}}))
    assert roster.allows(8, "Hungary")


def test_without_a_roster_anybody_may_be_any_site() -> None:
    assert Roster(None).allows(1, "Hungary")
