from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fairlearn import metrics as fairlearn
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from fedfair.assessment import assess, json_safe, marginal
from fedfair.errors import ShapeError
from fedfair.signals import Signals, head_signals

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
