"""The server's part in one aggregation: it passes sealed shares on, adds masked inputs, opens the sum.

    announce* -> roll -> share* -> deliveries -> receive* -> request -> reveal* -> result

A starred call takes one site's answer, in any order and at most once; the others close a step. A site
whose answer is missing or refused is left out from there on. Where too little is left, there is
`CannotUnmask` and never a wrong sum.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import InconsistentUpdates, RunError
from fedfair.secagg._open import check_holders, needed, recover
from fedfair.secagg.circle import Circle
from fedfair.secagg.errors import CannotUnmask
from fedfair.secagg.identity import PublicKeys, check_signature
from fedfair.secagg.layout import Layout
from fedfair.secagg.masks import Words, add_mask
from fedfair.secagg.messages import Announcement, Delivery, MaskedInput, Parcels, Request, Roll, Shares
from fedfair.secagg.primitives import agree, new_secret, share_index
from fedfair.secagg.rule import Rule


class ServerSession:
    """One aggregation.

    Parameters
    ----------
    session, round_number : str, int
        As the sites were told.
    rule : Rule
        The same at every site.
    roster : PublicKeys | None
        With it, who does not sign is left out here, before the others refuse all for it.
    """

    def __init__(self, session: str, round_number: int, rule: Rule, roster: PublicKeys | None = None) -> None:
        self._session, self._round, self._rule, self._roster = session, round_number, rule, roster
        self._announced: dict[str, Announcement] = {}
        self._circle: Circle | None = None
        self._parcels: dict[str, Mapping[str, bytes]] = {}
        self._members: tuple[str, ...] = ()
        self._receipts: dict[str, bytes] = {}
        self._layout: Layout | None = None
        self._total: Words | None = None
        self._asked: tuple[str, ...] = ()
        self._shares: dict[str, Shares] = {}

    @property
    def members(self) -> tuple[str, ...]:
        """Sites whose secrets are shared; empty before `deliveries`."""
        return self._members

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites whose masked input has arrived, sorted."""
        return tuple(sorted(self._receipts))

    def announce(self, announcement: Announcement) -> None:
        """Take a site's public keys.

        Raises
        ------
        InconsistentUpdates
            If they are for another round, or a second time.
        PrivacyError
            If they are no keys, or not signed by the site.
        """
        if (announcement.session, announcement.round_number) != (self._session, self._round):
            raise InconsistentUpdates(
                f"keys of site {announcement.site} must be for round {self._round} of this run, they are not"
            )
        self._once(announcement.site, self._announced, open_=self._circle is None)
        check_signature(self._roster, announcement.site, announcement.signed_part, announcement.signature)
        for key in (announcement.mask_key, announcement.parcel_key):
            agree(new_secret(), key)  # one that is no key would stop every other site
        self._announced[announcement.site] = announcement

    def roll(self) -> Roll:
        """Return what every site is sent to share its secrets; closes the first step.

        Raises
        ------
        CannotUnmask
            If fewer sites announced keys than the rule asks for.
        """
        roll = Roll(tuple(self._announced[site] for site in sorted(self._announced)))
        self._circle = Circle.of(roll, self._rule)
        return roll

    def share(self, parcels: Parcels) -> None:
        """Take a site's sealed shares.

        Raises
        ------
        InconsistentUpdates
            If they are not one for each neighbour, or come twice or late.
        """
        neighbours = self._after_roll().neighbours.get(parcels.site, ())
        self._once(parcels.site, self._parcels, open_=not self._members)
        if parcels.site not in self._announced or parcels.sealed.keys() != set(neighbours):
            raise InconsistentUpdates(
                f"site {parcels.site} must send one share to each neighbour, it does not"
            )
        self._parcels[parcels.site] = parcels.sealed

    def deliveries(self) -> dict[str, Delivery]:
        """Return what each member is sent to mask its input; closes the second step.

        Sites left with too few neighbours to open their secrets are no members.

        Raises
        ------
        CannotUnmask
            If too few sites are left.
        """
        circle, members = self._after_roll(), set(self._parcels)
        while lonely := {m for m in members if len(members & set(circle.holders(m))) < circle.plan.threshold}:
            members -= lonely
        if len(members) < self._rule.fewest:
            raise CannotUnmask(
                f"at least {self._rule.fewest} sites with {circle.plan.threshold} holders each must share"
                f" their secrets, got {len(members)} of {len(self._announced)}"
            )
        self._members = tuple(sorted(members))
        return {
            site: Delivery(
                self._members,
                {other: self._parcels[other][site] for other in circle.neighbours[site] if other in members},
            )
            for site in self._members
        }

    def receive(self, masked: MaskedInput, layout: Layout) -> None:
        """Add a site's masked input to the sum; no input is kept by itself.

        Parameters
        ----------
        masked : MaskedInput
            The receipt and [layout.words] words.
        layout : Layout
            What the sites were told to send.

        Raises
        ------
        InconsistentUpdates
            If the site is no member, its layout another, or the input comes twice or late.
        PrivacyError
            If the members that the site was told of are not signed by it.
        """
        site, words = masked.receipt.site, masked.words
        self._once(site, self._receipts, open_=not self._asked)
        if site not in self._members:
            raise InconsistentUpdates(f"a masked input must come from a member, got one of {site!r}")
        if not masked.receipt.layout == layout.digest == (self._layout or layout).digest:
            raise InconsistentUpdates(f"site {site} must send the layout of all others, it has another")
        if words.shape != (layout.words,) or words.dtype != layout.dtype:
            raise InconsistentUpdates(
                f"site {site} must send {layout.words} words of {layout.dtype}, got {words.shape} of"
                f" {words.dtype}"
            )
        told = self._after_roll().members_part(self._members)
        check_signature(self._roster, site, told, masked.receipt.signature)
        self._layout = layout
        if self._total is None:
            self._total = np.zeros_like(words)
        np.add(self._total, words, out=self._total)
        self._receipts[site] = masked.receipt.signature

    def request(self) -> Request:
        """Return what every survivor is sent to open the sum; closes the third step.

        Raises
        ------
        CannotUnmask
            If the survivors cannot open it, so that nothing is opened in vain.
        """
        if len(self._receipts) < self._rule.fewest:
            raise CannotUnmask(
                f"the round cannot be unmasked: at least {self._rule.fewest} sites must send an input,"
                f" got {len(self._receipts)} of {len(self._members)}"
            )
        circle = self._after_roll()
        for owner in needed(circle, self._members, self._receipts):
            check_holders(circle, owner, self._receipts)
        self._asked = self.survivors
        return Request(dict(self._receipts))

    def reveal(self, shares: Shares) -> None:
        """Take a survivor's shares.

        Raises
        ------
        InconsistentUpdates
            If the site was not asked, answers twice, or sends other shares than it was asked for.
        """
        site, circle = shares.site, self._after_roll()
        self._once(site, self._shares, open_=site in self._asked)
        for name, found, owners in (
            ("seeds", shares.seeds, set(self._asked)),
            ("keys", shares.keys, set(self._members) - set(self._asked)),
        ):
            if found.keys() != owners & set(circle.holders(site)):
                raise InconsistentUpdates(
                    f"`{name}` of site {site} must be those it was asked for, got others"
                )
            if any(share_index(share) != circle.share_index(owner, site) for owner, share in found.items()):
                raise InconsistentUpdates(f"`{name}` of site {site} must be its own shares, got others")
        self._shares[site] = shares

    def result(self) -> dict[str, NDArray[np.float64]]:
        """Return the sums over all survivors by array.

        Raises
        ------
        CannotUnmask
            If a secret has fewer shares than it needs, a share is wrong, or the masks do not cancel.
        """
        circle = self._after_roll()
        if self._total is None or self._layout is None or not self._asked:
            raise RunError("a sum must be asked for before it is opened; call `request` first")
        total, alive, distrusted = self._total.copy(), set(self._asked), set[str]()
        for owner in needed(circle, self._members, alive):
            secret = recover(circle, owner, owner in alive, self._shares, distrusted)
            if owner in alive:
                add_mask(total, circle.own_mask(secret), -1)
                continue
            for other in alive & set(circle.neighbours[owner]):
                # The sign of the missing site: its neighbour added the opposite.
                add_mask(total, *circle.pair_mask(secret, owner, other))
        try:
            return self._layout.decode(total, len(alive))
        except InconsistentUpdates as error:
            raise CannotUnmask(f"the round cannot be unmasked: {error}") from error

    def _after_roll(self) -> Circle:
        if self._circle is None:
            raise RunError("sites must be called before they answer; call `roll` first")
        return self._circle

    def _once(self, site: str, seen: Collection[str], *, open_: bool) -> None:
        if site in seen or not open_:
            raise InconsistentUpdates(
                f"site {site} must answer once, when it is asked; it came again or late"
            )
