"""A site's part: four answers a round, each checked against what a server could misuse.

Two rounds overlap, so that one exchange carries the answers of two:

    E1(r): mask(r) and advertise(r + 1)        E2(r): reveal(r) and share(r + 1)

A session lives in bytes between messages. Whoever reads those bytes can undo the protection of the
rounds in them: they belong where the site's program alone can read. So can whoever puts back an older
copy of them, unless a `Used` refuses what was answered already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedfair.errors import PrivacyError
from fedfair.secagg._checks import check_delivery, check_request, check_roll
from fedfair.secagg._codec import decode, encode
from fedfair.secagg._parcels import share_out, unpack
from fedfair.secagg._state import Secrets, SiteRound, State
from fedfair.secagg.circle import Circle
from fedfair.secagg.errors import NotInRound
from fedfair.secagg.identity import Identity
from fedfair.secagg.layout import Array, Layout
from fedfair.secagg.masks import add_mask
from fedfair.secagg.messages import (
    Announcement,
    Delivery,
    MaskedInput,
    Parcels,
    Receipt,
    Request,
    Roll,
    Shares,
)
from fedfair.secagg.primitives import digest, new_secret, public_key
from fedfair.secagg.rule import Rule
from fedfair.secagg.used import Used


class SiteSession:
    """One site in one run.

    Parameters
    ----------
    session : str
        The run's label, a new one for every start of a run.
    identity : Identity
        Name, key and roster.
    rule : Rule
        The same at every site and at the server.
    used : Used | None
        The site's record of its answers; None where no state is ever lost, as in a simulation.
    """

    def __init__(self, session: str, identity: Identity, rule: Rule, used: Used | None = None) -> None:
        self._session, self._identity, self._rule, self._used = session, identity, rule, used
        self._closed = 0
        self._rounds: dict[int, SiteRound] = {}

    @classmethod
    def resume(
        cls, state: object, session: str, identity: Identity, rule: Rule, used: Used | None = None
    ) -> SiteSession:
        """Return the session that `to_bytes` wrote, or a new one if there is none or of another run.

        Raises
        ------
        PrivacyError
            If the bytes are damaged or another site's.
        """
        resumed = cls(session, identity, rule, used)
        if state is None:
            return resumed
        found = decode(State, state)
        if found.site != identity.site:
            raise PrivacyError(f"the state must be of site {identity.site!r}, got that of {found.site!r}")
        if found.session == session:
            resumed._closed = found.closed
            resumed._rounds = {r.announcement.round_number: r for r in found.rounds}
        return resumed

    def to_bytes(self) -> bytes:
        """Return the secret state."""
        rounds = tuple(self._rounds.values())
        return encode(State(self._session, self._identity.site, self._closed, rounds))

    def is_ready(self, round_number: int) -> bool:
        """Return whether the site can mask an input in this round: it has shared its secrets for it."""
        found = self._rounds.get(round_number)
        return found is not None and found.secrets is not None and found.roll is not None

    def advertise(self, round_number: int) -> Announcement:
        """Return new keys for a round; rounds before the last one are forgotten.

        Parameters
        ----------
        round_number : int
            From 1. Each is used for one aggregation only: a round of training that is repeated takes
            the next number.

        Raises
        ------
        PrivacyError
            If the site has already shared secrets for the round, or the round is over.
        """
        self._refuse_closed(round_number)
        if (found := self._rounds.get(round_number)) is not None and found.roll is not None:
            raise PrivacyError(f"round {round_number} must not start twice at a site; take a new number")
        secrets = Secrets(new_secret(), new_secret(), new_secret())
        unsigned = Announcement(
            self._session,
            round_number,
            self._identity.site,
            public_key(secrets.mask_key),
            public_key(secrets.parcel_key),
            digest("seed", secrets.seed),
        )
        own = replace(unsigned, signature=self._identity.sign(unsigned.signed_part))
        self._closed = max(self._closed, round_number - 2)
        self._rounds = {n: r for n, r in self._rounds.items() if n > self._closed}
        self._rounds[round_number] = SiteRound(own, secrets)
        return own

    def share(self, round_number: int, roll: Roll) -> Parcels:
        """Return shares of the site's two secrets, sealed for its neighbours.

        Parameters
        ----------
        round_number : int
            That was advertised.
        roll : Roll
            All sites' announcements.

        Raises
        ------
        NotInRound
            If the site did not advertise for the round, or its keys are not in the roll.
        PrivacyError
            If it has shared already, or an announcement is not for this round, not signed by its
            site, or has the keys of another.
        CannotUnmask
            If there are fewer sites than the rule asks for.
        """
        found, secrets = self._unmasked(round_number)
        if found.roll is not None:
            raise PrivacyError(f"secrets of round {round_number} must be shared once, got a second roll")
        check_roll(roll, found.announcement, self._identity)
        circle = Circle.of(roll, self._rule)
        own, sealed = share_out(circle, secrets, self._identity.site)
        self._take(round_number, "share")
        self._rounds[round_number] = replace(found, roll=roll, held={self._identity.site: own})
        return Parcels(self._identity.site, sealed)

    def mask(
        self, round_number: int, delivery: Delivery, layout: Layout, values: Mapping[str, Array]
    ) -> MaskedInput:
        """Return the site's values under its own mask and one with each neighbour.

        Parameters
        ----------
        round_number : int
            Whose secrets are shared.
        delivery : Delivery
            The members and their sealed shares for this site.
        layout, values : Layout, Mapping[str, Array]
            What is summed; the same layout at every site.

        Raises
        ------
        NotInRound
            If the site did not share secrets in the round.
        PrivacyError
            If its input is masked already, a share is missing, too much, or not for this site, sender
            and round, fewer than t holders are left, or a value is beyond its bound.
        InconsistentUpdates
            If the values do not fit the layout.
        """
        found, secrets = self._unmasked(round_number)
        if found.roll is None:
            raise NotInRound(f"site {self._identity.site} has shared no secrets for round {round_number}")
        circle = Circle.of(found.roll, self._rule)
        check_delivery(delivery, circle, self._identity.site, self._rule.fewest)
        layout.check_sites(len(delivery.members))
        held = {
            site: unpack(circle, secrets.parcel_key, site, self._identity.site, box)
            for site, box in delivery.sealed.items()
        }
        words = layout.encode(values)
        add_mask(words, circle.own_mask(secrets.seed), 1)
        for other in held:
            add_mask(words, *circle.pair_mask(secrets.mask_key, self._identity.site, other))
        self._take(round_number, "mask")
        self._rounds[round_number] = replace(
            found, secrets=None, members=delivery.members, held=found.held | held
        )
        signature = self._identity.sign(circle.members_part(delivery.members))
        return MaskedInput(Receipt(self._identity.site, layout.digest, signature), words)

    def reveal(self, round_number: int, request: Request) -> Shares:
        """Return the shares that open the sum, and forget the round.

        Parameters
        ----------
        round_number : int
            In which the site's input was masked.
        request : Request
            The survivors. Of every other member the share of its mask key is opened instead.

        Raises
        ------
        NotInRound
            If the site sent no input in the round.
        PrivacyError
            If the round is over, the survivors are too few, not members, without this site, or were
            told of other members.
        """
        self._refuse_closed(round_number)
        found = self._rounds.get(round_number)
        if found is None or found.roll is None or found.secrets is not None:
            raise NotInRound(f"site {self._identity.site} has sent no input in round {round_number}")
        circle = Circle.of(found.roll, self._rule)
        check_request(request, circle, found.members, self._identity, self._rule.fewest)
        self._take(round_number, "reveal")
        del self._rounds[round_number]
        self._closed = max(self._closed, round_number)
        return Shares(
            self._identity.site,
            {owner: held.seed for owner, held in found.held.items() if owner in request.survivors},
            {owner: held.key for owner, held in found.held.items() if owner not in request.survivors},
        )

    def _take(self, round_number: int, step: str) -> None:
        if self._used is not None:
            self._used.take(self._session, self._identity.site, round_number, step)

    def _refuse_closed(self, round_number: int) -> None:
        if round_number <= self._closed:
            raise PrivacyError(f"round {round_number} must not be over, rounds up to {self._closed} are")

    def _unmasked(self, round_number: int) -> tuple[SiteRound, Secrets]:
        self._refuse_closed(round_number)
        if (found := self._rounds.get(round_number)) is None:
            raise NotInRound(f"site {self._identity.site} holds no keys for round {round_number}")
        if found.secrets is None:
            raise PrivacyError(f"the input of round {round_number} must be masked once, got a second demand")
        return found, found.secrets
