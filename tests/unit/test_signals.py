"""Signals are sums over records: merged equals pooled, in any order, and what cannot be a sum is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from fedfair.batch import MultimodalBatch
from fedfair.errors import InconsistentUpdates, ShapeError
from fedfair.measure import measure
from fedfair.metrics import auc
from fedfair.signals import Signals, head_signals, score_bins
from tests.oracles.cohort import BINS, GROUPS, cohort, partition, small_model

Record = tuple[tuple[float, ...], int, int]


def one_head(records: list[Record], classes: int, bins: int = 4) -> Signals:
    """Return the signals of a single head that scored `records` (logits, label, group)."""
    logits = torch.tensor([r[0] for r in records], dtype=torch.float64).reshape(-1, classes)
    labels, groups = (torch.tensor([r[i] for r in records], dtype=torch.int64) for i in (1, 2))
    counts, losses, histograms = head_signals(logits, labels, groups, GROUPS, bins)
    return Signals(counts[None], losses[None], histograms[None])


def assert_same(one: Signals, other: Signals) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.histograms, other.histograms)
    # Sums of at most a hundred losses of order ten, taken in another order.
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-12, atol=1e-12)
    assert (one.head_gradients is None) == (other.head_gradients is None)
    if one.head_gradients is not None:
        np.testing.assert_allclose(one.head_gradients, other.head_gradients, rtol=1e-12, atol=1e-12)


def records(classes: int) -> st.SearchStrategy[list[Record]]:
    logits = st.tuples(*[st.floats(-8, 8) for _ in range(classes)])
    return st.lists(st.tuples(logits, st.integers(0, classes - 1), st.integers(0, GROUPS - 1)), max_size=12)


three_sites = st.integers(2, 3).flatmap(
    lambda classes: st.tuples(st.just(classes), *[records(classes) for _ in range(3)])
)


@given(three_sites)
def test_addition_is_associative_commutative_and_pools(
    drawn: tuple[int, list[Record], list[Record], list[Record]],
) -> None:
    classes, *sites = drawn
    a, b, c = (one_head(site, classes) for site in sites)
    assert_same((a + b) + c, a + (b + c))
    assert_same(a + b, b + a)
    assert_same(a + b + c, one_head([record for site in sites for record in site], classes))


@pytest.mark.parametrize("sites", [2, 5, 12])
@pytest.mark.parametrize("classes", [2, 3])
def test_sites_of_a_model_add_up_to_the_pooled_records(classes: int, sites: int) -> None:
    model, batch = small_model(classes), cohort(classes=classes)
    parts = [measure(model, part, GROUPS, BINS, 7, True) for part in partition(batch, sites)]
    total = parts[0]
    for part in parts[1:]:
        part.check("a site")
        total = total + part
    assert_same(total, measure(model, batch, GROUPS, BINS, 512, True))


def outputs(batch: MultimodalBatch, classes: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of a head's records and the mask of them."""
    model = small_model(classes)
    with torch.no_grad():
        embeddings = model.encode(batch)
        every = [model.fusion(embeddings, batch.present), *model.unimodal(embeddings)]
    has = np.ones(len(batch), bool) if head == 0 else batch.present[:, head - 1].numpy()
    return torch.softmax(every[head].logits, 1).numpy(), has


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("classes", [2, 3])
def test_every_entry_equals_a_loop_over_records(classes: int, head: int) -> None:
    batch = cohort(classes=classes)
    signals = measure(small_model(classes), batch, GROUPS, BINS, 512)
    probability, has = outputs(batch, classes, head)
    labels, groups = batch.labels.numpy(), batch.groups.numpy()
    scored = [1] if classes == 2 else list(range(classes))
    histograms = np.zeros((GROUPS, len(scored), 2, BINS))
    for i in np.flatnonzero(has):
        for t, c in enumerate(scored):
            histograms[groups[i], t, int(labels[i] == c), int(probability[i, c] * BINS)] += 1
    np.testing.assert_array_equal(signals.histograms[head], histograms)
    for g in range(GROUPS):
        rows = has & (groups == g)
        expected = np.bincount(labels[rows], minlength=classes)
        np.testing.assert_array_equal(signals.counts[head, g], expected)
        loss = log_loss(labels[rows], probability[rows], labels=range(classes), normalize=False)
        # A sum of a few dozen logarithms.
        assert signals.losses[head, g] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("sites", [1, 2, 5, 12])
