"""The public rule: with how many sites each site shares masks, and how many shares open a secret.

Each secret is split among h holders: its owner and the owner's k neighbours. With t shares needed,
a round is unmasked as long as t holders of each secret answer, and with

    2 t > h + c

nobody can collect both secrets of a site, even if the server tells different sites different
survivors and c of the holders work for it: those c answer twice, the h - c others only once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from fedfair.errors import ConfigError
from fedfair.secagg.errors import CannotUnmask

# Probabilities with which a random graph may fail, over all sites; a complete graph cannot.
SECURITY = Fraction(1, 2**40)
CORRECTNESS = Fraction(1, 2**20)


@dataclass(frozen=True)
class Plan:
    """The numbers of one aggregation.

    Attributes
    ----------
    sites : int
        That advertised keys, n.
    degree : int
        Neighbours of a site, k; n - 1 in a complete graph.
    threshold : int
        Shares that open a secret, t.
    """

    sites: int
    degree: int
    threshold: int

    @property
    def holders(self) -> int:
        """Sites among which a secret is split, h = k + 1: its owner and the neighbours."""
        return self.degree + 1

    @property
    def complete(self) -> bool:
        """Whether every site is the neighbour of every other."""
        return self.degree == self.sites - 1


@dataclass(frozen=True)
class Rule:
    """What sites and server agree on; it must be the same everywhere, since the numbers follow from it.

    Attributes
    ----------
    collusion : float
        Largest share of the sites, in [0, 1), that may work for the server.
    dropout : float
        Share of the sites, in [0, 1), without which a round must still be unmasked. With
        ``collusion + 2 dropout < 1`` there is always a threshold that allows both.
    fewest : int
        Fewest sites in a sum, at least 2. The sum of two sites tells each the other's input.
    sparse_above : int
        Number of sites above which the graph is sparse. What is said of a server that lies about
        survivors holds for the complete graph only.

    Raises
    ------
    ConfigError
        If a value is out of range or the two shares leave no threshold.
    """

    collusion: float = 0.25
    dropout: float = 0.25
    fewest: int = 2
    sparse_above: int = 64

    def __post_init__(self) -> None:
        """Refuse what leaves no threshold."""
        for name in ("collusion", "dropout"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ConfigError(f"`{name}` must be in [0, 1), got {share}")
        if not self.collusion + 2 * self.dropout < 1:
            raise ConfigError(
                "`collusion` + 2 `dropout` must be below 1 for a threshold to exist, got"
                f" {self.collusion} and {self.dropout}; lower one of them"
            )
        if self.fewest < 2:
            raise ConfigError(f"`fewest` must be at least 2, got {self.fewest}")
        if self.sparse_above < 2:
            raise ConfigError(f"`sparse_above` must be at least 2, got {self.sparse_above}")

    def plan(self, sites: int) -> Plan:
        """Return the numbers for `sites` sites.

        With c = floor(collusion n): t = floor((n + c) / 2) + 1 on the complete graph. A sparse graph
        has the smallest even k for which, save with the probabilities above, the graph without
        colluding and missing sites hangs together, c' colluders among k neighbours leave
        2 t > k + 1 + c', and t holders of each secret remain.

        Raises
        ------
        CannotUnmask
            If `sites` is below `fewest`.
        """
        if sites < self.fewest:
            raise CannotUnmask(f"at least {self.fewest} sites must take part, got {sites}; wait for more")
        # The added term: 0.29 * 100 is 28.999999999999996.
        corrupt, lost = (math.floor(share * sites + 1e-9) for share in (self.collusion, self.dropout))
        if sites > self.sparse_above and (sparse := _sparse(sites, corrupt, lost)) is not None:
            return sparse
        return Plan(sites, sites - 1, (sites + corrupt) // 2 + 1)


@lru_cache(maxsize=64)
def _sparse(sites: int, corrupt: int, lost: int) -> Plan | None:
    for degree in range(2, sites - 1, 2):
        if _cut(sites, degree, corrupt + lost) > SECURITY:
            continue
        threshold = (degree + 1 + _most(sites, degree, corrupt, SECURITY)) // 2 + 1
        # One holder fewer than degree + 1: the secret of a missing site is also asked for without its owner.
        if threshold <= degree - _most(sites, degree, lost, CORRECTNESS):
            return Plan(sites, degree, threshold)
    return None


def _cut(sites: int, degree: int, removed: int) -> Fraction:
    """Return a bound on the probability that the ring falls apart: k / 2 sites in a row are removed."""
    row = degree // 2
    if row > removed:
        return Fraction(0)
    return sites * Fraction(math.perm(removed, row), math.perm(sites, row))


def _most(sites: int, degree: int, marked: int, failure: Fraction) -> int:
    """Return what the marked among a site's neighbours exceed nowhere, save with probability `failure`."""
    ways, tail = math.comb(sites - 1, degree), Fraction(0)
    for count in range(min(marked, degree), 0, -1):
        tail += Fraction(math.comb(marked, count) * math.comb(sites - 1 - marked, degree - count), ways)
        if sites * tail > failure:
            return count
    return 0
