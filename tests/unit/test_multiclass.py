"""Four classes through every metric and every loss term, against scikit-learn, fairlearn and autograd.

Scores lie in the middle of their bins and add up to one, so that binning moves nothing and oracles are exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fairlearn import metrics as fairlearn
from numpy.typing import NDArray
from sklearn import metrics as sklearn
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedfair import metrics
from fedfair.assessment import MetricTable, assess
from fedfair.batch import MultimodalBatch
from fedfair.bootstrap import metric_intervals
from fedfair.coefficients import LossTerms
from fedfair.data.crossing import axes
from fedfair.measure import measure
from fedfair.modulation import METHODS, DualMimo, FedAvg, Memory, Method, Mimo, MultiFair
from fedfair.resolution import macro_auc_sd
from fedfair.seeding import numpy_generator
from fedfair.signals import Signals, bin_logits, head_signals
from fedfair.terms import PreparedTerms
from tests.oracles.cohort import (
    BINS,
    GROUPS,
    History,
    cohort,
    difference,
    federate,
    partition,
    prepared,
    small_model,
)
from tests.oracles.pooled import layer_gradient
from tests.oracles.reference import centralise

C, Q = 4, 64
ATTRIBUTES = {"sex": ("female", "male"), "age": ("<50", "50-69", "70+"), "language": ("local", "other")}
CELLS = (2, 3, 2)
EXACT = 1e-12  # sums of fewer than 1e4 float64 terms in another order
ATTRIBUTE_NAMES = ["sex", "age", "language", "sex*age", "language*age", "sex*age*language"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class People(NamedTuple):
    """n records; `scores` [4, n, C] are of the fused head and three unimodal ones, `present` [n, 4]."""

    labels: Index
    attributes: dict[str, Index]
    scores: Array
    present: NDArray[np.bool_]

    def group(self, name: str) -> Index:
        parts = name.split("*")
        sizes = [len(ATTRIBUTES[part]) for part in parts]
        return np.ravel_multi_index([self.attributes[part] for part in parts], sizes)

    def keep(self, rows: NDArray[np.bool_]) -> People:
        attributes = {name: groups[rows] for name, groups in self.attributes.items()}
        return People(self.labels[rows], attributes, self.scores[:, rows], self.present[rows])


def people(n: int = 900, seed: int = 0) -> People:
    """Return records whose heads are of another quality each, the worse for women and the old."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(C, n, p=[0.4, 0.25, 0.2, 0.15])
    attributes = {name: rng.integers(0, len(groups), n) for name, groups in ATTRIBUTES.items()}
    quality = np.array([2.5, 1.5, 1.0, 0.5])[:, None] * (
        1 - 0.3 * (attributes["sex"] == 0) - 0.2 * attributes["age"]
    )
    logits = rng.normal(size=(4, n, C)) + quality[..., None] * np.eye(C)[labels]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    # C middles of bins that add up to one: (k + 1/2) / Q with the k adding up to Q - C / 2.
    middles = (rng.multinomial(Q - C // 2, shares) + 0.5) / Q
    present = np.stack([np.ones(n, bool), *(rng.random((3, n)) < [[0.95], [0.8], [0.6]])], axis=1)
    return People(labels, attributes, middles, present)


def signals(data: People) -> Signals:
    cell = np.ravel_multi_index(list(data.attributes.values()), CELLS)
    heads = [
        head_signals(
            torch.from_numpy(np.log(scores[has])),
            torch.from_numpy(data.labels[has]),
            torch.from_numpy(cell[has]),
            math.prod(CELLS),
            Q,
        )
        for scores, has in zip(data.scores, data.present.T, strict=True)
    ]
    return Signals(*(np.stack(parts) for parts in zip(*heads, strict=True)))


def table(data: People, attribute: str, min_count: float = 1) -> MetricTable:
    return assess(signals(data), CELLS, axes(ATTRIBUTES, attribute), min_count)


def macro(labels: Index, scores: Array) -> float:
    return float(sklearn.roc_auc_score(labels, scores, multi_class="ovr", average="macro", labels=range(C)))


def differences(data: People, groups: Index) -> tuple[float, float]:
    """Return fairlearn's differences of one class against the rest, averaged over the classes."""
    fair = {"sensitive_features": groups}
    pairs = [(data.labels == c, data.scores[0, :, c] >= 0.5) for c in range(C)]
    parity = [fairlearn.demographic_parity_difference(own, called, **fair) for own, called in pairs]
    odds = [fairlearn.equalized_odds_difference(own, called, **fair) for own, called in pairs]
    return float(np.mean(parity)), float(np.mean(odds))


@pytest.mark.parametrize("attribute", ATTRIBUTE_NAMES)
def test_the_headline_is_that_of_scikit_learn_and_fairlearn(attribute: str) -> None:
    data = people()
    found, groups = table(data, attribute), data.group(attribute)
    overall = macro(data.labels, data.scores[0])
    by_group = [macro(data.labels[groups == g], data.scores[0, groups == g]) for g in np.unique(groups)]
    assert found.auc == pytest.approx(overall, abs=EXACT)
    assert [group.auc for group in found.groups] == pytest.approx(by_group, abs=EXACT)
    # Of macro AUCs: FairVision's, not a mean over classes of each class's own.
    scaled = overall / (1 + sum(abs(auc - overall) for auc in by_group))
    assert found.es_auc == pytest.approx(scaled, abs=EXACT)
    assert (found.worst_group, found.worst_group_auc) == (np.argmin(by_group), pytest.approx(min(by_group)))
    assert found.log_loss == pytest.approx(sklearn.log_loss(data.labels, data.scores[0]), abs=EXACT)
    assert (found.dpd, found.deodds) == pytest.approx(differences(data, groups), abs=EXACT)
    assert math.isnan(found.accuracy)


def test_the_middles_of_bins_are_scores_of_both_kinds() -> None:
    """Else the differences above would be of nobody called positive."""
    called = people().scores[0] >= 0.5
    assert (called.mean(0) > 0.05).all()
    assert 0.05 < (~called.any(1)).mean() < 0.5  # some are called none of the four, which arg max would not
    np.testing.assert_allclose(people().scores.sum(-1), 1.0, atol=1e-15)


@pytest.mark.parametrize("attribute", ["age", "sex*age"])
def test_a_groups_figures_are_those_of_its_records(attribute: str) -> None:
    data = people()
    found, groups = table(data, attribute), data.group(attribute)
    for g, group in enumerate(found.groups):
        mine = groups == g
        labels, scores = data.labels[mine], data.scores[0, mine]
        assert group.counts == tuple(np.bincount(labels, minlength=C))
        assert group.log_loss == pytest.approx(sklearn.log_loss(labels, scores, labels=range(C)), abs=EXACT)
        called, own = scores >= 0.5, labels[:, None] == np.arange(C)
        rates = [fairlearn.selection_rate, fairlearn.true_positive_rate, fairlearn.false_positive_rate]
        means = [np.mean([rate(own[:, c], called[:, c]) for c in range(C)]) for rate in rates]
        got = [group.selection_rate, group.true_positive_rate, group.false_positive_rate]
        assert got == pytest.approx(means, abs=EXACT)


def test_each_modality_alone_is_scored_on_who_has_it() -> None:
    data = people()
    found, groups = table(data, "sex*age"), data.group("sex*age")
    for m in range(3):
        has = data.present[:, m + 1]
        expected = macro(data.labels[has], data.scores[m + 1, has])
        assert found.unimodal_auc[m] == pytest.approx(expected, abs=EXACT)
        for g, group in enumerate(found.groups):
            rows = has & (groups == g)
            expected = macro(data.labels[rows], data.scores[m + 1, rows])
            assert group.unimodal_auc[m] == pytest.approx(expected, abs=EXACT)


def test_a_class_that_a_group_lacks_is_not_estimable_there() -> None:
    everyone = people()
    data = everyone.keep((everyone.attributes["age"] != 2) | (everyone.labels != 3))
    found = table(data, "age")
    old = found.groups[2]
    assert old.counts[3] == 0
    assert math.isnan(old.auc)  # not the mean over the three classes that are left
    assert math.isnan(old.true_positive_rate)
    assert np.isnan(old.unimodal_auc).all()
    rows = data.attributes["age"] == 2
    called = (data.scores[0, rows] >= 0.5).mean()
    assert old.selection_rate == pytest.approx(called, abs=EXACT)
    assert not math.isnan(old.false_positive_rate)
    by_group = [
        macro(data.labels[data.attributes["age"] == g], data.scores[0, data.attributes["age"] == g])
        for g in (0, 1)
    ]
    gaps = sum(abs(auc - found.auc) for auc in by_group)
    assert found.es_auc == pytest.approx(found.auc / (1 + gaps), abs=EXACT)
    assert (found.worst_group, found.worst_group_auc) == (np.argmin(by_group), pytest.approx(min(by_group)))


def test_a_difference_leaves_out_the_group_for_the_class_it_lacks() -> None:
    everyone = people()
    data = everyone.keep((everyone.attributes["age"] != 2) | (everyone.labels != 3))
    groups, odds = data.attributes["age"], []
    for c in range(C):
        own, called = data.labels == c, data.scores[0, :, c] >= 0.5
        rates = {"true": fairlearn.true_positive_rate, "false": fairlearn.false_positive_rate}
        frame = fairlearn.MetricFrame(
            metrics=rates, y_true=own, y_pred=called, sensitive_features=groups
        ).by_group
        true = frame["true"].drop(index=2) if c == 3 else frame["true"]
        odds.append(max(np.ptp(true), np.ptp(frame["false"])))
    found = table(data, "age")
    assert found.deodds == pytest.approx(np.mean(odds), abs=EXACT)
    assert found.dpd == pytest.approx(differences(data, groups)[0], abs=EXACT)
    # With two groups, one of which lacks the class, nothing is left to compare.
    two = table(data.keep(groups > 0), "age")
    assert math.isnan(two.deodds)
    assert not math.isnan(two.dpd)


def test_without_a_class_nothing_of_all_records_is_estimable() -> None:
    everyone = people()
    found = table(everyone.keep(everyone.labels != 1), "sex")
    assert math.isnan(found.auc)
    assert math.isnan(found.es_auc)
    assert math.isnan(found.worst_group_auc)
    assert found.worst_group is None
    assert math.isnan(found.deodds)
    assert not math.isnan(found.log_loss)


def test_a_least_count_is_of_each_class() -> None:
    data = people()
    groups = data.group("sex*age*language")
    counts = np.array([np.bincount(data.labels[groups == g], minlength=C) for g in range(12)])
    least = int(np.median(counts.min(1)))
    found = table(data, "sex*age*language", least)
    known = [not math.isnan(group.auc) for group in found.groups]
    assert known == (counts.min(1) >= least).tolist()
    assert 0 < sum(known) < 12


def test_intervals_lie_around_the_points() -> None:
    data = people()
    found = table(data, "sex*age")
    place = axes(ATTRIBUTES, "sex*age")
    intervals = metric_intervals(signals(data), CELLS, place, 200, numpy_generator(0, "test"))
    points = {key: getattr(found, key) for key in ("auc", "es_auc", "dpd", "deodds", "worst_group_auc")}
    points |= {f"group_auc/{g}": group.auc for g, group in enumerate(found.groups)}
    assert intervals.keys() == points.keys()
    for key, point in points.items():
        assert intervals[key].low < point < intervals[key].high, key
    # The mean over classes of the half widths, which is no less than the half width of the mean.
    errors = metrics.auc_standard_error(signals(data).histograms[0].sum(0))
    half = (intervals["auc"].high - intervals["auc"].low) / 2
    # A 95 % quantile of 200 draws errs by 8 % (1 sd) in each class, and by somewhat less in their mean.
    assert half == pytest.approx(1.96 * errors.mean(), rel=0.2)


def test_the_noise_of_a_release_moves_the_macro_auc_by_its_predicted_deviation() -> None:
    exact, noise, draws = signals(people()).histograms[0].sum(0), 2.0, 600
    rng = np.random.default_rng(4)
    drawn = metrics.macro_auc(exact + rng.normal(0, noise, (draws, *exact.shape)))
    # The standard deviation of 600 draws errs by 1/sqrt(1200) = 2.9 %, taken 4 times; the second order, the
    # relative variance of the smallest class, is 64 noise^2 / 130^2 = 1.5 %.
    assert drawn.std(ddof=1) == pytest.approx(float(macro_auc_sd(exact, noise**2)), rel=0.13)


def test_pairs_within_a_site_are_those_of_one_site() -> None:
    data = people(240)
    sites = np.arange(240) % 3
    histograms = np.stack([signals(data.keep(sites == k)).histograms[0].sum(0) for k in range(3)])
    by_class = []
    for c in range(C):
        score, own = data.scores[0, :, c], data.labels == c
        won = [
            (score[i] > score[j]) + 0.5 * (score[i] == score[j])
            for i, j in itertools.product(np.flatnonzero(own), np.flatnonzero(~own))
            if sites[i] == sites[j]
        ]
        by_class.append(np.mean(won))
    np.testing.assert_allclose(metrics.within_site_auc(histograms), by_class, atol=EXACT)


# --- loss terms ---

MODALITIES = 3
TEMPERATURE = 0.7


def middle_batch() -> tuple[MultimodalBatch, list[Tensor], Signals]:
    """Return records by sex*age, leaves that are their unimodal logits, and the signals of these."""
    data = people(400, seed=3)
    group = data.group("sex*age")
    leaves = [torch.from_numpy(np.log(scores)).requires_grad_() for scores in data.scores[1:]]
    batch = MultimodalBatch(
        {str(m): torch.zeros(400, 1) for m in range(MODALITIES)},
        torch.from_numpy(data.present[:, 1:].copy()),
        torch.from_numpy(data.labels),
        torch.from_numpy(group),
    )
    heads = [
        head_signals(
            torch.from_numpy(np.log(scores[has])),
            torch.from_numpy(data.labels[has]),
            torch.from_numpy(group[has]),
            6,
            Q,
        )
        for scores, has in zip(data.scores, data.present.T, strict=True)
    ]
    return batch, leaves, Signals(*(np.stack(parts) for parts in zip(*heads, strict=True)))


def group_gap(batch: MultimodalBatch, leaves: list[Tensor], one_sided: bool) -> Tensor:
    """Return F_G over all pairs of records: A_mg is the mean over classes of one against the rest."""
    total = torch.zeros((), dtype=torch.float64)
    for m, logits in enumerate(leaves):
        p = torch.softmax(logits, 1)
        margin, aucs = torch.log(p / (1 - p)), []
        for g in range(6):
            rows = batch.present[:, m] & (batch.groups == g)
            by_class = []
            for c in range(C):
                u, own = margin[:, c], batch.labels == c
                gaps = u[rows & own][:, None] - u[rows & ~own]
                by_class.append(torch.sigmoid(gaps / TEMPERATURE).mean())
            aucs.append(torch.stack(by_class).mean())
        auc = torch.stack(aucs)
        gap = torch.relu(auc.mean().detach() - auc) if one_sided else (auc - auc.mean()).abs()
        total = total + gap.mean() / MODALITIES
    return total


def four_classes() -> MultimodalBatch:
    return cohort(160, classes=C)


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_fairness_term_is_the_derivative_of_the_gap_over_all_pairs(one_sided: bool) -> None:
    batch, leaves, pooled = middle_batch()
    method = MultiFair(
        fairness=0.3, direction=0.0, one_sided=one_sided, temperature=TEMPERATURE, group_min=1, warmup=0
    )
    terms = method.modulate(pooled, {}).terms
    made = PreparedTerms.build(terms, torch.as_tensor(bin_logits(Q)))
    assert made.fairness is not None
    exact = torch.autograd.grad(group_gap(batch, leaves, one_sided), leaves)
    for m, leaf in enumerate(leaves):
        # A site adds a sum over its records; the server divides by the records that have the modality.
        own = made.fairness.loss(m, leaf, batch) / batch.present[:, m].sum()
        (ours,) = torch.autograd.grad(own, leaf)
        assert float(ours.abs().max()) > 1e-5
        # Entries of about 1e-4, from sums over 400 pairs in another order.
        torch.testing.assert_close(ours, 0.3 * exact[m], rtol=0, atol=1e-15)


def test_the_direction_term_is_the_derivative_of_the_alignment_loss() -> None:
    """CGGM's equation (3) by double backward, weighed and unbounded."""
    batch = four_classes()
    method = MultiFair(direction=0.4, fairness=0.0, direction_max=np.inf, gate=0.0)
    memory: Memory = {}
    for model in (small_model(C, seed=2), small_model(C)):
        pooled = measure(model, batch, GROUPS, BINS, 512, head_gradients=True)
        answer = method.modulate(pooled, memory)
        memory = answer.memory
    balance = answer.diagnostics["balance"]
    assert len(set(balance)) > 1
    embeddings = model.encode(batch)
    fused, alone = model.fusion(embeddings, batch.present), model.unimodal(embeddings)
    whole = layer_gradient(cross_entropy(fused.logits, batch.labels), model.fusion.classifier, graph=True)
    aligned = torch.zeros((), dtype=torch.float64)
    for m, name in enumerate(model.modalities):
        has = batch.present[:, m]
        loss = cross_entropy(alone[m].logits[has], batch.labels[has])
        own = layer_gradient(loss, model.heads[name].classifier)
        cosine = (whole * own).sum() / (whole.norm() * own.norm())
        aligned = aligned + (abs(balance[m]) - balance[m] * cosine) / MODALITIES
    owned = [*model.fusion.parameters(), *model.encoders.parameters()]
    exact = torch.autograd.grad(0.4 * aligned, owned, retain_graph=True, materialize_grads=True)
    made = prepared(LossTerms(direction=answer.terms.direction))
    assert made is not None
    ours = torch.autograd.grad(made.loss(fused, alone, batch) / len(batch), owned, materialize_grads=True)
    assert max(float(g.abs().max()) for g in exact) > 1e-2
    for one, other in zip(ours, exact, strict=True):
        # The norm of G, some 0.1, is divided by twice.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# --- methods over sites ---

METHOD_OF: dict[str, Method] = {
    "fedavg": FedAvg(),
    "mimo": Mimo(mu=0.05),
    "dual_mimo": DualMimo(mu=0.1, shrinkage=5.0),
    # The gate is off and the least count small, so that every factor and term moves on 160 records.
    "multifair": MultiFair(
        gate=0.0, direction=0.5, direction_max=np.inf, fairness=0.5, decay=0.5, group_min=2
    ),
}


def history(name: str, sites: int) -> History:
    return federate(small_model(C), partition(four_classes(), sites), METHOD_OF[name], rounds=3, rate=0.5)


def test_every_method_is_here() -> None:
    assert METHOD_OF.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHOD_OF)
def test_sites_and_the_centralised_reference_give_one_trajectory(name: str) -> None:
    one = history(name, 1)
    # As in tests/oracles: the same few hundred operations in another order.
    assert difference(history(name, 6), one) < 1e-10
    reference = centralise(small_model(C), four_classes(), METHOD_OF[name], 3, 0.5, GROUPS, BINS)
    assert difference(one, reference) < 1e-10
    if name != "fedavg":
        assert difference(one, history("fedavg", 1)) > 1e-3


@pytest.mark.parametrize("part", ["direction", "fairness"])
def test_each_term_moves_the_trajectory(part: str) -> None:
    without = replace(METHOD_OF["multifair"], **{part: 0.0})
    model, sites = small_model(C), [four_classes()]
    assert difference(federate(model, sites, without, 3, 0.5), history("multifair", 1)) > 1e-5
