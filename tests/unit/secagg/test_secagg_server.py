"""What the server refuses of a site, and when it says that there is no sum."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest

from fedfair.errors import InconsistentUpdates, PrivacyError, RunError
from fedfair.secagg import CannotUnmask, MaskedInput, Receipt, Rule, ServerSession, Shares
from fedfair.secagg._open import _left_out
from fedfair.secagg.primitives import combine
from tests.unit.secagg.federation import (
    SESSION,
    Federation,
    Round,
    masked_round,
    names,
    small_layout,
    small_values,
)

A, B, C, D = names(4)
LAYOUT = small_layout(4)


def test_announcements_must_be_keys_of_the_round_and_come_once() -> None:
    federation = Federation(names(4), Rule())
    good, server = federation.ask(A, "advertise", 1), ServerSession(SESSION, 1, Rule())
    for wrong in (
        dataclasses.replace(good, round_number=2),
        dataclasses.replace(good, session="another"),
    ):
        with pytest.raises(InconsistentUpdates, match="must be for round 1"):
            server.announce(wrong)
    for name in ("mask_key", "parcel_key"):
        for key in (bytes(32), b""):
            with pytest.raises(PrivacyError, match="public key"):
                server.announce(dataclasses.replace(good, **{name: key}))
    server.announce(good)
    with pytest.raises(InconsistentUpdates, match="once"):
        server.announce(good)
    with pytest.raises(CannotUnmask, match="at least 2 sites"):
        server.roll()
    server.announce(federation.ask(B, "advertise", 1))
    server.roll()
    with pytest.raises(InconsistentUpdates, match="late"):
        server.announce(federation.ask(C, "advertise", 1))


def test_parcels_must_be_one_for_each_neighbour() -> None:
    round_ = Round(Federation(names(4), Rule()), 1, LAYOUT)
    with pytest.raises(RunError, match="call `roll` first"):
        round_.server.deliveries()
    round_.advertise()
    roll = round_.server.roll()
    good = {site: round_.federation.ask(site, "share", 1, roll) for site in names(4)}
    fewer = {site: box for site, box in good[A].sealed.items() if site != B}
    for wrong in (
        dataclasses.replace(good[A], sealed=fewer),
        dataclasses.replace(good[A], sealed=good[A].sealed | {"site 99": b""}),
        dataclasses.replace(good[A], site="site 99", sealed={}),
    ):
        with pytest.raises(InconsistentUpdates, match="one share to each neighbour"):
            round_.server.share(wrong)
    for site in (A, B, C):
        round_.server.share(good[site])
    with pytest.raises(InconsistentUpdates, match="once"):
        round_.server.share(good[A])
    assert set(round_.server.deliveries()) == {A, B, C} == set(round_.server.members)
    with pytest.raises(InconsistentUpdates, match="late"):
        round_.server.share(good[D])


def test_too_few_that_share_end_the_round() -> None:
    round_ = Round(Federation(names(4), Rule()), 1, LAYOUT)
    round_.gone = {A: "share", B: "share"}
    round_.advertise()
    round_.share()
    with pytest.raises(CannotUnmask, match="got 0 of 4"):
        round_.server.deliveries()


def test_inputs_must_come_once_from_members_in_the_layout_of_all() -> None:
    round_ = masked_round(gone={D: "mask"})
    other = small_layout(4, 32)
    good = MaskedInput(Receipt(D, LAYOUT.digest, b""), np.zeros(LAYOUT.words, np.uint64))
    for wrong, match in (
        (
            dataclasses.replace(good, receipt=Receipt("site 99", LAYOUT.digest, b"")),
            "must come from a member",
        ),
        (dataclasses.replace(good, receipt=Receipt(A, LAYOUT.digest, b"")), "once"),
        (dataclasses.replace(good, receipt=Receipt(D, other.digest, b"")), "has another"),
        (dataclasses.replace(good, words=good.words[:-1]), "must send"),
        (dataclasses.replace(good, words=good.words.astype(np.uint32)), "must send"),
    ):
        with pytest.raises(InconsistentUpdates, match=match):
            round_.server.receive(wrong, LAYOUT)
    theirs = MaskedInput(Receipt(D, other.digest, b""), np.zeros(other.words, np.uint32))
    with pytest.raises(InconsistentUpdates, match="has another"):
        round_.server.receive(theirs, other)
    round_.server.request()
    with pytest.raises(InconsistentUpdates, match="late"):
        round_.server.receive(good, LAYOUT)
    assert round_.server.survivors == (A, B, C)


def test_a_late_input_still_counts_while_nothing_is_opened() -> None:
    round_ = masked_round(gone={C: "mask", D: "mask"})
    with pytest.raises(CannotUnmask, match="3 holders of the shares of site"):
        round_.server.request()
    values = small_values(np.random.default_rng(0))
    delivery = round_.server.deliveries()[C]
    round_.server.receive(round_.federation.ask(C, "mask", 1, delivery, LAYOUT, values), LAYOUT)
    round_.gone = {}
    round_.reveal()
    assert round_.server.survivors == (A, B, C)


def opened(round_: Round, *sites: str) -> dict[str, Shares]:
    request = round_.server.request()
    return {site: round_.federation.ask(site, "reveal", 1, request) for site in sites}


def test_shares_must_be_those_that_were_asked_for() -> None:
    round_ = masked_round(gone={D: "mask"})
    with pytest.raises(InconsistentUpdates, match="when it is asked"):
        round_.server.reveal(Shares(A, {}, {}))
    good = opened(round_, A, B, C)
    with pytest.raises(RunError, match="request"):
        masked_round().server.result()
    for wrong in (
        dataclasses.replace(good[A], seeds=good[A].seeds | {D: good[A].keys[D]}),
        dataclasses.replace(good[A], keys={}),
        dataclasses.replace(good[A], seeds=good[B].seeds),  # another's shares
        dataclasses.replace(good[A], seeds={}, keys=good[A].keys | good[A].seeds),
        dataclasses.replace(good[A], keys={D: b""}),
    ):
        with pytest.raises((InconsistentUpdates, PrivacyError)):
            round_.server.reveal(wrong)
    with pytest.raises(InconsistentUpdates, match="when it is asked"):
        round_.server.reveal(dataclasses.replace(good[A], site=D))
    for site in (A, B, C):
        round_.server.reveal(good[site])
    with pytest.raises(InconsistentUpdates, match="once"):
        round_.server.reveal(good[A])
    round_.server.result()


@pytest.mark.parametrize("change", ["mute", "replayed", "another's"])
def test_a_site_that_does_not_sign_its_keys_is_left_out_and_holds_up_nobody(change: str) -> None:
    round_ = Round(Federation(names(4), Rule(collusion=0), signed=True), 1, LAYOUT)
    old = round_.federation.ask(D, "advertise", 1)
    new = {site: round_.federation.ask(site, "advertise", 1) for site in names(4)}
    signature = {"mute": b"", "replayed": old.signature, "another's": new[A].signature}[change]
    with pytest.raises(PrivacyError, match=f"site '{D}' must be signed by it"):
        round_.server.announce(dataclasses.replace(new[D], signature=signature))
    for site in (A, B, C):
        round_.server.announce(new[site])
    round_.share()
    round_.mask(dict.fromkeys(names(4), small_values(np.random.default_rng(0))))
    round_.reveal()
    assert round_.server.survivors == (A, B, C)


def test_a_receipt_that_is_not_signed_for_these_members_is_left_out_and_holds_up_nobody() -> None:
    round_ = Round(Federation(names(4), Rule(collusion=0), signed=True), 1, LAYOUT)
    round_.advertise()
    round_.share()
    deliveries, values = round_.server.deliveries(), small_values(np.random.default_rng(0))
    masked = {s: round_.federation.ask(s, "mask", 1, deliveries[s], LAYOUT, values) for s in names(4)}
    for signature in (b"", masked[A].receipt.signature):
        receipt = dataclasses.replace(masked[D].receipt, signature=signature)
        with pytest.raises(PrivacyError, match=f"site '{D}' must be signed by it"):
            round_.server.receive(dataclasses.replace(masked[D], receipt=receipt), LAYOUT)
    for site in (A, B, C):
        round_.server.receive(masked[site], LAYOUT)
    sums = round_.reveal()
    assert np.array_equal(sums["counts"], 3 * values["counts"])


def tampered(share: bytes) -> bytes:
    """Return a share that leads to another secret; X25519 ignores some bits of a key's first byte."""
    return share[:5] + bytes([share[5] ^ 1]) + share[6:]


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_a_wrong_share_gives_no_sum_unless_others_suffice(kind: str) -> None:
    for count, enough in ((4, False), (6, True)):  # 3 of 3 holders that are left, and 4 of 5
        round_ = masked_round(count, gone={names(count)[-1]: "mask"})
        answers = opened(round_, *round_.server.survivors)
        owner = names(count)[-1] if kind == "keys" else A
        shares = getattr(answers[B], kind)
        answers[B] = dataclasses.replace(answers[B], **{kind: shares | {owner: tampered(shares[owner])}})
        for answer in answers.values():
            round_.server.reveal(answer)
        if enough:
            round_.server.result()
        else:
            with pytest.raises(CannotUnmask, match=f"the shares of site {owner} are wrong"):
                round_.server.result()


