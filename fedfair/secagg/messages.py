"""What travels: one dataclass a message, to and from bytes.

| step | server to site | site to server |
|---|---|---|
| 0 advertise | the round | `Announcement` |
| 1 share | `Roll` | `Parcels` |
| 2 mask | `Delivery` | `MaskedInput` and its words |
| 3 unmask | `Request` | `Shares` |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fedfair.secagg._codec import decode, encode
from fedfair.secagg.masks import Words

SECURE = "secure"
"""Name of the record in which these travel, and in which a node keeps its state."""


class Message:
    """Base of the dataclasses that travel as bytes."""

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return encode(self)

    @classmethod
    def from_bytes(cls, data: object) -> Self:
        """Return the message that `to_bytes` wrote.

        Raises
        ------
        PrivacyError
            If it is anything else.
        """
        return decode(cls, data)


@dataclass(frozen=True)
class Announcement(Message):
    """A site's public keys for one round.

    Attributes
    ----------
    session : str
        The run's label.
    round_number : int
        From 1; each is used for one aggregation only.
    site : str
        Whose keys these are.
    mask_key, parcel_key : bytes
        X25519, to agree on masks and on keys for shares. The first may be opened if the site is
        missing later, the second never.
    seed_digest : bytes
        Hash of the seed of its own mask, by which the server knows a wrong reconstruction.
    signature : bytes
        Of all the above; empty if unsigned.
    """

    session: str
    round_number: int
    site: str
    mask_key: bytes
    parcel_key: bytes
    seed_digest: bytes
    signature: bytes = b""

    @property
    def signed_part(self) -> bytes:
        """What the signature covers."""
        keys = (self.mask_key, self.parcel_key, self.seed_digest)
        return encode(("fedfair secagg 1 announcement", self.session, self.round_number, self.site, *keys))


@dataclass(frozen=True)
class Roll(Message):
    """All announcements of a round; every site is sent the same.

    Attributes
    ----------
    announcements : tuple[Announcement, ...]
        One a site.
    """

    announcements: tuple[Announcement, ...]


@dataclass(frozen=True)
class Parcels(Message):
    """A site's sealed shares.

    Attributes
    ----------
    site : str
        Whose secrets they open.
    sealed : dict[str, bytes]
        By the neighbour who alone can read them.
    """

    site: str
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Delivery(Message):
    """What one site is sent before it masks.

    Attributes
    ----------
    members : tuple[str, ...]
        All sites whose shares arrived, sorted; every site is sent the same.
    sealed : dict[str, bytes]
        The shares for this site, by sender: its neighbours among the members.
    """

    members: tuple[str, ...]
    sealed: dict[str, bytes]


@dataclass(frozen=True)
class Receipt(Message):
    """What goes with a masked input.

    Attributes
    ----------
    site : str
        Whose input it is.
    layout : bytes
        Digest of its layout.
    signature : bytes
        Of the members that the site was told of; empty if unsigned.
    """

    site: str
    layout: bytes
    signature: bytes


@dataclass(frozen=True)
class MaskedInput:
    """A masked input; the words travel as an array.

    Attributes
    ----------
    receipt : Receipt
        What goes with them.
    words : Words
        Uniform over the ring for whoever lacks the masks.
    """

    receipt: Receipt
    words: Words


@dataclass(frozen=True)
class Request(Message):
    """Whose masks are to be opened; every survivor is sent the same.

    Attributes
    ----------
    survivors : dict[str, bytes]
        The sites whose masked input arrived, with the signature of their receipt. Of all other
        members a site opens its share of the mask key: nobody can be named twice.
    """

    survivors: dict[str, bytes]


@dataclass(frozen=True)
class Shares(Message):
    """The shares that a site opens.

    Attributes
    ----------
    site : str
        Who held them.
    seeds : dict[str, bytes]
        Of survivors' own masks, by owner.
    keys : dict[str, bytes]
        Of missing members' mask keys, by owner.
    """

    site: str
    seeds: dict[str, bytes]
    keys: dict[str, bytes]