@pytest.mark.parametrize("head", range(4))
def test_pooled_histogram_auc_is_that_of_the_pooled_binned_scores(head: int, sites: int) -> None:
    batch = cohort()
    pooled = sum(
        measure(small_model(), part, GROUPS, BINS, 512).histograms for part in partition(batch, sites)
    )
    probability, has = outputs(batch, 2, head)
    binned = np.floor(probability[:, 1] * BINS)
    labels, groups = batch.labels.numpy(), batch.groups.numpy()
    # Both are ratios of integers, formed in another order.
    everyone = roc_auc_score(labels[has], binned[has])
    assert auc(pooled[head].sum(0))[0] == pytest.approx(everyone, abs=1e-12)
    for g in range(GROUPS):
        rows = has & (groups == g)
        assert auc(pooled[head, g])[0] == pytest.approx(roc_auc_score(labels[rows], binned[rows]), abs=1e-12)


def test_head_gradients_are_those_of_the_summed_losses() -> None:
    model, batch = small_model(3), cohort(classes=3)
    signals = measure(model, batch, GROUPS, BINS, 10, head_gradients=True)
    embeddings = model.encode(batch)
    every = [model.fusion(embeddings, batch.present), *model.unimodal(embeddings)]
    has = [torch.ones(len(batch), dtype=torch.bool), *batch.present.unbind(1)]
    layers = [model.fusion.classifier, *(model.heads[name].classifier for name in model.modalities)]
    for h, layer in enumerate(layers):
        logits, labels = every[h].logits[has[h]], batch.labels[has[h]]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], retain_graph=True)
        expected = torch.cat([weight, bias[:, None]], 1).numpy()
        # Sums over a hundred records in another order.
        np.testing.assert_allclose(signals.head_gradients[h], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("score", "bin_index"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.5, 2), (1.0, 3)])
def test_bins_divide_the_unit_interval_evenly(score: float, bin_index: int) -> None:
    assert score_bins(torch.tensor([score], dtype=torch.float64), 4).tolist() == [bin_index]


def test_no_record_gives_zeros() -> None:
    empty = measure(small_model(), cohort().select(torch.arange(0)), GROUPS, BINS, 512, True)
    empty.check("a site without records")
    assert not any(value.any() for value in (empty.counts, empty.losses, empty.histograms))
    full = measure(small_model(), cohort(), GROUPS, BINS, 512, True)
    assert_same(empty + full, full)


def valid() -> Signals:
    return measure(small_model(), cohort(), GROUPS, BINS, 512, True)


def poke(name: str, value: float) -> Callable[[Signals], Signals]:
    def change(signals: Signals) -> Signals:
        array = getattr(signals, name).copy()
        array.flat[-1] = value
        return replace(signals, **{name: array})

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        *[(poke(name, bad), name) for name in ("counts", "losses", "histograms", "head_gradients")
          for bad in (np.nan, np.inf)],
        (poke("counts", -1.0), "counts"),
        (poke("histograms", -1.0), "counts"),
        (poke("counts", 1e3), "histograms"),
        (poke("histograms", 1e3), "histograms"),
    ],
)  # fmt: skip
def test_check_refuses_what_is_not_a_sum_over_records(
    change: Callable[[Signals], Signals], word: str
) -> None:
    valid().check("site A")
    with pytest.raises(InconsistentUpdates, match=f"`{word}` of site A"):
        change(valid()).check("site A")


@pytest.mark.parametrize("name", ["counts", "histograms"])
def test_check_refuses_arrays_of_another_number_of_heads(name: str) -> None:
    with pytest.raises(InconsistentUpdates, match="`histograms` of site A"):
        replace(valid(), **{name: getattr(valid(), name)[:2]}).check("site A")


def test_check_refuses_a_record_moved_to_the_other_class() -> None:
    signals = valid()
    moved = signals.histograms.copy()
    moved[0, 0, 0] = moved[0, 0, 0, ::-1]
    with pytest.raises(InconsistentUpdates, match="`histograms` of site A"):
        replace(signals, histograms=moved).check("site A")


@pytest.mark.parametrize("name", ["counts", "losses", "histograms", "head_gradients"])
def test_addition_refuses_another_shape(name: str) -> None:
    # One entry along the first axis would broadcast without a word.
    other = replace(valid(), **{name: getattr(valid(), name)[:1]})
    with pytest.raises(InconsistentUpdates, match="shape"):
        valid() + other


def test_addition_refuses_head_gradients_of_one_side_only() -> None:
    with pytest.raises(InconsistentUpdates, match="head_gradients"):
        valid() + replace(valid(), head_gradients=None)


def test_logits_must_be_one_row_per_record() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    for shape in [(2, 2), (3,)]:
        with pytest.raises(ShapeError, match="logits"):
            head_signals(torch.zeros(shape), labels, labels, 1, 4)


def test_axes_are_named() -> None:
    assert (valid().num_heads, valid().num_groups, valid().num_classes) == (4, GROUPS, 2)
