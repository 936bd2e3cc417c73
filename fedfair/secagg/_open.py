"""From shares to secrets: which are needed, whether there are enough, whether they are right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, islice

from fedfair.errors import PrivacyError
from fedfair.secagg.circle import Circle
from fedfair.secagg.errors import CannotUnmask
from fedfair.secagg.messages import Shares
from fedfair.secagg.primitives import combine, digest, public_key

# Sets of shares that are tried for a secret: one wrong share spoils nothing, and two do not where up
# to 30 are needed and two more have come. Of 41 shares (64 sites), each set takes 0.1 s.
_TRIALS = 512


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


def recover(
    circle: Circle, owner: str, alive: bool, shares: Mapping[str, Shares], distrusted: set[str]
) -> bytes:
    """Return the seed of a survivor, or the mask key of a missing site.

    Holders without whom it succeeds join `distrusted`, and are asked last for the next secret.

    Raises
    ------
    CannotUnmask
        If there are too few shares, or none fit what the owner announced.
    """
    holders = sorted(check_holders(circle, owner, shares), key=distrusted.__contains__)
    found = {holder: (shares[holder].seeds if alive else shares[holder].keys)[owner] for holder in holders}
    for out in islice(_left_out(holders, circle.plan.threshold), _TRIALS):
        chosen = [share for holder, share in found.items() if holder not in out][: circle.plan.threshold]
        if (secret := _secret_if_right(circle, owner, alive, chosen)) is not None:
            distrusted.update(out)
            return secret
    raise CannotUnmask(f"the round cannot be unmasked: the shares of site {owner} are wrong")


def _left_out(holders: Sequence[str], threshold: int) -> Iterator[tuple[str, ...]]:
    """Yield whom to leave out, fewest first, so that the first `threshold` others are each set once."""
    for count in range(len(holders) - threshold + 1):
        yield from combinations(holders[: threshold + count - 1], count)


def _secret_if_right(circle: Circle, owner: str, alive: bool, shares: Sequence[bytes]) -> bytes | None:
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
