"""The two outcomes of an aggregation that are nobody's misuse."""

from __future__ import annotations

from fedfair.errors import RunError


class NotInRound(RunError):
    """A site was asked about a round that it holds no secrets of: it restarted, or never joined."""


class CannotUnmask(RunError):
    """An aggregation without a result: too few sites or shares, or masks that did not cancel."""
