"""A site whose state is put back: what it has answered stands in its record, and is not answered again."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from fedfair.errors import PrivacyError
from fedfair.secagg import Rule, Used
from tests.unit.secagg.federation import SESSION, Federation, Round, names, small_layout, small_values

A, B, C, D = names(4)
LAYOUT = small_layout(4)
VALUES = dict.fromkeys(names(4), small_values(np.random.default_rng(0)))


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "sums.jsonl"


@pytest.fixture
def round_(record: Path) -> Round:
    round_ = Round(Federation(names(4), Rule(), signed=True), 1, LAYOUT)
    round_.federation.used = Used(record)
    round_.advertise()
    return round_


def test_rounds_with_a_record_give_their_sums(round_: Round, record: Path) -> None:
    round_.share()
    round_.mask(VALUES)
    assert np.array_equal(round_.reveal()["counts"], 4 * VALUES[A]["counts"])
    Round(round_.federation, 2, LAYOUT).run(VALUES)
    again = Federation(names(4), Rule(), signed=True, session="a later start")
    again.used = Used(record)
    Round(again, 1, LAYOUT).run(VALUES)


def test_secrets_are_shared_once_though_the_state_is_old(round_: Round) -> None:
    """Two rolls for the same secrets: each half of the sites could open one of a site's two secrets."""
    federation, roll = round_.federation, round_.server.roll()
    old = federation.states[A]
    federation.ask(A, "share", 1, roll)
    federation.states[A] = old
    with pytest.raises(PrivacyError, match=f"site {A} must answer `share` of round 1 once"):
        federation.ask(A, "share", 1, dataclasses.replace(roll, announcements=roll.announcements[:3]))


def test_an_input_is_masked_once_though_the_state_is_old(round_: Round) -> None:
    """The difference of two inputs under the same masks is that of two uploads."""
    round_.share()
    federation, delivery = round_.federation, round_.server.deliveries()[A]
    old = federation.states[A]
    first = federation.ask(A, "mask", 1, delivery, LAYOUT, VALUES[A])
    federation.states[A] = old
    zero = {name: np.zeros_like(value) for name, value in VALUES[A].items()}
    with pytest.raises(PrivacyError, match="answer `mask` of round 1 once"):
        federation.ask(A, "mask", 1, delivery, LAYOUT, zero)
    federation.used = None  # what the record is for
    second = federation.ask(A, "mask", 1, delivery, LAYOUT, zero)
    told = LAYOUT.encode(VALUES[A]) - LAYOUT.encode(zero)
    assert np.array_equal(first.words - second.words, told)


def test_a_sum_is_opened_once_though_the_state_is_old(round_: Round) -> None:
    round_.share()
    round_.mask(VALUES)
    federation, request = round_.federation, round_.server.request()
    old = federation.states[A]
    federation.ask(A, "reveal", 1, request)
    federation.states[A] = old
    fewer = {site: signature for site, signature in request.survivors.items() if site != D}
    with pytest.raises(PrivacyError, match="answer `reveal` of round 1 once"):
        federation.ask(A, "reveal", 1, dataclasses.replace(request, survivors=fewer))


def test_a_refused_answer_uses_nothing_up(round_: Round) -> None:
    round_.share()
    federation, delivery = round_.federation, round_.server.deliveries()[A]
    with pytest.raises(PrivacyError, match="within 4"):
        federation.ask(
            A, "mask", 1, delivery, LAYOUT, dict(VALUES[A]) | {"rows/encoder": np.full((3, 2), 9.0)}
        )
    federation.ask(A, "mask", 1, delivery, LAYOUT, VALUES[A])


def test_it_is_on_the_disk_before_the_answer_is_given(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    Used(record).take(SESSION, A, 1, "mask")
    assert synced == [str(record), str(record.parent)]
    assert record.read_text().endswith(" 1 mask\n")


@pytest.mark.parametrize("cut", [b"0123", b"0123 1 mas", b"\xff\n\xfe"])
def test_a_line_that_was_cut_off_takes_no_other_with_it(record: Path, cut: bytes) -> None:
    used = Used(record)
    used.take(SESSION, A, 1, "mask")
    record.write_bytes(record.read_bytes() + cut)
    for step in ("reveal", "share"):
        used.take(SESSION, A, 1, step)
    for step in ("mask", "reveal", "share"):
        with pytest.raises(PrivacyError, match=f"`{step}` of round 1 once"):
            used.take(SESSION, A, 1, step)


@pytest.mark.parametrize("session", ["two\nlines", "a \u2028 b", "ä", "\ud800", "x" * 10**5])
def test_a_run_of_any_name_is_one_line(record: Path, session: str) -> None:
    used = Used(record)
    used.take(session, A, 1, "mask")
    used.take(session, B, 1, "mask")
    assert len(record.read_bytes().splitlines()) == 2
    assert record.stat().st_size < 200
    with pytest.raises(PrivacyError, match="once"):
        used.take(session, A, 1, "mask")


def test_a_place_that_cannot_be_written_is_refused_and_not_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivacyError, match="must be a file that can be written") as caught:
        Used(tmp_path / "file" / "sums.jsonl").take(SESSION, A, 1, "mask")
    assert str(tmp_path) not in str(caught.value)


def test_of_two_programs_at_once_one_waits_for_the_other(record: Path) -> None:
    Used(record).take(SESSION, A, 1, "mask")
    second = threading.Thread(target=Used(record).take, args=(SESSION, A, 2, "mask"))
    with record.open("rb") as first:
        # Held as a reader holds it: another reader would not wait, a writer does.
        fcntl.flock(first, fcntl.LOCK_SH)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert len(first.readlines()) == 1
    second.join(10)
    assert len(record.read_bytes().splitlines()) == 2
