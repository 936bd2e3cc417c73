from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fairlearn import metrics as fairlearn
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from fedfair.assessment import assess, json_safe, marginal
from fedfair.errors import ShapeError
from fedfair.resolution import resolved_auc
from fedfair.signals import Signals, Variance, head_signals

CELLS = (2, 3)  # sex, age
BINS = 64
EXACT = 1e-12  # sums of fewer than 1e4 float64 terms in another order


class Records(NamedTuple):
    labels: NDArray[np.int64]
    sex: NDArray[np.int64]
    age: NDArray[np.int64]
    logits: list[torch.Tensor]  # fused, then two modalities
    present: NDArray[np.bool_]  # [n, 3]


def records(classes: int, n: int = 400, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    one_hot = np.eye(classes)[labels]
    logits = [torch.from_numpy(rng.normal(size=(n, classes)) + scale * one_hot) for scale in (2.0, 1.0, 0.5)]
    present = np.stack([np.ones(n, bool), rng.random(n) < 0.9, rng.random(n) < 0.6], axis=1)
    return Records(labels, rng.integers(0, 2, n), rng.integers(0, 3, n), logits, present)


def signals(data: Records) -> Signals:
    cell = np.ravel_multi_index((data.sex, data.age), CELLS)
    heads = [
        head_signals(
            logits[torch.from_numpy(mask)],
            torch.from_numpy(data.labels[mask]),
            torch.from_numpy(cell[mask]),
            math.prod(CELLS),
            BINS,
        )
        for logits, mask in zip(data.logits, data.present.T, strict=True)
    ]
    return Signals(*(np.stack(parts) for parts in zip(*heads, strict=True)))


def binned(logits: torch.Tensor) -> NDArray[np.float64]:
    probabilities = torch.softmax(logits, 1).numpy()
    return (np.minimum(np.floor(probabilities * BINS), BINS - 1) + 0.5) / BINS


@pytest.mark.parametrize(("axis", "attribute"), [(0, "sex"), (1, "age")])
def test_marginal_is_the_signals_by_that_attribute_alone(axis: int, attribute: str) -> None:
    data = records(2)
    groups = getattr(data, attribute)
    kept = marginal(signals(data), CELLS, axis)
    for h, (logits, mask) in enumerate(zip(data.logits, data.present.T, strict=True)):
        counts, losses, histograms = head_signals(
            logits[torch.from_numpy(mask)],
            torch.from_numpy(data.labels[mask]),
            torch.from_numpy(groups[mask]),
            CELLS[axis],
            BINS,
        )
        np.testing.assert_array_equal(kept.counts[h], counts)
        np.testing.assert_array_equal(kept.histograms[h], histograms)
        np.testing.assert_allclose(kept.losses[h], losses, rtol=EXACT)


@pytest.mark.parametrize(("cells", "axis"), [((2, 2), 0), ((2, 3), 2), ((2, 3), -1)])
def test_cells_that_do_not_fit_are_refused(cells: tuple[int, ...], axis: int) -> None:
    with pytest.raises(ShapeError, match="must multiply to 6 groups"):
        marginal(signals(records(2)), cells, axis)


def test_binary_table_is_that_of_scikit_learn_and_fairlearn() -> None:
    data = records(2)
    table = assess(signals(data), CELLS, axis=1)
    score = binned(data.logits[0])[:, 1]
    probability = torch.softmax(data.logits[0], 1).numpy()
    by_group = [sklearn.roc_auc_score(data.labels[data.age == g], score[data.age == g]) for g in range(3)]
    assert table.auc == pytest.approx(sklearn.roc_auc_score(data.labels, score), abs=EXACT)
    assert [group.auc for group in table.groups] == pytest.approx(by_group, abs=EXACT)
    assert table.es_auc == pytest.approx(
        table.auc / (1 + sum(abs(a - table.auc) for a in by_group)), abs=EXACT
    )
    assert (table.worst_group, table.worst_group_auc) == (np.argmin(by_group), pytest.approx(min(by_group)))
    assert table.log_loss == pytest.approx(sklearn.log_loss(data.labels, probability), abs=1e-10)
    assert table.accuracy == pytest.approx(sklearn.accuracy_score(data.labels, score > 0.5), abs=EXACT)
    fair = {"sensitive_features": data.age}
    predicted = score > 0.5
    assert table.dpd == pytest.approx(fairlearn.demographic_parity_difference(data.labels, predicted, **fair))
    assert table.deodds == pytest.approx(fairlearn.equalized_odds_difference(data.labels, predicted, **fair))
    for m in (1, 2):
        mask = data.present[:, m]
        unimodal = sklearn.roc_auc_score(data.labels[mask], binned(data.logits[m])[mask, 1])
        assert table.unimodal_auc[m - 1] == pytest.approx(unimodal, abs=EXACT)
        old = mask & (data.age == 2)
        unimodal = sklearn.roc_auc_score(data.labels[old], binned(data.logits[m])[old, 1])
        assert table.groups[2].unimodal_auc[m - 1] == pytest.approx(unimodal, abs=EXACT)
    for g, group in enumerate(table.groups):
        mine = data.age == g
        assert group.counts == tuple(np.bincount(data.labels[mine], minlength=2))
        assert group.log_loss == pytest.approx(
            sklearn.log_loss(data.labels[mine], probability[mine]), abs=1e-10
        )
        assert group.selection_rate == pytest.approx(predicted[mine].mean(), abs=EXACT)
        assert group.true_positive_rate == pytest.approx(
            predicted[mine & (data.labels == 1)].mean(), abs=EXACT
        )
        assert group.false_positive_rate == pytest.approx(
            predicted[mine & (data.labels == 0)].mean(), abs=EXACT
        )


def test_multi_class_table_averages_over_classes() -> None:
    data = records(3)
    table = assess(signals(data), CELLS, axis=0)
    scores = binned(data.logits[0])
    aucs = [sklearn.roc_auc_score(data.labels == c, scores[:, c]) for c in range(3)]
    assert table.auc == pytest.approx(np.mean(aucs), abs=EXACT)
    fair = {"sensitive_features": data.sex}
    differences = [
        fairlearn.demographic_parity_difference(data.labels == c, scores[:, c] > 0.5, **fair)
        for c in range(3)
    ]
    assert table.dpd == pytest.approx(np.mean(differences), abs=EXACT)
    odds = [
        fairlearn.equalized_odds_difference(data.labels == c, scores[:, c] > 0.5, **fair) for c in range(3)
    ]
    assert table.deodds == pytest.approx(np.mean(odds), abs=EXACT)
    assert math.isnan(table.accuracy)


UNKNOWN_AGE = np.array([True, True, False])


@pytest.mark.parametrize("classes", [2, 3])
def test_unknown_groups_count_in_what_is_over_all_records_and_are_compared_with_none(classes: int) -> None:
    data = records(classes)
    table = assess(signals(data), CELLS, 1, known=UNKNOWN_AGE)
    scores, old = binned(data.logits[0]), data.age < 2
    scored = (1,) if classes == 2 else range(classes)

    def auc(rows: NDArray[np.bool_]) -> float:
        return float(
            np.mean([sklearn.roc_auc_score(data.labels[rows] == c, scores[rows, c]) for c in scored])
        )

    overall, by_group = auc(data.age >= 0), [auc(data.age == g) for g in range(3)]
    assert table.auc == pytest.approx(overall, abs=EXACT)
    assert [group.auc for group in table.groups] == pytest.approx(by_group, abs=EXACT)
    apart = sum(abs(value - overall) for value in by_group[:2])
    assert table.es_auc == pytest.approx(overall / (1 + apart), abs=EXACT)
    assert table.worst_group_auc == pytest.approx(min(by_group[:2]), abs=EXACT)
    assert table.worst_group == np.argmin(by_group[:2])
    fair = {"sensitive_features": data.age[old]}
    for found, metric in (
        (table.dpd, fairlearn.demographic_parity_difference),
        (table.deodds, fairlearn.equalized_odds_difference),
    ):
        each = [metric(data.labels[old] == c, scores[old, c] > 0.5, **fair) for c in scored]
        assert found == pytest.approx(np.mean(each), abs=EXACT)
    alike = assess(signals(data), CELLS, 1)
    assert (table.auc, table.accuracy, table.log_loss) == (
        alike.auc,
        pytest.approx(alike.accuracy, nan_ok=True, abs=0),
        alike.log_loss,
    )
    assert (table.groups, table.unimodal_auc) == (alike.groups, alike.unimodal_auc)
    # The worst of all is not the worst of those that are compared, in one of the two orders.
    worst = int(np.argmin(by_group))
    assert assess(signals(data), CELLS, 1, known=np.arange(3) != worst).worst_group != worst


def test_of_fewer_than_two_known_groups_no_difference_is_estimable() -> None:
    one, none = (
        assess(signals(records(2)), CELLS, 0, known=np.array(k)) for k in ([True, False], [False] * 2)
    )
    assert math.isnan(one.dpd)
    assert math.isnan(one.deodds)
    assert (one.worst_group, one.worst_group_auc) == (0, one.groups[0].auc)
    for value in (none.es_auc, none.dpd, none.deodds, none.worst_group_auc):
        assert math.isnan(value)
    assert none.worst_group is None
    assert none.auc == one.auc
    assert not math.isnan(none.groups[1].auc)


def test_all_groups_known_is_the_table_without_a_mask() -> None:
    some = signals(records(2))
    assert assess(some, CELLS, 1, known=np.ones(3, bool)) == assess(some, CELLS, 1)


def test_small_groups_are_not_estimable_and_counted() -> None:
    data = records(2)
    rare = np.flatnonzero((data.age == 0) & (data.labels == 1))[4:]
    kept = np.setdiff1d(np.arange(len(data.labels)), rare)
    few = Records(
        data.labels[kept], data.sex[kept], data.age[kept], [x[kept] for x in data.logits], data.present[kept]
    )
    table = assess(signals(few), CELLS, axis=1, min_count=10)
    assert math.isnan(table.groups[0].auc)
    assert math.isnan(table.groups[0].true_positive_rate)
    assert table.groups[0].counts[1] == 4
    known = [group.auc for group in table.groups[1:]]
    assert table.worst_group_auc == min(known)
    assert table.es_auc == pytest.approx(table.auc / (1 + sum(abs(a - table.auc) for a in known)), abs=EXACT)


def test_no_records_give_no_numbers() -> None:
    some = signals(records(2))
    empty = Signals(*(np.zeros_like(x) for x in (some.counts, some.losses, some.histograms)))
    plain = assess(empty, CELLS, axis=0).to_dict(("image", "table"), ("female", "male"))
    assert plain["auc"] is plain["es_auc"] is plain["worst_group"] is plain["accuracy"] is None
    assert plain["group_auc"] == {"female": None, "male": None}
    assert plain["group_counts"] == {"female": [0, 0], "male": [0, 0]}


def test_plain_values_are_named_and_survive_json() -> None:
    table = assess(signals(records(2)), CELLS, axis=0)
    plain = table.to_dict(("image", "table"), ("female", "male"))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["auc"] == table.auc
    assert plain["worst_group"] == ("female", "male")[table.worst_group or 0]
    assert plain["group_auc"] == {"female": table.groups[0].auc, "male": table.groups[1].auc}
    assert plain["unimodal_auc"] == dict(zip(("image", "table"), table.unimodal_auc, strict=True))
    assert plain["group_unimodal_auc"]["male"]["table"] == table.groups[1].unimodal_auc[1]
    assert all(isinstance(n, int) for n in plain["group_counts"]["male"])


def test_json_safe() -> None:
    assert (json_safe(math.nan), json_safe(3.0), json_safe(0.25)) == (None, 3, 0.25)


def noised(exact: Signals, sd: float, loss_sd: float, rng: np.random.Generator) -> Signals:
    """Return signals as a release leaves them: noise in every cell, counts from the cells."""
    histograms = exact.histograms + sd * rng.normal(size=exact.histograms.shape)
    totals = histograms.sum(-1)
    counts = totals[:, :, 0] if totals.shape[2] == 1 else totals[:, :, :, 1]
    losses = exact.losses + loss_sd * rng.normal(size=exact.losses.shape)
    return Signals(counts, losses, histograms, variance=Variance(sd**2, loss_sd**2, 1.0))


def test_noise_of_a_marginal_is_that_of_all_its_cells() -> None:
    rng, exact = np.random.default_rng(0), signals(records(2, n=50))
    sums = np.stack(
        [marginal(noised(exact, 2.0, 3.0, rng), CELLS, 0).histograms[0].ravel() for _ in range(400)]
    )
    losses = np.stack([marginal(noised(exact, 2.0, 3.0, rng), CELLS, 0).losses.ravel() for _ in range(4000)])
    variance = marginal(noised(exact, 2.0, 3.0, rng), CELLS, 0).variance
    assert variance == Variance(3 * 4.0, 3 * 9.0, 1.0)
    # 2 x 2 x 64 cells of 400 draws, and 6 of 4000: relative sd of a variance below sqrt(2 / 24000) = 1 %.
    assert sums.var(0).mean() == pytest.approx(variance.histograms, rel=0.04)
    assert losses.var(0).mean() == pytest.approx(variance.losses, rel=0.04)


def coarse(exact: Signals, factor: int) -> Signals:
    """Return the signals of `factor` times as many records, in 8 bins."""
    bins = exact.histograms.reshape(*exact.histograms.shape[:-1], 8, -1).sum(-1)
    return Signals(factor * exact.counts, factor * exact.losses, factor * bins)


@pytest.mark.parametrize("classes", [2, 3])
def test_released_metrics_are_near_or_not_estimable(classes: int) -> None:
    rng, exact = np.random.default_rng(0), coarse(signals(records(classes)), 3 * classes)
    truth = assess(exact, CELLS, 1)
    draws = [assess(noised(exact, 3.0, 3.0, rng), CELLS, 1) for _ in range(300)]
    for value, expected, limit in (
        ([t.auc for t in draws], truth.auc, 0.06),
        ([t.groups[0].auc for t in draws], truth.groups[0].auc, 0.06),
        ([t.unimodal_auc[1] for t in draws], truth.unimodal_auc[1], 0.06),
        ([t.groups[1].true_positive_rate for t in draws], truth.groups[1].true_positive_rate, 0.05),
        ([t.groups[1].selection_rate for t in draws], truth.groups[1].selection_rate, 0.05),
        ([t.groups[2].log_loss for t in draws], truth.groups[2].log_loss, 0.05),
    ):
        known = np.array([x for x in value if not math.isnan(x)])
        assert known.size > 150
        # Shown only with a noise sd up to the limit: five of these; a mean of 150 is 0.41 of one off (5 sd).
        assert np.abs(known - expected).max() <= 5 * limit
        assert abs(known.mean() - expected) <= 0.41 * limit


@pytest.mark.parametrize("classes", [2, 3])
def test_predicted_noise_is_the_noise(classes: int) -> None:
    rng, exact = np.random.default_rng(0), coarse(signals(records(classes)), 10)
    draws = [assess(noised(exact, 3.0, 3.0, rng), CELLS, 1).groups[1] for _ in range(2000)]
    predicted = assess(replace(exact, variance=Variance(9.0, 9.0)), CELLS, 1).groups[1]
    assert predicted.count_sd == pytest.approx(3.0 * math.sqrt(8 * 2))
    # The relative sd of a standard deviation of 2000 draws is 1.6 %; 2nd-order terms in sd / n are 5 %.
    assert np.std([g.auc for g in draws]) == pytest.approx(predicted.auc_sd, rel=0.07)
    assert np.std([g.counts[1] for g in draws]) == pytest.approx(predicted.count_sd, rel=0.07)


def test_noise_alone_tells_nothing_and_nothing_impossible() -> None:
    rng, exact = np.random.default_rng(0), coarse(signals(records(2, n=60)), 1)
    shown = 0
    for _ in range(200):
        table = assess(noised(exact, 6.0, 6.0, rng), CELLS, 1)
        values = [table.auc, table.es_auc, table.dpd, table.deodds, table.worst_group_auc, table.accuracy]
        for g in table.groups:
            rates = (g.selection_rate, g.true_positive_rate, g.false_positive_rate)
            values += [g.auc, *rates, *g.unimodal_auc]
        assert all(math.isnan(v) or 0 <= v <= 1 for v in values)
        losses = [table.log_loss, *(g.log_loss for g in table.groups)]
        assert all(math.isnan(v) or v >= 0 for v in losses)
        shown += sum(not math.isnan(g.auc) for g in table.groups)
    # About 10 records a class under noise of 6 sqrt(2 * 8) = 24: a total looks like twice its noise in one of
    # twenty draws, but an sd of 0.06 asks for several times that.
    assert shown == 0


def test_released_table_carries_its_noise_and_an_exact_one_has_none() -> None:
    exact = coarse(signals(records(2)), 10)
    assert not {"group_auc_sd", "group_count_sd"} & assess(exact, CELLS, 0).to_dict("ab", "xy").keys()
    plain = assess(replace(exact, variance=Variance(9.0, 9.0)), CELLS, 0).to_dict("ab", "xy")
    assert plain["group_count_sd"] == {name: pytest.approx(3 * math.sqrt(8 * 3)) for name in "xy"}
    assert 0 < plain["group_auc_sd"]["x"] < 0.06
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_noise_of_zero_changes_nothing() -> None:
    exact = signals(records(3))
    assert assess(replace(exact, variance=Variance(0.0, 0.0)), CELLS, 0) == replace(
        assess(exact, CELLS, 0), accuracy=pytest.approx(math.nan, nan_ok=True)
    )


@pytest.mark.parametrize("limit", ["auc", "rate", "loss"])
def test_limits_of_noise_are_where_they_are_said_to_be(limit: str) -> None:
    exact = coarse(signals(records(2)), 10)
    at, key, most = {
        "auc": (lambda v: Variance(v, 0.0), "auc", 0.06),
        "rate": (lambda v: Variance(v, 0.0), "selection_rate", 0.05),
        "loss": (lambda v: Variance(0.0, v), "log_loss", 0.05),
    }[limit]

    def predicted(variance: float) -> float:
        group = marginal(exact, CELLS, 0)
        if limit == "auc":
            return assess(replace(exact, variance=at(1.0)), CELLS, 0).groups[0].auc_sd * math.sqrt(variance)
        if limit == "loss":
            return math.sqrt(3 * variance) / group.counts[0, 0].sum()
        # r = a / (a + b) by its partial derivatives; half of the 16 cells, of 3 groups each, are in a.
        total, cell = float(group.counts[0, 0].sum()), 3 * variance
        above = group.histograms[0, 0, 0, :, 4:].sum()
        return math.sqrt(8 * cell * ((total - above) ** 2 + above**2)) / total**2

    edge = (most / predicted(1.0)) ** 2
    below, above = (
        getattr(assess(replace(exact, variance=at(f * edge)), CELLS, 0).groups[0], key) for f in (0.98, 1.02)
    )
    assert not math.isnan(below)
    assert math.isnan(above)


def test_total_that_is_lost_in_noise_gives_no_auc_and_no_auc_leaves_its_range() -> None:
    # 128 bins of noise 1 under a total: sd sqrt(128) = 11.3, so 22.6 are asked for. All members are above all
    # others, where an AUC hardly moves (sd 0.5 / 22): without that rule it would be shown.
    histogram = np.zeros((1, 2, 128))
    histogram[0, 0, 0] = 1000
    for members, expected in ((22.0, math.nan), (23.0, 1.0)):
        histogram[0, 1, 100] = members
        assert float(resolved_auc(histogram, 1, 1.0)) == pytest.approx(expected, nan_ok=True)
    histogram[0, 1, 0] = -5.0  # noise: the AUC of these cells is (102 - 2.5) / 97
    histogram[0, 1, 100] = 102.0
    assert float(resolved_auc(histogram, 1, 1.0)) == 1.0
