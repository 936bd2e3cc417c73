"""A one-run audit: a lower bound of epsilon from one run with many canaries.

Steinke, Nasr, Jagielski 2023, arXiv 2305.08846. Each of m canaries takes part by a fair coin, the attacker
guesses the coins of r of them and is right v times. Theorem 5.2: under (epsilon, delta)-privacy

    P[right >= v] <= f(v) + 2 m delta max_i (f(v - i) - f(v)) / i,
    f(v) = P[Binomial(r, 1 / (1 + e^-epsilon)) >= v]

An epsilon under which v is too unlikely is refuted. The bound says that something is broken, never that
nothing is: m canaries cannot refute more than ln(p / (1 - p)) with p = (level)^(1 / m).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
GUESSES = (10, 30, 100, 300, 600, 1000)


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound of the probability of at least `right` right guesses under (epsilon, delta)-privacy."""
    mass = binomial(guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    tail = float(mass[right:].sum())
    # f(v - i) - f(v) is the mass at v - i ... v - 1; beyond v it grows no more.
    below = np.cumsum(mass[:right][::-1])
    slope = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * slope)


def binomial(n: int, p: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 .. n successes."""
    k = np.arange(n + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = factorial[n] - factorial[k] - factorial[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return np.exp(logs)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    """Return the largest epsilon, to 1e-3, that `right` right guesses refute at `level`; 0 if none."""
    if p_value(canaries, guesses, right, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, 30.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if p_value(canaries, guesses, right, middle, delta) <= level else (low, middle)
        )
    return low


def audited(
    attacks: Sequence[NDArray[np.float64]], included: NDArray[np.bool_], delta: float, level: float = LEVEL
) -> float:
    """Return the best lower bound of several attacks, each a score [m] that is higher for those included.

    The highest scores are guessed to be in and the lowest to be out, for several numbers of guesses; the
    level is shared among all of these.
    """
    trials = [(score, r) for score in attacks for r in GUESSES if r <= len(included)]
    share = level / len(trials)
    return max(lower_bound(len(included), r, hits(score, included, r), delta, share) for score, r in trials)


def hits(score: NDArray[np.float64], included: NDArray[np.bool_], guesses: int) -> int:
    """Return how many of the guesses, half of them each way, are right."""
    order = np.argsort(score, kind="stable")
    half = guesses // 2
    return int(included[order[len(order) - half :]].sum()) + int((~included[order[:half]]).sum())


def most(canaries: int, level: float = LEVEL) -> float:
    """Return the largest epsilon that so many canaries could refute at all."""
    p = level ** (1.0 / canaries)
    return math.log(p / (1.0 - p))
