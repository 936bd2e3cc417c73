"""Secure aggregation: the server learns the sum of the sites' uploads and no single one.

After Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020 (SecAgg+), with the double masks of Bonawitz et al., CCS 2017.
Neither networking nor Flower is in here: messages are dataclasses that become bytes.
"""

from __future__ import annotations

from fedfair.secagg.errors import CannotUnmask, NotInRound
from fedfair.secagg.identity import Identity, PublicKeys, load_public_keys
from fedfair.secagg.layout import Field, Layout
from fedfair.secagg.messages import (
    SECURE,
    Announcement,
    Delivery,
    MaskedInput,
    Parcels,
    Receipt,
    Request,
    Roll,
    Shares,
)
from fedfair.secagg.rule import Plan, Rule
from fedfair.secagg.server import ServerSession
from fedfair.secagg.site import SiteSession
from fedfair.secagg.used import Used

__all__ = [
    "SECURE",
    "Announcement",
    "CannotUnmask",
    "Delivery",
    "Field",
    "Identity",
    "Layout",
    "MaskedInput",
    "NotInRound",
    "Parcels",
    "Plan",
    "PublicKeys",
    "Receipt",
    "Request",
    "Roll",
    "Rule",
    "ServerSession",
    "Shares",
    "SiteSession",
    "Used",
    "load_public_keys",
]
