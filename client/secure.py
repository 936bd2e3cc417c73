"""A site's part in secure aggregation: what it answers, and the secrets it keeps between messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray

from client.records import brought
from fedfair.config import Config
from fedfair.errors import ConfigError, PrivacyError
from fedfair.federation.consortium import slug
from fedfair.federation.keys import read_roster
from fedfair.privacy.policy import Policy
from fedfair.secagg import SECURE, Delivery, Identity, NotInRound, Request, Roll, SiteSession, Used
from fedfair.secagg.messages import Message as SecureMessage
from fedfair.uploads import Uploads, rule
from fedfair.wire import Arrays

Kind = TypeVar("Kind", bound=SecureMessage)
PREPARE, ANSWERED = "query.secure", "secure-sums.txt"


class Sealed:
    """One message of a run that sums securely, at one site.

    Parameters
    ----------
    message, context : Message, Context
        The node's state, in the context, holds the site's secrets.
    config : Config
        Of the run.
    policy : Policy
        Where the node's key, the other sites' public keys and the ledgers are.
    site, sites : str, Sequence[str]
        Its name, and those of all.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        config: Config,
        policy: Policy,
        site: str,
        sites: Sequence[str],
    ) -> None:
        records = message.content.config_records
        if SECURE not in records:
            raise PrivacyError("a run that sums securely must send what the sum needs, it does not")
        self._message, self._context, self._told, self._site = message, context, records[SECURE], site
        state = context.state.config_records.get(SECURE)
        self._session = SiteSession.resume(
            None if state is None else state["state"],
            str(self._told["session"]),
            _identity(policy, site, sites),
            rule(config),
            # Lost with the ledger, if anything is.
            None if policy.ledger is None else Used(policy.ledger / ANSWERED),
        )
        self.said: dict[str, bytes] = {}
        self.opened: list[str] = []

    def check(self) -> None:
        """Refuse work whose result could not leave, before a record is touched or a budget charged.

        Raises
        ------
        PrivacyError
            If the message does not bring what masks the answer.
        NotInRound
            If the site has shared no secrets for this sum, or has answered it.
        """
        if self._message.metadata.message_type == PREPARE:
            return
        if "delivery" not in self._told:
            raise PrivacyError("a run that sums securely must mask what a site sends, got no `delivery`")
        number = self._number("mask-number")
        self._read(Delivery, "delivery")
        if not self._session.is_ready(number):
            raise NotInRound(f"site {self._site} has shared no secrets for sum {number}, or has answered it")

    def upload(self, arrays: Arrays, layouts: Uploads) -> Arrays:
        """Return the arrays under masks, beside what the server needs to open this sum or the last one.

        Parameters
        ----------
        arrays : Arrays
            Of the site alone; empty where nothing is summed, or the site has no budget left.
        layouts : Uploads
            Of the run.

        Raises
        ------
        PrivacyError
            If the server asks for what would undo the protection, among them an answer that has left
            already, or a value is beyond its bound.
        NotInRound
            If the site has lost its secrets, as after a restart; it takes part in the next sum.
        """
        masked: Arrays = {}
        if "request" in self._told:
            request = self._read(Request, "request")
            shares = self._session.reveal(self._number("request-number"), request)
            self.said["shares"] = shares.to_bytes()
            self.opened = sorted(request.survivors)
        if "roll" in self._told:
            parcels = self._session.share(self._number("roll-number"), self._read(Roll, "roll"))
            self.said["parcels"] = parcels.to_bytes()
        if arrays:
            masked = self._mask(arrays, layouts)
        if "advertise" in self._told:
            self.said["announcement"] = self._session.advertise(self._number("advertise")).to_bytes()
        self._context.state[SECURE] = ConfigRecord({"state": self._session.to_bytes()})
        return masked

    def _mask(self, arrays: Arrays, layouts: Uploads) -> Arrays:
        told = self._message.content
        number = int(str(told.config_records["run"]["round"]))
        layout = layouts.layout(self._message.metadata.message_type, number, brought(told))
        numbers: dict[str, NDArray[np.number]] = {**arrays}  # type: ignore[dict-item]
        delivery = self._read(Delivery, "delivery")
        masked = self._session.mask(self._number("mask-number"), delivery, layout, numbers)
        self.said["receipt"] = masked.receipt.to_bytes()
        return {"words": masked.words}

    def _number(self, key: str) -> int:
        return int(str(self._told[key]))

    def _read(self, kind: type[Kind], key: str) -> Kind:
        return kind.from_bytes(self._told[key])


def _identity(policy: Policy, site: str, sites: Sequence[str]) -> Identity:
    """Return the site's name and keys; without a roster the server is trusted to pass keys on.

    Raises
    ------
    ConfigError
        If one of key and roster is missing, or two sites of the run would have one key.
    """
    if policy.key is None and policy.roster is None:
        return Identity(site)
    if policy.key is None or policy.roster is None:
        raise ConfigError("`key` and `roster` of the node must both be given, or neither, got one")
    if len({slug(name) for name in sites}) < len(sites):
        raise ConfigError(
            f"sites of a secure sum must differ in more than case and signs, got {sorted(sites)}: "
            "one key would speak for several"
        )
    keys = read_roster(policy.roster.read_bytes())
    known = {name: keys[slug(name)] for name in sites if slug(name) in keys}
    return Identity.load(site, policy.key.read_bytes(), known)
