"""Masking: a method sees the groups that are known, and the others follow what it asks of a modality.

Records of whom nobody knows the attribute train the model like all others. They are no group that a method
could compare with another, so their signals are kept from it, and its answer is expanded to all groups.
Where every group is known, both functions return what they are given.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedfair.coefficients import Coefficients, FairnessTerm
from fedfair.modulation import Modulation
from fedfair.signals import Array, Signals

Mask = NDArray[np.bool_]


def of_known(signals: Signals, known: Mask) -> Signals:
    """Return the signals of the known groups.

    Parameters
    ----------
    signals : Signals
        Of G groups. Head gradients are sums over all records and stay so.
    known : Mask
        [G].
    """
    if known.all():
        return signals
    return replace(
        signals,
        counts=np.compress(known, signals.counts, 1),
        losses=np.compress(known, signals.losses, 1),
        histograms=np.compress(known, signals.histograms, 1),
    )


def expanded(modulation: Modulation, known: Mask, counts: Array) -> Modulation:
    """Return an answer about the known groups as one about all.

    An unknown group has the coefficient 1 of the fused loss and, of unimodal loss m, the mean of the known
    groups' over their records that have modality m (of the groups, where there is none): what a method asks
    of a modality holds for it, what it asks of a group does not. The fairness term has no gradient there.
    Memory and diagnostics stay those of the known groups.

    Parameters
    ----------
    modulation : Modulation
        Of the known groups, in their order.
    known : Mask
        [G], at least one true.
    counts : Array
        [M + 1, G, C] records by head, as in the signals of all groups; noise may have made some negative.
    """
    if known.all():
        return modulation
    records = np.maximum(counts.sum(-1), 0.0)
    coefficients, terms = modulation.coefficients, modulation.terms
    if terms.fairness is not None:
        terms = replace(terms, fairness=_fairness(terms.fairness, known, records[1:]))
    return replace(modulation, coefficients=_coefficients(coefficients, known, records[1:]), terms=terms)


def _coefficients(of_known: Coefficients, known: Mask, records: Array) -> Coefficients:
    fused = np.ones((len(records) + 1, len(known)))
    fused[:, known] = of_known.fused
    weights = records[:, known]
    weights = np.where(weights.sum(-1, keepdims=True) > 0, weights, 1.0)
    # Divided last, so that the mean of ones is one.
    mean = (weights * of_known.unimodal).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)
    unimodal = np.repeat(mean, len(known), axis=1)
    unimodal[:, known] = of_known.unimodal
    return Coefficients(fused, unimodal, of_known.live)


def _fairness(term: FairnessTerm, known: Mask, records: Array) -> FairnessTerm:
    """Return the term with zeros for unknown groups.

    Sites multiply slopes by the records in the histograms, which cancels the mean that aggregation takes. It
    takes it over all records of a modality, so the slopes make up for those that the histograms leave out.
    """
    counted = term.histograms[:, :, 0].sum((1, 2, 3))
    left_out = records[:, ~known].sum(-1)
    share = 1.0 + np.divide(left_out, counted, out=np.zeros_like(counted), where=counted > 0)
    slopes = np.zeros((len(records), len(known)))
    slopes[:, known] = share[:, None] * term.slopes
    histograms = np.zeros((len(records), len(known), *term.histograms.shape[2:]))
    histograms[:, known] = term.histograms
    return FairnessTerm(slopes, histograms, term.temperature)
