"""What the conformance suite knows of each method: settings, limits, scales, and signals to try them on.

A new method needs one entry in `CASES`; `test_conformance.py` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedfair.modulation import DualMimo, FedAvg, Memory, Method, Mimo, Modulation, MultiFair
from fedfair.signals import Array, Signals, head_signals

BINS, WIDTH = 16, 3


def same(method: Method, scale: float) -> Method:
    """Return the method itself: its coefficients do not depend on the scale."""
    del scale
    return method


@dataclass(frozen=True)
class Case:
    """One method under test.

    Attributes
    ----------
    method : Method
        Settings under which the signals below move every coefficient that can move.
    neutral : Method
        The limit that is federated averaging: fused coefficients of one, no unimodal loss in the
        encoders, no term.
    unimodal : Callable[[int], float]
        The unimodal coefficient for M modalities when all groups and modalities are served equally.
    with_counts, with_losses : Callable[[Method, float], Method]
        The settings for which signals of `scale` times the records (every array multiplied), or of
        `scale` times the losses alone, give the coefficients that the method gives at scale one.
    smallest : float
        Smallest scale of the records for which that holds.
    """

    method: Method
    neutral: Method
    unimodal: Callable[[int], float]
    with_counts: Callable[[Method, float], Method] = same
    with_losses: Callable[[Method, float], Method] = same
    smallest: float = 1e-8


# The gate is off: what it compares with is an error, which must fall as the records grow.
MULTIFAIR = MultiFair(gate=0.0, group_min=2, decay=0.5, warmup=1, group_factor_max=4.0, direction_max=np.inf)

CASES: Mapping[str, Case] = {
    # It reads nothing.
    "fedavg": Case(FedAvg(), FedAvg(), lambda _: 1.0),
    # Mean losses: any number of records; the temperature is in units of the loss.
    "mimo": Case(
        Mimo(penalty=1.5, mu=0.1),
        Mimo(penalty=0.0),
        lambda modalities: 1.5 / modalities,
        with_losses=lambda method, scale: replace(method, mu=method.mu * scale),
    ),
    # Relative losses, so the temperature follows them; shrinkage counts records. The cap is off.
    "dual_mimo": Case(
        DualMimo(penalty=0.5, mu=0.2, shrinkage=20.0, unimodal_max=100.0),
        DualMimo(penalty=0.0, mu=np.inf),
        lambda modalities: 0.5 / modalities,
        with_counts=lambda method, scale: replace(method, shrinkage=method.shrinkage * scale),
        with_losses=lambda method, scale: replace(method, mu=method.mu * scale),
    ),
    # AUCs: any number of records from one of each class on, and no loss at all.
    "multifair": Case(
        MULTIFAIR, replace(MULTIFAIR, gamma=0.0, direction=0.0, fairness=0.0), lambda _: 1.0, smallest=1.0
    ),
}


def cases_of(registry: Mapping[str, type[Method]], cases: Mapping[str, Case] = CASES) -> dict[str, Case]:
    """Return the case of every registered method.

    Raises
    ------
    LookupError
        If a method has no case, a case no method, or a case is of another method.
    """
    if registry.keys() != cases.keys():
        raise LookupError(f"every method needs a case, see {sorted(registry.keys() ^ cases.keys())}")
    for name, case in cases.items():
        if {type(case.method), type(case.neutral)} != {registry[name]}:
            raise LookupError(f"the case `{name}` must hold {registry[name].__name__}")
    return dict(cases)


def site_signals(  # noqa: PLR0913, PLR0917, one keyword per thing that goes wrong
    seed: int,
    modalities: int = 3,
    groups: int = 3,
    classes: int = 2,
    records: int = 240,
    equal: bool = False,
    without: Collection[int] = (),
    empty: Collection[int] = (),
    one_class: Collection[int] = (),
) -> Signals:
    """Return signals of drawn scores: every head and group of another quality, or all `equal`.

    Parameters
    ----------
    seed : int
        Of the draw; two seeds are two sites, or two rounds.
    without, empty, one_class : Collection[int]
        Modalities that no record has, groups without records, groups of class 0 only.
    """
    parts = []
    for head in range(modalities + 1):
        drawn = [
            _group(seed, 0 if equal else head, 0 if equal else g, classes, records) for g in range(groups)
        ]
        for g in (*empty, *one_class):
            keep = drawn[g][1] == (0 if g in one_class else -1)
            drawn[g] = drawn[g][0][keep], drawn[g][1][keep]
        if head - 1 in without:
            drawn = [(logits[:0], labels[:0]) for logits, labels in drawn]
        group = torch.cat([torch.full((len(labels),), g) for g, (_, labels) in enumerate(drawn)])
        logits, labels = torch.cat([d[0] for d in drawn]), torch.cat([d[1] for d in drawn])
        parts.append(head_signals(logits, labels, group, groups, BINS))
    counts, losses, histograms = (np.stack(part) for part in zip(*parts, strict=True))
    gradients = np.random.default_rng([seed, 99]).normal(size=(modalities + 1, classes, WIDTH + 1))
    gradients *= counts.sum((-1, -2))[:, None, None]
    return Signals(counts, losses, histograms, gradients)


def _group(seed: int, head: int, group: int, classes: int, records: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([seed, group, 7])
    labels = rng.integers(0, classes, records // (1 + group))
    quality = 0.4 + 0.5 * head + 0.15 * seed - 0.4 * group
    noise = np.random.default_rng([seed, head, group]).normal(size=(len(labels), classes))
    return torch.as_tensor(quality * np.eye(classes)[labels] + noise), torch.as_tensor(labels)


def answer(method: Method, rounds: Sequence[Signals]) -> Modulation:
    """Return the answer to the last of several rounds."""
    memory: Memory = {}
    for signals in rounds:
        result = method.modulate(signals, memory)
        memory = result.memory
    return result


def arrays(modulation: Modulation) -> dict[str, Array]:
    """Return all that leaves the method, by name."""
    result = {
        "fused": modulation.coefficients.fused,
        "unimodal": modulation.coefficients.unimodal,
        **{f"memory/{name}": value for name, value in modulation.memory.items()},
    }
    if modulation.terms.direction is not None:
        result["direction"] = modulation.terms.direction
    if (fairness := modulation.terms.fairness) is not None:
        result |= {"slopes": fairness.slopes, "histograms": fairness.histograms}
    return result


def permuted(signals: Signals, modalities: list[int], groups: list[int]) -> Signals:
    """Return the signals of modalities and groups in another order, or of some of them."""
    heads = [0, *(m + 1 for m in modalities)]
    assert signals.head_gradients is not None
    return Signals(
        signals.counts[heads][:, groups],
        signals.losses[heads][:, groups],
        signals.histograms[heads][:, groups],
        signals.head_gradients[heads],
    )


def assert_valid(modulation: Modulation, modalities: int, groups: int) -> None:
    """Assert shapes, and values that neither stop, reverse nor poison a gradient."""
    fused, unimodal = modulation.coefficients.fused, modulation.coefficients.unimodal
    assert fused.shape == (modalities + 1, groups)
    assert unimodal.shape == (modalities, groups)
    assert np.isfinite(fused).all()
    assert (fused > 0).all()
    assert np.isfinite(unimodal).all()
    assert (unimodal >= 0).all()
    fairness, direction = modulation.terms.fairness, modulation.terms.direction
    assert direction is None or np.isfinite(direction).all()
    assert fairness is None or np.isfinite(fairness.slopes).all()
