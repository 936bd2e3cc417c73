"""What a site refuses: each lie of a server that it can notice, and each message out of turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedfair.errors import PrivacyError
from fedfair.secagg import (
    Announcement,
    CannotUnmask,
    Delivery,
    Identity,
    NotInRound,
    Request,
    Roll,
    Rule,
    SiteSession,
)
from fedfair.secagg._codec import decode
from fedfair.secagg._parcels import pack
from fedfair.secagg._state import Held, State
from fedfair.secagg.circle import Circle
from fedfair.secagg.primitives import split
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
VALUES = small_values(np.random.default_rng(0))
LAYOUT = small_layout(4)


def refused(
    federation: Federation, site: str, *call: Any, error: type[Exception] = PrivacyError, match: str
) -> None:
    """Assert that a site refuses a call and that its state stays as it was."""
    before = federation.states[site]
    with pytest.raises(error, match=match):
        federation.ask(site, *call)
    assert federation.states[site] == before


@pytest.fixture
def advertised() -> tuple[Federation, dict[str, Announcement]]:
    federation = Federation(names(4), Rule(), signed=True)
    return federation, {site: federation.ask(site, "advertise", 1) for site in names(4)}


def roll_of(announced: Mapping[str, Announcement], **changes: Announcement | None) -> Roll:
    changed = dict(announced) | {name.replace("_", " "): a for name, a in changes.items()}
    return Roll(tuple(a for a in changed.values() if a is not None))


def keys_of(federation: Federation, site: str, number: int = 1, session: str = SESSION) -> Announcement:
    """Return other keys with the site's own signature, made in a session that forgets them."""
    return SiteSession(session, federation.identities[site], Rule()).advertise(number)


def impostor(announcement: Announcement) -> Announcement:
    """Return the server's own keys under a site's name, signed by a key of the server."""
    other = SiteSession(SESSION, Identity(announcement.site, ec.generate_private_key(ec.SECP384R1())), Rule())
    return other.advertise(1)


Change = Callable[[Federation, Announcement], Announcement]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _, a: impostor(a), "must be signed by it"),
        (lambda _, a: dataclasses.replace(impostor(a), signature=a.signature), "must be signed by it"),
        (lambda _, a: dataclasses.replace(a, seed_digest=bytes(32)), "must be signed by it"),
        (lambda _, a: dataclasses.replace(a, signature=b""), "must be signed by it"),
        (lambda f, a: keys_of(f, a.site, number=2), "must be for round 1"),
        (lambda f, a: keys_of(f, a.site, session="another run"), "must be for round 1"),
        (lambda f, a: dataclasses.replace(keys_of(f, a.site, 2), round_number=1), "must be signed by it"),
        (lambda f, a: dataclasses.replace(keys_of(f, A), site=a.site), "must be signed by it"),
        (lambda _, a: dataclasses.replace(a, site="site 99"), "in the roster"),
    ],
)
def test_swapped_or_replayed_keys_are_refused(
    advertised: tuple[Federation, dict[str, Announcement]], change: Change, match: str
) -> None:
    federation, announced = advertised
    refused(
        federation, A, "share", 1, roll_of(announced, site_01=change(federation, announced[B])), match=match
    )
    federation.ask(A, "share", 1, roll_of(announced))


def test_without_a_roster_swapped_keys_are_not_noticed() -> None:
    """Said in the docs: then the server must be trusted to pass keys on."""
    federation = Federation(names(4), Rule())
    announced = {site: federation.ask(site, "advertise", 1) for site in names(4)}
    assert federation.ask(A, "share", 1, roll_of(announced, site_01=impostor(announced[B]))).site == A


def test_a_roll_without_the_site_or_with_other_keys_of_it_is_not_its_round(
    advertised: tuple[Federation, dict[str, Announcement]],
) -> None:
    federation, announced = advertised
    for own in (None, keys_of(federation, A)):
        refused(federation, A, "share", 1, roll_of(announced, site_00=own), error=NotInRound, match="roll")


def test_a_roll_that_names_a_site_or_a_key_twice_is_refused() -> None:
    federation = Federation(names(4), Rule())
    announced = {site: federation.ask(site, "advertise", 1) for site in names(4)}
    twin = dataclasses.replace(announced[B], site=C)
    shared = dataclasses.replace(announced[C], parcel_key=announced[B].mask_key)
    again = Roll((*announced.values(), keys_of(federation, B)))
    for roll in (roll_of(announced, site_02=twin), roll_of(announced, site_02=shared), again):
        refused(federation, A, "share", 1, roll, match="roll must name each site once")


def test_fewer_sites_than_the_site_asks_for_are_refused() -> None:
    federation = Federation(names(4), Rule(fewest=4))
    announced = {site: federation.ask(site, "advertise", 1) for site in names(4)}
    three = roll_of(announced, site_03=None)
    refused(federation, A, "share", 1, three, error=CannotUnmask, match="at least 4 sites")


