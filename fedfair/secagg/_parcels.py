"""Parcels: the shares of one owner, sealed for one holder."""

from __future__ import annotations

from fedfair.errors import PrivacyError
from fedfair.secagg._codec import decode, encode
from fedfair.secagg._state import Held, Secrets
from fedfair.secagg.circle import Circle
from fedfair.secagg.primitives import seal, share_index, split, unseal


def share_out(circle: Circle, secrets: Secrets, owner: str) -> tuple[Held, dict[str, bytes]]:
    """Return the owner's own shares of its two secrets, and its neighbours', sealed."""
    holders = circle.holders(owner)
    seeds, keys = (
        split(secret, circle.plan.threshold, len(holders)) for secret in (secrets.seed, secrets.mask_key)
    )
    held = {holder: Held(*pair) for holder, *pair in zip(holders, seeds, keys, strict=True)}
    own = held.pop(owner)
    return own, {site: pack(circle, secrets.parcel_key, owner, site, pair) for site, pair in held.items()}


def pack(circle: Circle, secret: bytes, sender: str, receiver: str, held: Held) -> bytes:
    """Return shares of `sender` that `receiver` alone can read; `secret` is the sender's parcel key."""
    key, bound = circle.parcel_key(secret, sender, receiver, sender=sender)
    return seal(key, encode(held), bound)


def unpack(circle: Circle, secret: bytes, sender: str, receiver: str, sealed: bytes) -> Held:
    """Return what `pack` sealed; `secret` is the receiver's parcel key.

    Raises
    ------
    PrivacyError
        If it is of another round, sender or receiver, or changed on the way.
    """
    key, bound = circle.parcel_key(secret, receiver, sender, sender=sender)
    held = decode(Held, unseal(key, sealed, bound))
    if {share_index(held.seed), share_index(held.key)} != {circle.share_index(sender, receiver)}:
        raise PrivacyError(f"the shares from site {sender} must be those meant for {receiver}, got others")
    return held
