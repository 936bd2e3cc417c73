"""Sites and a server that talk in bytes only; each message to a site meets a new process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedfair.secagg import (
    Field,
    Identity,
    Layout,
    MaskedInput,
    Rule,
    ServerSession,
    SiteSession,
    Used,
)

SESSION = "run 7"
STEPS = ("advertise", "share", "mask", "reveal", "never")

Values = Mapping[str, np.ndarray]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site {i:02}" for i in range(count))


def small_layout(sites: int, bits: int = 64) -> Layout:
    """Return a layout of two arrays of numbers, one of which may be missing, and one of counts."""
    fields = (
        Field("rows/encoder", (3, 2), 4.0),
        Field("rows/head", (2,), 0.25, optional=True),
        Field("counts", (2, 2), 1000, exact=True),
    )
    return Layout(fields, sites, bits)


def small_values(rng: np.random.Generator) -> Values:
    values = {
        "rows/encoder": rng.uniform(-4, 4, (3, 2)).astype(np.float32),
        "counts": rng.integers(0, 1001, (2, 2)).astype(float),
    }
    return values | ({"rows/head": rng.uniform(-0.25, 0.25, 2)} if rng.random() < 0.5 else {})


def again(message: Any) -> Any:
    """Return a message as it arrives."""
    if isinstance(message, MaskedInput):
        return MaskedInput(again(message.receipt), message.words.copy())
    arrived = type(message).from_bytes(message.to_bytes())
    assert arrived == message
    return arrived


class Federation:
    """Sites that keep nothing but the bytes of their state, in one run."""

    def __init__(
        self, sites: tuple[str, ...], rule: Rule, signed: bool = False, session: str = SESSION
    ) -> None:
        self.rule, self.session = rule, session
        keys = {site: ec.generate_private_key(ec.SECP384R1()) for site in sites} if signed else {}
        roster = {site: key.public_key() for site, key in keys.items()} if signed else None
        self.roster = roster
        self.identities = {site: Identity(site, keys.get(site), roster) for site in sites}
        self.states: dict[str, bytes | None] = dict.fromkeys(sites)
        self.used: Used | None = None

    def at(self, site: str) -> SiteSession:
        return SiteSession.resume(
            self.states[site], self.session, self.identities[site], self.rule, self.used
        )

    def ask(self, site: str, method: str, *args: Any) -> Any:
        """Return a site's answer as it arrives; its state is kept only if it answers."""
        session = self.at(site)
        answer = again(getattr(session, method)(*args))
        self.states[site] = session.to_bytes()
        return answer


class Round:
    """One aggregation, a step at a time; `gone` says from which step on a site is silent."""

    def __init__(self, federation: Federation, number: int, layout: Layout) -> None:
        self.federation, self.number, self.layout = federation, number, layout
        self.server = ServerSession(federation.session, number, federation.rule, federation.roster)
        self.gone: dict[str, str] = {}

    def answers(self, step: str, sites: Any) -> list[str]:
        return [s for s in sites if STEPS.index(self.gone.get(s, "never")) > STEPS.index(step)]

    def advertise(self) -> None:
        for site in self.answers("advertise", self.federation.states):
            self.server.announce(self.federation.ask(site, "advertise", self.number))

    def share(self) -> None:
        roll = again(self.server.roll())
        for announcement in roll.announcements:
            for site in self.answers("share", [announcement.site]):
                self.server.share(self.federation.ask(site, "share", self.number, roll))

    def mask(self, values: Mapping[str, Values]) -> None:
        for site, delivery in self.server.deliveries().items():
            for present in self.answers("mask", [site]):
                masked = self.federation.ask(
                    present, "mask", self.number, again(delivery), self.layout, values[site]
                )
                self.server.receive(masked, self.layout)

    def reveal(self) -> dict[str, np.ndarray]:
        request = again(self.server.request())
        for site in self.answers("reveal", request.survivors):
            self.server.reveal(self.federation.ask(site, "reveal", self.number, request))
        return self.server.result()

    def run(
        self, values: Mapping[str, Values], gone: Mapping[str, str] | None = None
    ) -> dict[str, np.ndarray]:
        self.gone = dict(gone or {})
        self.advertise()
        self.share()
        self.mask(values)
        return self.reveal()


def masked_round(
    count: int = 4, rule: Rule | None = None, signed: bool = True, gone: Mapping[str, str] | None = None
) -> Round:
    """Return a round whose inputs are masked and not yet opened."""
    sites = names(count)
    round_ = Round(Federation(sites, rule or Rule(), signed), 1, small_layout(count))
    round_.gone = dict(gone or {})
    round_.advertise()
    round_.share()
    rng = np.random.default_rng(0)
    round_.mask({site: small_values(rng) for site in sites})
    return round_
