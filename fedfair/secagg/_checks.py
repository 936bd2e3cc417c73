"""What a site checks before it answers. The server is not trusted to tell all sites the same."""

from __future__ import annotations

from fedfair.errors import PrivacyError
from fedfair.secagg.circle import Circle
from fedfair.secagg.errors import NotInRound
from fedfair.secagg.identity import Identity
from fedfair.secagg.messages import Announcement, Delivery, Request, Roll


def check_roll(roll: Roll, own: Announcement, identity: Identity) -> None:
    """Refuse keys that are not this site's, for this round, or signed by their sites."""
    if own not in roll.announcements:
        raise NotInRound(f"the roll of round {own.round_number} has no or other keys of site {own.site}")
    for other in roll.announcements:
        if (other.session, other.round_number) != (own.session, own.round_number):
            raise PrivacyError(f"keys must be for round {own.round_number} of this run, got {other.site}'s")
        identity.check(other.site, other.signed_part, other.signature)


def check_delivery(delivery: Delivery, circle: Circle, site: str, fewest: int) -> None:
    """Refuse members that are too few or inconsistent with the shares that arrived."""
    members = set(delivery.members)
    if list(delivery.members) != sorted(members & circle.announcements.keys()) or site not in members:
        raise PrivacyError("members must be sites of the roll, sorted, this one among them, they are not")
    present = members & set(circle.neighbours[site])
    if wrong := sorted(delivery.sealed.keys() ^ present):
        raise PrivacyError(f"shares must come from the members next to this site, got a mismatch in {wrong}")
    _check_enough("members", len(present) + 1, circle.plan.threshold)
    _check_enough("members", len(members), fewest)


def check_request(
    request: Request, circle: Circle, members: tuple[str, ...], identity: Identity, fewest: int
) -> None:
    """Refuse survivors that are strangers, too few, without this site, or were told of other members.

    The last matters: could the server tell one site of few members and the others of many, colluding
    sites could help it to that one's input although each list looks long enough.
    """
    survivors = request.survivors.keys()
    if strangers := sorted(survivors - set(members)):
        raise PrivacyError(f"survivors must be members of the round, got {strangers}")
    if identity.site not in survivors:
        raise PrivacyError("survivors must have the site that is asked among them, got a list without it")
    _check_enough("survivors", len(survivors & set(circle.holders(identity.site))), circle.plan.threshold)
    _check_enough("survivors", len(survivors), fewest)
    for site, signature in request.survivors.items():
        identity.check(site, circle.members_part(members), signature)


def _check_enough(what: str, found: int, least: int) -> None:
    if found < least:
        raise PrivacyError(f"`{what}` must be at least {least} here, got {found}")