@pytest.mark.parametrize("kind", ["seeds", "keys"])
@pytest.mark.parametrize("liars", [1, 2])
@pytest.mark.parametrize("count", [10, 16])
def test_liars_among_many_holders_spoil_no_sum(count: int, liars: int, kind: str) -> None:
    # Of 64 sets in lexical order, all begin with the first site.
    round_ = masked_round(count, Rule(collusion=0), signed=False, gone={names(count)[-1]: "mask"})
    answers = opened(round_, *round_.server.survivors)
    for liar in names(count)[:liars]:
        shares = {owner: tampered(share) for owner, share in getattr(answers[liar], kind).items()}
        answers[liar] = dataclasses.replace(answers[liar], **{kind: shares})
    for answer in answers.values():
        round_.server.reveal(answer)
    sums, rng = round_.server.result(), np.random.default_rng(0)
    values = [small_values(rng)["counts"] for _ in names(count)][:-1]
    assert np.array_equal(sums["counts"], np.sum(values, axis=0))


def test_a_liar_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = masked_round(10, Rule(collusion=0), signed=False)
    answers = opened(round_, *names(10))
    wrong = {owner: tampered(share) for owner, share in answers[C].seeds.items()}
    answers[C] = dataclasses.replace(answers[C], seeds=wrong)
    for answer in answers.values():
        round_.server.reveal(answer)
    counted = Mock(side_effect=combine)
    monkeypatch.setattr("fedfair.secagg._open.combine", counted)
    round_.server.result()
    # For the first secret: none left out, then each of the first three; for each other secret one try.
    assert counted.call_count == 4 + 9


