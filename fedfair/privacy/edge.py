"""The edge of a site: the one place that decides whether an upload may leave.

Every leaf of an upload is declared: public (and why), or released by a mechanism that the ledger
has been charged for. Anything else is refused, whoever put it there and whatever it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import ConfigError, PrivacyError, RunError
from fedfair.privacy.accounting import Event

logger = logging.getLogger(__name__)


class Discreet:
    """Keep what went wrong at a private site in its own log: an error's text may tell of a record.

    Refusals that follow from public settings pass; of any other error only the type leaves.

    Parameters
    ----------
    site : str
        For the message.

    Raises
    ------
    RunError
        In place of the error.
    """

    def __init__(self, site: str) -> None:
        self._site = site

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Replace an error that is not a refusal by public settings."""
        if not isinstance(error, Exception) or isinstance(error, PrivacyError | ConfigError | RunError):
            return
        logger.error("site %s failed", self._site, exc_info=error)
        raise RunError(
            f"site {self._site} failed with {type(error).__name__}; its own log has the details"
        ) from None


@dataclass(frozen=True)
class Public:
    """A leaf that no record behind the promise has a part in; `why` says so in words."""

    why: str


@dataclass(frozen=True)
class Released:
    """A leaf that a Gaussian mechanism released.

    Attributes
    ----------
    event : Event
        Noise multiplier, sample rate and steps, as charged.
    sensitivity : float
        L2 distance that one record can make in the leaf before noise (in one step).
    shape : tuple[int, ...]
        Follows from public constants alone; any other shape is refused.
    """

    event: Event
    sensitivity: float
    shape: tuple[int, ...]


Declaration = Public | Released


def guard(
    site: str,
    arrays: Mapping[str, NDArray[np.generic]],
    declared: Mapping[str, Declaration],
    charged: Sequence[Event],
) -> None:
    """Refuse an upload unless each leaf is declared and each mechanism behind it is charged.

    Parameters
    ----------
    site : str
        For the message.
    arrays : Mapping[str, NDArray]
        What is about to leave.
    declared : Mapping[str, Declaration]
        By leaf; exactly the leaves of `arrays`, so that none is left out silently either.
    charged : Sequence[Event]
        What the ledger took for this upload.

    Raises
    ------
    PrivacyError
        Naming the leaf.
    """
    if odd := sorted(set(arrays) ^ set(declared)):
        # Names and shapes may hold what must not leave, and a refusal's text leaves.
        logger.error("leaves of the upload of site %s and of its declarations differ in %s", site, odd)
        raise PrivacyError(
            f"each leaf of the upload of site {site} must be declared public or released, got {len(odd)} "
            "that do not match; the site's log names them"
        )
    for name, declaration in declared.items():
        if isinstance(declaration, Released):
            _check_released(f"`{name}` of site {site}", arrays[name], declaration, charged)


def _check_released(
    leaf: str, value: NDArray[np.generic], declaration: Released, charged: Sequence[Event]
) -> None:
    if declaration.event not in charged:
        raise PrivacyError(f"{leaf} must be charged to the ledger before it leaves, got {declaration.event}")
    if not np.isfinite(declaration.sensitivity) and declaration.event.noise_multiplier > 0:
        raise PrivacyError(f"{leaf} must have a bounded sensitivity, got {declaration.sensitivity}")
    if value.shape != declaration.shape:
        raise PrivacyError(f"{leaf} must have the public shape {declaration.shape}, got another")
    if not np.isfinite(value).all():
        raise PrivacyError(f"{leaf} must be finite: NaN would tell of a record; got NaN or infinity")
