"""Parcels: the shares of one owner, sealed for one holder."""

from __future__ import annotations

from fedfair.errors import PrivacyError
from fedfair.secagg._codec import decode, encode
from fedfair.secagg._state import Held
from fedfair.secagg.circle import Circle
from fedfair.secagg.primitives import seal, share_index, unseal


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
