"""Why a receipt is signed: the lie about members that it stops, carried out against unsigned sites."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fedfair.errors import PrivacyError
from fedfair.secagg import Delivery, Field, Layout, Request, Rule, Shares
from fedfair.secagg._codec import decode
from fedfair.secagg._state import Held, State
from fedfair.secagg.circle import Circle
from fedfair.secagg.masks import add_mask
from fedfair.secagg.primitives import combine
from tests.unit.secagg.federation import Federation, Round, names

SITES = names(7)
COLLUDERS, VICTIM, NEAR, FAR = SITES[:2], SITES[2], SITES[3:5], SITES[5:]
RULE = Rule(collusion=0.3, dropout=0.3)  # two of seven may collude: 5 shares open a secret
LAYOUT = Layout([Field("x", (4,), 1.0)], 7)
SECRET = np.array([0.5, -0.25, 1.0, 0.0])


def lies(honest: dict[str, Delivery]) -> Iterator[tuple[str, Delivery]]:
    """Yield what each site is told: the victim that two sites are no members, all others the truth."""
    for site, delivery in honest.items():
        if site != VICTIM:
            yield site, delivery
            continue
        members = tuple(s for s in delivery.members if s not in FAR)
        yield site, Delivery(members, {s: box for s, box in delivery.sealed.items() if s not in FAR})


def held_by(federation: Federation, site: str) -> dict[str, Held]:
    """Return what a colluding site hands over."""
    return decode(State, federation.states[site] or b"").rounds[0].held


def attack(signed: bool) -> np.ndarray:
    """Return the victim's words without their masks, from what its own and honest sites' programs open."""
    round_ = Round(Federation(SITES, RULE, signed), 1, LAYOUT)
    assert RULE.plan(7).threshold == 5
    round_.advertise()
    colluding = {}
    for site in COLLUDERS:  # hand their mask keys over while they have them
        secrets = decode(State, round_.federation.states[site] or b"").rounds[0].secrets
        assert secrets is not None
        colluding[site] = secrets.mask_key
    round_.share()
    words, receipts = {}, {}
    for site, delivery in lies(round_.server.deliveries()):
        masked = round_.federation.ask(site, "mask", 1, delivery, LAYOUT, {"x": SECRET})
        words[site], receipts[site] = masked.words, masked.receipt.signature
    # Every list is long enough, and each site is asked once.
    missing = dict.fromkeys(FAR, NEAR) | {NEAR[0]: NEAR[1:], NEAR[1]: NEAR[:1]}
    answers: list[Shares] = []
    for site, gone in missing.items():
        survivors = Request({s: receipt for s, receipt in receipts.items() if s not in gone})
        answers.append(round_.federation.ask(site, "reveal", 1, survivors))
    held = [held_by(round_.federation, site) for site in COLLUDERS]
    seeds = [a.seeds[VICTIM] for a in answers] + [shares[VICTIM].seed for shares in held]
    keys = {
        near: combine(
            [a.keys[near] for a in answers if near in a.keys] + [shares[near].key for shares in held]
        )
        for near in NEAR
    }
    circle = round_.server._circle
    assert isinstance(circle, Circle)
    add_mask(words[VICTIM], circle.own_mask(combine(seeds[:5])), -1)
    for other, key in (keys | colluding).items():
        add_mask(words[VICTIM], *circle.pair_mask(key, other, VICTIM))
    return words[VICTIM]


def test_unsigned_sites_can_be_lied_to_about_members() -> None:
    """Without a roster the server is trusted, and this is why: it reads the victim's input."""
    np.testing.assert_array_equal(LAYOUT.decode(attack(signed=False), 1)["x"], SECRET)


def test_signed_receipts_stop_it() -> None:
    with pytest.raises(PrivacyError, match=f"site '{VICTIM}' must be signed by it"):
        attack(signed=True)
