"""What a method sees of unknown groups, and what its answer means for them: small arrays, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedfair.batch import MultimodalBatch
from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.masking import expanded, of_known
from fedfair.modulation import Modulation
from fedfair.signals import Signals, Variance, bin_logits
from fedfair.terms import PairWeights

KNOWN = np.array([True, False, True])
FUSED = np.array([[2.0, 0.5], [1.5, 0.75], [0.25, 4.0]])
UNIMODAL = np.array([[1.0, 3.0], [0.0, 2.0]])
# Records of the heads fused, m = 1, m = 2 in three groups and two classes.
COUNTS = np.array(
    [[[5, 5], [7, 2], [20, 10]], [[4, 2], [9, 9], [10, 8]], [[0, 0], [3, 0], [0, 0]]], dtype=float
)
RNG = np.random.default_rng(0)
TERM = FairnessTerm(RNG.normal(size=(2, 2)), RNG.integers(1, 9, (2, 2, 1, 2, 8)).astype(float), 0.7)


def signals(variance: Variance | None = None) -> Signals:
    histograms = RNG.random((3, 3, 1, 2, 4))
    return Signals(COUNTS, RNG.random((3, 3)), histograms, RNG.random((3, 2, 5)), variance)


def answer(terms: LossTerms = LossTerms()) -> Modulation:  # noqa: B008, frozen
    return Modulation(Coefficients(FUSED, UNIMODAL, True), terms, {"rounds": np.ones(1)}, {"x": np.ones(2)})


def test_a_method_sees_the_known_groups_alone() -> None:
    whole = signals(Variance(1.0, 2.0, 3.0))
    shown = of_known(whole, KNOWN)
    for name in ("counts", "losses", "histograms"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(whole, name)[:, [0, 2]])
    assert shown.head_gradients is whole.head_gradients
    assert shown.variance == whole.variance
    assert (shown.num_heads, shown.num_groups, shown.num_classes) == (3, 2, 2)


def test_where_all_are_known_nothing_is_made() -> None:
    whole, told = signals(), answer(LossTerms(fairness=TERM))
    assert of_known(whole, np.ones(3, bool)) is whole
    assert expanded(told, np.ones(2, bool), COUNTS[:, :2]) is told


def test_an_unknown_group_is_asked_for_nothing_but_what_holds_for_a_modality() -> None:
    told = answer()
    done = expanded(told, KNOWN, COUNTS)
    np.testing.assert_array_equal(done.coefficients.fused[:, KNOWN], FUSED)
    np.testing.assert_array_equal(done.coefficients.fused[:, 1], 1.0)
    np.testing.assert_array_equal(done.coefficients.unimodal[:, KNOWN], UNIMODAL)
    # m = 1: 6 records of the first group and 18 of the last; m = 2: nobody has it.
    np.testing.assert_allclose(done.coefficients.unimodal[:, 1], [(6 * 1 + 18 * 3) / 24, 1.0], rtol=1e-15)
    assert done.coefficients.live
    assert done.memory is told.memory
    assert done.diagnostics is told.diagnostics


def test_totals_that_noise_made_negative_count_nothing() -> None:
    noised = COUNTS.copy()
    noised[1, 2] = [-9.0, 3.0]
    assert expanded(answer(), KNOWN, noised).coefficients.unimodal[0, 1] == 1.0


def test_the_mean_of_neutral_coefficients_is_neutral() -> None:
    counts = np.random.default_rng(1).random((3, 6, 2)) * 1e3
    known = np.array([True, True, True, True, True, False])
    neutral = Coefficients.neutral(2, 5)
    done = expanded(Modulation(neutral), known, counts).coefficients
    assert (done.fused == 1.0).all()
    assert (done.unimodal == 1.0).all()


@pytest.mark.parametrize("direction", [None, np.ones((2, 5))])
def test_a_fairness_term_is_zero_there_and_a_direction_stays(direction: np.ndarray | None) -> None:
    done = expanded(answer(LossTerms(direction, TERM)), KNOWN, COUNTS).terms
    assert done.direction is direction
    assert done.fairness is not None
    assert not done.fairness.slopes[:, 1].any()
    assert not done.fairness.histograms[:, 1].any()
    np.testing.assert_array_equal(done.fairness.histograms[:, KNOWN], TERM.histograms)
    assert done.fairness.temperature == TERM.temperature
    assert expanded(answer(), KNOWN, COUNTS).terms.fairness is None


@pytest.mark.parametrize("classes", [2, 3])
def test_the_term_is_what_it_would_be_with_the_records_of_all_groups(classes: int) -> None:
    """Its law: divided by all records of a modality, the sum over records is the gradient of F_G."""
    rng, scored = np.random.default_rng(3), 1 if classes == 2 else classes
    labels = np.arange(60) % classes
    groups = np.repeat(np.arange(3), 20)
    histograms = np.zeros((1, 3, scored, 2, 8))
    for t in range(scored):
        member = (labels == (1 if classes == 2 else t)).astype(int)
        np.add.at(histograms[0, :, t], (groups, member, rng.integers(0, 8, 60)), 1)
    slopes = np.array([[0.4, 0.0, -0.7]])
    counts = np.stack([[np.bincount(labels[groups == g], minlength=classes) for g in range(3)]] * 2) * 1.0
    told = Modulation(
        Coefficients.neutral(1, 2),
        LossTerms(fairness=FairnessTerm(slopes[:, KNOWN], histograms[:, KNOWN], 0.7)),
    )
    masked = expanded(told, KNOWN, counts).terms.fairness
    assert masked is not None
    batch = MultimodalBatch(
        {"a": torch.zeros(60, 1)},
        torch.ones(60, 1, dtype=torch.bool),
        torch.as_tensor(labels),
        torch.as_tensor(groups),
    )
    gradients = []
    for term in (masked, FairnessTerm(slopes, histograms, 0.7)):
        logits = torch.as_tensor(np.random.default_rng(4).normal(size=(60, classes))).requires_grad_()
        PairWeights.build(term, torch.as_tensor(bin_logits(8))).loss(0, logits, batch).backward()
        assert logits.grad is not None
        assert not logits.grad[groups == 1].any()
        assert logits.grad[groups != 1].any(1).all()
        gradients.append(logits.grad)
    # The same products, a factor split in two.
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