def test_secrets_are_shared_once(advertised: tuple[Federation, dict[str, Announcement]]) -> None:
    federation, announced = advertised
    federation.ask(A, "share", 1, roll_of(announced))
    refused(federation, A, "share", 1, roll_of(announced), match="shared once")
    refused(federation, A, "share", 1, roll_of(announced, site_03=None), match="shared once")
    refused(federation, A, "advertise", 1, match="must not start twice")


@pytest.fixture
def shared() -> tuple[Federation, dict[str, Delivery]]:
    round_ = Round(Federation(names(4), Rule(), signed=True), 1, LAYOUT)
    round_.advertise()
    round_.share()
    return round_.federation, round_.server.deliveries()


def with_parcels(delivery: Delivery, changes: Mapping[str, bytes | None]) -> Delivery:
    sealed = {site: box for site, box in (delivery.sealed | changes).items() if box is not None}
    return dataclasses.replace(delivery, sealed=sealed)


@pytest.mark.parametrize("place", [0, 11, 12, 40, -17, -1])
def test_a_tampered_parcel_is_refused(shared: tuple[Federation, dict[str, Delivery]], place: int) -> None:
    federation, deliveries = shared
    box = bytearray(deliveries[A].sealed[B])
    box[place] ^= 1
    wrong = with_parcels(deliveries[A], {B: bytes(box)})
    refused(federation, A, "mask", 1, wrong, LAYOUT, VALUES, match="sealed share")
    federation.ask(A, "mask", 1, deliveries[A], LAYOUT, VALUES)


def test_reordered_parcels_are_refused(shared: tuple[Federation, dict[str, Delivery]]) -> None:
    federation, deliveries = shared
    sealed = deliveries[A].sealed
    swapped = with_parcels(deliveries[A], {B: sealed[C], C: sealed[B]})
    of_another = with_parcels(deliveries[A], {B: deliveries[C].sealed[B]})
    mirrored = with_parcels(deliveries[A], {B: deliveries[B].sealed[A]})  # its own parcel sent back
    for wrong in (swapped, of_another, mirrored):
        refused(federation, A, "mask", 1, wrong, LAYOUT, VALUES, match="sealed share")


def test_a_parcel_of_another_round_is_refused(shared: tuple[Federation, dict[str, Delivery]]) -> None:
    federation, first = shared
    second = Round(federation, 2, LAYOUT)
    second.advertise()
    second.share()
    delivery = second.server.deliveries()[A]
    refused(
        federation,
        A,
        "mask",
        2,
        with_parcels(delivery, {B: first[A].sealed[B]}),
        LAYOUT,
        VALUES,
        match="sealed",
    )
    refused(
        federation,
        A,
        "mask",
        1,
        with_parcels(first[A], {B: delivery.sealed[B]}),
        LAYOUT,
        VALUES,
        match="sealed",
    )


def test_shares_that_a_site_meant_for_another_are_refused() -> None:
    """B seals for A the shares of C: A would open a share with the index of C's."""
    federation = Federation(names(4), Rule())
    announced = {site: federation.ask(site, "advertise", 1) for site in names(4)}
    state = decode(State, federation.states[B] or b"").rounds[0]
    parcels = {s: federation.ask(s, "share", 1, roll_of(announced)) for s in names(4)}
    assert state.secrets is not None
    circle = Circle.of(roll_of(announced), Rule())
    for indices in ((3, 3), (1, 3), (3, 1)):
        seed, key = (split(bytes(32), 3, 4)[index - 1] for index in indices)
        box = pack(circle, state.secrets.parcel_key, B, A, Held(seed, key))
        delivery = Delivery(names(4), {s: p.sealed[A] for s, p in parcels.items() if s != A} | {B: box})
        refused(federation, A, "mask", 1, delivery, LAYOUT, VALUES, match="those meant for")


def test_sites_that_were_shown_different_keys_cannot_read_each_other() -> None:
    """B advertised twice, both signed: the server shows the old keys to D and the new ones to the others."""
    federation = Federation(names(4), Rule(), signed=True)
    old = federation.ask(B, "advertise", 1)
    announced = {site: federation.ask(site, "advertise", 1) for site in names(4)}
    parcels = {s: federation.ask(s, "share", 1, roll_of(announced)) for s in (A, B, C)}
    parcels[D] = federation.ask(D, "share", 1, roll_of(announced, site_01=old))
    delivery = Delivery(names(4), {s: p.sealed[A] for s, p in parcels.items() if s != A})
    refused(federation, A, "mask", 1, delivery, LAYOUT, VALUES, match="sealed share")


