"""Expected signals of given groups, and their releases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from fedfair.measure import RecordBounds
from fedfair.metrics import macro_auc
from fedfair.modulation._dual_mimo import relative_losses
from fedfair.privacy.noise import Noise
from fedfair.privacy.release import Layout, release
from fedfair.signals import Array, Signals

HEADS, BINS = 3, 8
EDGES = np.concatenate([[-np.inf], stats.logistic.ppf(np.arange(1, BINS) / BINS), [np.inf]])


def world(
    sizes: Sequence[float], shifts: Sequence[float], losses: Sequence[float], classes: int = 2
) -> Signals:
    """Return expected signals: by group its records, the distance of its classes' scores, its mean loss."""
    rare = np.linspace(0.4, 0.6, len(sizes)) if classes == 2 else np.full(len(sizes), 1 / classes)
    scored = 1 if classes == 2 else classes
    histograms = np.stack(
        [
            size * np.stack([(1 - p) * _scores(-shift), p * _scores(shift)])
            for size, shift, p in zip(sizes, shifts, rare, strict=True)
        ]
    )
    histograms = np.repeat(histograms[:, None], scored, 1)
    members = histograms[:, :, 1].sum(-1)
    counts = np.concatenate([histograms[:, :, 0].sum(-1), members], 1) if classes == 2 else members
    entropy = -(counts * np.log(counts / counts.sum(-1, keepdims=True))).sum(-1)
    each = counts, np.array(losses) * entropy, histograms
    return Signals(*(np.repeat(value[None], HEADS, 0) for value in each))


def _scores(mean: float) -> Array:
    return np.asarray(np.diff(stats.norm.cdf(EDGES, mean, 1.2)))


def noised(exact: Signals, sigma: float, seed: int) -> Signals:
    layout = Layout(
        exact.num_heads, exact.histograms.shape[2], 1.0, 1.0 if exact.head_gradients is not None else None
    )
    return release([exact], layout, sigma, Noise.fixed(seed, "gate"))[0]


def of_three(signals: Signals) -> tuple[Array, Array, Array]:
    return signals.counts, signals.losses, signals.histograms


def gaps(signals: Signals) -> tuple[Array, Array]:
    """Return the gaps [H, G] to the pool in AUC and in relative loss."""
    pool = Signals(*(value.sum(1, keepdims=True) for value in of_three(signals)))
    return (
        macro_auc(signals.histograms) - macro_auc(pool.histograms),
        relative_losses(signals) - relative_losses(pool),
    )


def layout_of(signals: Signals, bounds: RecordBounds) -> Layout:
    """Return the layout of signals measured under `bounds`."""
    heads, _, scored = signals.histograms.shape[:3]
    return Layout(heads, scored, bounds.loss, bounds.gradient)
