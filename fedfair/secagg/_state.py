"""What a site keeps of a round between messages; secret, and never sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedfair.secagg.messages import Announcement, Roll


@dataclass(frozen=True)
class Secrets:
    """What a site keeps to itself until it has masked its input, and then forgets."""

    mask_key: bytes
    parcel_key: bytes
    seed: bytes


@dataclass(frozen=True)
class Held:
    """The shares of one owner's two secrets; at most one of them is ever opened."""

    seed: bytes
    key: bytes


@dataclass(frozen=True)
class SiteRound:
    """A site's state in one round.

    Attributes
    ----------
    announcement : Announcement
        Its own.
    secrets : Secrets | None
        None once the input is masked.
    roll : Roll | None
        None until secrets are shared.
    members : tuple[str, ...]
        The sites of the round; empty until the input is masked.
    held : dict[str, Held]
        Shares by owner, its own among them.
    """

    announcement: Announcement
    secrets: Secrets | None
    roll: Roll | None = None
    members: tuple[str, ...] = ()
    held: dict[str, Held] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A site's state in one run.

    Attributes
    ----------
    session, site : str
        Whose it is.
    closed : int
        Rounds up to this one are over, whatever is said of them.
    rounds : tuple[SiteRound, ...]
        At most two.
    """

    session: str
    site: str
    closed: int = 0
    rounds: tuple[SiteRound, ...] = ()