def test_a_delivery_that_does_not_fit_the_members_is_refused(
    shared: tuple[Federation, dict[str, Delivery]],
) -> None:
    federation, deliveries = shared
    good = deliveries[A]
    for wrong, match in (
        (with_parcels(good, {B: None}), "mismatch"),
        (with_parcels(good, {A: good.sealed[B]}), "mismatch"),
        (with_parcels(good, {"site 99": good.sealed[B]}), "mismatch"),
        (dataclasses.replace(good, members=(A, B, C)), "mismatch"),
        (dataclasses.replace(good, members=(B, C, D)), "members must be"),
        (dataclasses.replace(good, members=(A, B, C, D, "site 99")), "members must be"),
        (dataclasses.replace(good, members=(A, C, B, D)), "members must be"),
        (dataclasses.replace(good, members=(A, B, B, C, D)), "members must be"),
        (with_parcels(dataclasses.replace(good, members=(A, B)), {C: None, D: None}), "at least 3"),
        (with_parcels(dataclasses.replace(good, members=(A,)), {B: None, C: None, D: None}), "at least 3"),
    ):
        refused(federation, A, "mask", 1, wrong, LAYOUT, VALUES, match=match)


def test_fewer_members_than_the_site_asks_for_are_refused() -> None:
    round_ = Round(Federation(names(4), Rule(fewest=4)), 1, LAYOUT)
    round_.advertise()
    round_.share()
    good = round_.server.deliveries()[A]
    three = with_parcels(dataclasses.replace(good, members=(A, B, C)), {D: None})
    refused(round_.federation, A, "mask", 1, three, LAYOUT, VALUES, match="at least 4")


def test_an_input_is_masked_once(shared: tuple[Federation, dict[str, Delivery]]) -> None:
    federation, deliveries = shared
    federation.ask(A, "mask", 1, deliveries[A], LAYOUT, VALUES)
    refused(federation, A, "mask", 1, deliveries[A], LAYOUT, VALUES, match="masked once")
    refused(federation, A, "share", 1, Roll(()), match="masked once")
    refused(federation, A, "advertise", 1, match="must not start twice")


def test_a_layout_for_fewer_sites_is_refused(shared: tuple[Federation, dict[str, Delivery]]) -> None:
    federation, deliveries = shared
    refused(federation, A, "mask", 1, deliveries[A], small_layout(3), VALUES, match="at most 3 sites")


def test_values_beyond_the_bound_stay_at_the_site(shared: tuple[Federation, dict[str, Delivery]]) -> None:
    federation, deliveries = shared
    wrong = VALUES | {"rows/encoder": np.full((3, 2), 4.5)}
    refused(federation, A, "mask", 1, deliveries[A], LAYOUT, wrong, match="within 4")
    federation.ask(A, "mask", 1, deliveries[A], LAYOUT, VALUES)


def request_of(round_: Round, *survivors: str) -> Request:
    receipts = round_.server.request().survivors
    return Request({site: receipts.get(site, b"") for site in survivors})


def test_a_round_is_opened_once_and_one_secret_of_each_owner() -> None:
    round_ = masked_round()
    answer = round_.federation.ask(A, "reveal", 1, request_of(round_, A, B, C))
    assert answer.seeds.keys() == {A, B, C}
    assert answer.keys.keys() == {D}
    for survivors in ((A, B, C), (A, B, D), (A, B, C, D)):  # the second would give both secrets of C and D
        refused(round_.federation, A, "reveal", 1, request_of(round_, *survivors), match="must not be over")
    for call in (("advertise", 1), ("share", 1, Roll(())), ("mask", 1, Delivery((), {}), LAYOUT, VALUES)):
        refused(round_.federation, A, *call, match="must not be over")


@pytest.mark.parametrize(
    ("survivors", "match"),
    [
        ((A, B), "at least 3"),
        ((A,), "at least 3"),
        ((), "without it"),
        ((B, C, D), "without it"),
        ((A, B, C, "site 99"), "members of the round"),
    ],
)
def test_survivors_that_cannot_be_are_refused(survivors: tuple[str, ...], match: str) -> None:
    round_ = masked_round()
    refused(round_.federation, A, "reveal", 1, request_of(round_, *survivors), match=match)
    round_.federation.ask(A, "reveal", 1, request_of(round_, A, B, C))


def test_a_survivor_whose_shares_never_came_is_refused() -> None:
    """Its mask is not in this site's input, so the sum would be noise and its secret opened in vain."""
    round_ = masked_round(5, Rule(collusion=0), gone={names(5)[4]: "share"})
    survivors = request_of(round_, *names(5))
    refused(round_.federation, A, "reveal", 1, survivors, match="members of the round")


def test_fewer_survivors_than_the_site_asks_for_are_refused() -> None:
    round_ = masked_round(4, Rule(fewest=4))
    refused(round_.federation, A, "reveal", 1, request_of(round_, A, B, C), match="at least 4")