def test_each_set_of_shares_is_tried_once_and_fewest_are_left_out_first() -> None:
    tried = [tuple(h for h in range(7) if h not in out)[:4] for out in _left_out([*range(7)], 4)]
    assert sorted(tried) == [*combinations(range(7), 4)]
    assert tried[:5] == [(0, 1, 2, 3), (1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 3, 4), (0, 1, 2, 4)]


def test_too_few_answers_give_no_sum() -> None:
    round_ = masked_round()
    for answer in opened(round_, A, B).values():
        round_.server.reveal(answer)
    with pytest.raises(CannotUnmask, match="3 holders of the shares of site site 00 must answer, got 2"):
        round_.server.result()


def test_masks_that_do_not_cancel_give_no_sum() -> None:
    """A site that masked with other keys than it shared is noticed, not added up."""
    round_ = masked_round()
    server = round_.server
    assert server._total is not None
    server._total += np.random.default_rng(0).integers(0, 2**64, len(server._total), np.uint64)
    for answer in opened(round_, *names(4)).values():
        server.reveal(answer)
    with pytest.raises(CannotUnmask, match="must be over 4 sites"):
        server.result()


def test_a_result_can_be_asked_for_twice() -> None:
    round_ = masked_round()
    first, second = round_.reveal(), round_.server.result()
    assert all(np.array_equal(first[name], second[name]) for name in first)
