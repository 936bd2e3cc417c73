"""From shares to secrets: which are needed, whether there are enough, whether they are right."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations, islice

from fedfair.errors import PrivacyError
from fedfair.secagg.circle import Circle
from fedfair.secagg.errors import CannotUnmask
from fedfair.secagg.messages import Shares
from fedfair.secagg.primitives import combine, digest, public_key

# Sets of shares that are tried for a secret, so that one wrong share spoils nothing.
_TRIALS = 64


def needed(circle: Circle, members: Collection[str], survivors: Collection[str]) -> list[str]:
    """Return the owners of secrets to open: survivors, and missing members next to one."""
    alive = set(survivors)
    return [m for m in members if m in alive or alive & set(circle.neighbours[m])]


def check_holders(circle: Circle, owner: str, answered: Collection[str]) -> list[str]:
    """Return who of `answered` holds shares of `owner`.

    Raises
    ------
    CannotUnmask
        If they are too few.
    """
    holders = [site for site in circle.holders(owner) if site in answered]
    if len(holders) < circle.plan.threshold:
        raise CannotUnmask(
            f"the round cannot be unmasked: {circle.plan.threshold} holders of the shares of site {owner}"
            f" must answer, got {len(holders)}"
        )
    return holders


def recover(circle: Circle, owner: str, alive: bool, shares: Mapping[str, Shares]) -> bytes:
    """Return the seed of a survivor, or the mask key of a missing site.

    Raises
    ------
    CannotUnmask
        If there are too few shares, or none fit what the owner announced.
    """
    holders = check_holders(circle, owner, shares)
    found = [(shares[holder].seeds if alive else shares[holder].keys)[owner] for holder in holders]
    for chosen in islice(combinations(found, circle.plan.threshold), _TRIALS):
        if (secret := _secret_if_right(circle, owner, alive, chosen)) is not None:
            return secret
    raise CannotUnmask(f"the round cannot be unmasked: the shares of site {owner} are wrong")


def _secret_if_right(circle: Circle, owner: str, alive: bool, shares: tuple[bytes, ...]) -> bytes | None:
    announced = circle.announcements[owner]
    try:
        secret = combine(shares)
        right = (
            digest("seed", secret) == announced.seed_digest
            if alive
            else public_key(secret) == announced.mask_key
        )
    except (PrivacyError, ValueError):  # no secret at all, or none that is a key
        return None
    return secret if right else None