def test_survivors_on_a_sparse_graph_must_be_enough_around_the_site() -> None:
    rule = Rule(collusion=0.1, dropout=0.1, sparse_above=16)
    round_ = masked_round(40, rule, signed=False)
    assert round_.server._circle is not None
    around, plan = set(round_.server._circle.holders(A)), rule.plan(40)
    near = sorted(around - {A})[: plan.threshold - 2]
    far = [site for site in names(40) if site not in around]
    refused(
        round_.federation,
        A,
        "reveal",
        1,
        request_of(round_, A, *near, *far),
        match=f"at least {plan.threshold}",
    )


def test_survivors_that_were_told_of_other_members_are_refused() -> None:
    """A server that tells each site of other members could, with colluders, come to one site's input."""
    five = names(5)
    round_ = Round(Federation(five, Rule(collusion=0), signed=True), 1, small_layout(5))
    round_.advertise()
    round_.share()
    signatures = {}
    deliveries = round_.server.deliveries()
    members = five[:4]  # this is what the first site is told
    deliveries[A] = Delivery(members, {s: deliveries[A].sealed[s] for s in members if s != A})
    for site, delivery in deliveries.items():
        masked = round_.federation.ask(site, "mask", 1, delivery, small_layout(5), VALUES)
        signatures[site] = masked.receipt.signature
    for site in five[:4]:
        asked = Request({s: signatures[s] for s in five[:4]})
        refused(round_.federation, site, "reveal", 1, asked, match="must be signed by it")


def test_a_receipt_of_another_round_or_site_is_refused() -> None:
    round_, other = masked_round(), masked_round()
    good = round_.server.request().survivors
    for wrong in (other.server.request().survivors[B], good[C], b""):
        refused(round_.federation, A, "reveal", 1, Request(good | {B: wrong}), match="signed by it")


def test_messages_out_of_turn_are_not_in_the_round(
    advertised: tuple[Federation, dict[str, Announcement]],
) -> None:
    federation, announced = advertised
    mask = ("mask", 1, Delivery((), {}), LAYOUT, VALUES)
    refused(federation, A, *mask, error=NotInRound, match="shared no secrets")
    refused(federation, A, "reveal", 1, Request({}), error=NotInRound, match="sent no input")
    federation.ask(A, "share", 1, roll_of(announced))
    refused(federation, A, "reveal", 1, Request({}), error=NotInRound, match="sent no input")
    for call in (("share", 2, roll_of(announced)), ("mask", 2, *mask[2:]), ("reveal", 2, Request({}))):
        refused(federation, A, *call, error=NotInRound, match="round 2")


def test_a_restarted_site_is_in_no_round_until_it_advertises() -> None:
    round_ = masked_round()
    federation = round_.federation
    federation.states[A] = None
    assert not federation.at(A).is_ready(1)
    for call in (("reveal", 1, request_of(round_, A, B, C)), ("share", 2, Roll(()))):
        refused(federation, A, *call, error=NotInRound, match=A)
    assert federation.ask(A, "advertise", 2).round_number == 2


def test_a_site_keeps_the_secrets_of_two_rounds_at_most() -> None:
    federation = Federation(names(4), Rule())
    sizes = []
    for number in range(1, 6):
        federation.ask(A, "advertise", number)
        sizes.append(len(federation.states[A] or b""))
    assert max(sizes[1:]) - min(sizes[1:]) < 10
    refused(federation, A, "share", 3, Roll(()), match="must not be over")
    refused(federation, A, "advertise", 2, match="must not be over")


def test_what_a_masked_input_needed_is_forgotten() -> None:
    """Who reads a site's state later finds no key that opens what it masked."""
    round_ = Round(Federation(names(4), Rule()), 1, LAYOUT)
    round_.advertise()
    round_.share()
    before = decode(State, round_.federation.states[A] or b"").rounds[0]
    assert before.secrets is not None
    round_.mask(dict.fromkeys(names(4), VALUES))
    after = round_.federation.states[A] or b""
    for secret in (before.secrets.mask_key, before.secrets.parcel_key, before.secrets.seed):
        assert secret.hex().encode() not in after
    round_.reveal()
    assert decode(State, round_.federation.states[A] or b"").rounds == ()


def test_a_state_is_for_its_site_and_run() -> None:
    federation = Federation(names(4), Rule())
    federation.ask(A, "advertise", 1)
    state = federation.states[A]
    assert state is not None
    with pytest.raises(PrivacyError, match="must be of site"):
        SiteSession.resume(state, SESSION, Identity(B), Rule())
    with pytest.raises(PrivacyError, match="State"):
        SiteSession.resume(state[:-1], SESSION, Identity(A), Rule())
    fresh = SiteSession.resume(state, "another run", Identity(A), Rule())
    with pytest.raises(NotInRound):
        fresh.share(1, Roll(()))
