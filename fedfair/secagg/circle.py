"""Circle: what follows from a round's announcements, the same for the server and every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfair.errors import PrivacyError
from fedfair.secagg._codec import encode
from fedfair.secagg.messages import Announcement, Roll
from fedfair.secagg.primitives import agree, derive, digest
from fedfair.secagg.rule import Plan, Rule


@dataclass(frozen=True)
class Circle:
    """The sites of one round and who is whose neighbour.

    Attributes
    ----------
    announcements : Mapping[str, Announcement]
        By site, sorted.
    plan : Plan
        Degree and threshold.
    neighbours : Mapping[str, tuple[str, ...]]
        By site, sorted.
    context : bytes
        Hash of all announcements and the plan. Every key is derived with it, so sites that were
        shown different announcements cannot read each other's shares.
    """

    announcements: Mapping[str, Announcement]
    plan: Plan
    neighbours: Mapping[str, tuple[str, ...]]
    context: bytes

    @classmethod
    def of(cls, roll: Roll, rule: Rule) -> Circle:
        """Return the circle of a round's announcements, whatever order they come in.

        Raises
        ------
        PrivacyError
            If two sites have the same name or a key in common, or two rounds are mixed.
        CannotUnmask
            If there are fewer sites than the rule asks for.
        """
        by_site = {a.site: a for a in sorted(roll.announcements, key=lambda a: a.site)}
        keys = {key for a in by_site.values() for key in (a.mask_key, a.parcel_key)}
        if not 2 * len(roll.announcements) == 2 * len(by_site) == len(keys):
            raise PrivacyError("a roll must name each site once, each with keys of its own, it does not")
        if len({(a.session, a.round_number) for a in by_site.values()}) > 1:
            raise PrivacyError("a roll must be of one session and round, got announcements of several")
        plan = rule.plan(len(by_site))
        context = digest("circle", encode((tuple(by_site.values()), plan)))
        return cls(by_site, plan, _graph(tuple(by_site), plan, context), context)

    def holders(self, owner: str) -> tuple[str, ...]:
        """Return the sites that hold shares of a site's secrets, in the order of the shares."""
        return tuple(sorted((*self.neighbours[owner], owner)))

    def share_index(self, owner: str, holder: str) -> int:
        """Return the index, from 1, of the share of `owner` that `holder` holds."""
        return self.holders(owner).index(holder) + 1

    def own_mask(self, seed: bytes) -> bytes:
        """Return the key of a site's own mask."""
        return derive(seed, "own mask", self.context)

    def pair_mask(self, secret: bytes, owner: str, other: str) -> tuple[bytes, int]:
        """Return the key of the mask between two sites and the sign with which `owner` adds it.

        Parameters
        ----------
        secret : bytes
            Private mask key of `owner`.
        owner, other : str
            Two neighbours; the other one adds the same mask with the opposite sign.
        """
        first, second = sorted((owner, other))
        shared = agree(secret, self.announcements[other].mask_key)
        key = derive(shared, "pair mask", encode((self.context, first, second)))
        return key, 1 if owner == first else -1

    def parcel_key(self, secret: bytes, own: str, other: str, sender: str) -> tuple[bytes, bytes]:
        """Return the key of the parcel between two sites and the data bound to it.

        Parameters
        ----------
        secret : bytes
            Private parcel key of `own`.
        own, other : str
            Two neighbours.
        sender : str
            One of them; the two directions have different keys.
        """
        receiver = other if sender == own else own
        announcement = self.announcements[own]
        names = (announcement.session, announcement.round_number, sender, receiver, self.context)
        shared = agree(secret, self.announcements[other].parcel_key)
        return derive(shared, "parcel", encode(names)), encode(names)

    def members_part(self, members: tuple[str, ...]) -> bytes:
        """Return what a site signs to confirm the members that it was told of."""
        return encode(("fedfair secagg 1 members", self.context, members))


def _graph(sites: tuple[str, ...], plan: Plan, seed: bytes) -> dict[str, tuple[str, ...]]:
    """Return a complete graph, or a ring in an order from the seed where each sees k / 2 on each side."""
    if plan.complete:
        return {site: tuple(other for other in sites if other != site) for site in sites}
    ring = sorted(sites, key=lambda site: digest("ring", seed + site.encode()))
    reach = [step for step in range(-(plan.degree // 2), plan.degree // 2 + 1) if step]
    return {
        site: tuple(sorted(ring[(place + step) % len(ring)] for step in reach))
        for place, site in enumerate(ring)
    }
