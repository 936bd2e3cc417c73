"""Every limit of dual-level MIMO: FedAvg, MIMO, TERM over groups, the worst (modality, group)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.modulation import DualMimo, Mimo
from fedfair.modulation._dual_mimo import relative_losses, shrink
from fedfair.signals import Array, Signals
from tests.oracles.cohort import GROUPS, cohort, federate, parameters, partition, small_model
from tests.unit.modulation.cases import site_signals

# No clamp, no cap, no shrinkage: the tilted risks as they are written.
PLAIN = DualMimo(
    penalty=1.0, mu=0.2, shrinkage=0.0, coefficient_min=1e-3, coefficient_max=np.inf, unimodal_max=np.inf
)
RATE = 0.3


def relative(signals: Signals) -> Array:
    """Return r [H, G], one number at a time."""
    result = np.zeros(signals.losses.shape)
    for (h, g), loss in np.ndenumerate(signals.losses):
        p = signals.counts[h, g] / signals.counts[h, g].sum()
        result[h, g] = loss / signals.counts[h, g].sum() / -(p * np.log(p)).sum()
    return result


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_relative_loss_is_one_at_the_base_rate(classes: int) -> None:
    signals = site_signals(1, classes=classes)
    np.testing.assert_allclose(relative_losses(signals), relative(signals), rtol=1e-12)
    p = signals.counts / signals.counts.sum(-1, keepdims=True)
    uninformed = replace(signals, losses=-(signals.counts * np.log(p)).sum(-1))
    np.testing.assert_allclose(relative_losses(uninformed), 1.0, rtol=1e-12)


def test_coefficients_are_the_derivative_of_the_tilted_risks() -> None:
    """dR/dr_g = v_g for the fused loss and dR/dr_mg = w_mg for the unimodal ones, by autograd."""
    signals = site_signals(1)
    coefficients = PLAIN.modulate(signals, {}).coefficients
    r = torch.tensor(relative(signals), requires_grad=True)
    share = torch.as_tensor(signals.counts.sum(-1) / signals.counts.sum((1, 2))[:, None])
    fused = PLAIN.mu * torch.logsumexp(torch.log(share[0]) + r[0] / PLAIN.mu, 0)
    unimodal = PLAIN.mu * torch.logsumexp((torch.log(share[1:] / 3) + r[1:] / PLAIN.mu).reshape(-1), 0)
    ratio = torch.autograd.grad(fused + unimodal, r)[0] / share
    # A temperature of 0.2 divides rounding errors of 1e-16.
    np.testing.assert_allclose(coefficients.fused, np.tile(ratio[0], (4, 1)), rtol=1e-12)
    np.testing.assert_allclose(coefficients.unimodal, ratio[1:], rtol=1e-12)


def test_shrinkage_moves_a_group_of_kappa_records_half_way() -> None:
    r, counts = np.array([[0.5, 1.0, np.nan]]), np.array([[100.0, 300.0, 50.0]])
    mean = 0.25 * 0.5 + 0.75 * 1.0
    expected = [[(0.5 + mean) / 2, mean + 0.75 * (1.0 - mean), np.nan]]
    np.testing.assert_allclose(shrink(r, counts, 100.0), expected, rtol=1e-12)
    np.testing.assert_array_equal(shrink(r, counts, 0.0), r)
    far = shrink(r, counts, 1e12)
    np.testing.assert_allclose(far[0, :2], mean, rtol=1e-8)


def test_shrinkage_calms_the_coefficients_of_small_groups() -> None:
    signals = site_signals(1)
    loose = replace(PLAIN, shrinkage=1.0).modulate(signals, {}).coefficients.fused[0]
    tight = replace(PLAIN, shrinkage=1e6).modulate(signals, {}).coefficients.fused[0]
    assert np.ptp(loose) > 0.3
    # Shrunk to about n / kappa = 2e-4 of the gap, over a temperature of 0.2.
    assert np.ptp(tight) < 1e-2


def test_clamps_and_cap_hold() -> None:
    method = DualMimo(mu=0.01, shrinkage=0.0, coefficient_min=0.8, coefficient_max=1.1, unimodal_max=0.9)
    coefficients = method.modulate(site_signals(1), {}).coefficients
    assert (coefficients.fused.min(), coefficients.fused.max()) == (0.8, 1.1)
    assert coefficients.unimodal.max() == pytest.approx(0.9)


def test_one_group_is_mimo_on_relative_losses() -> None:
    signals = site_signals(1, groups=1)
    r = relative(signals)
    same = replace(signals, losses=r * signals.counts.sum(-1))
    for mu in (0.05, 0.5):
        dual = replace(PLAIN, mu=mu, penalty=0.7).modulate(signals, {}).coefficients
        mimo = Mimo(penalty=0.7, mu=mu).modulate(same, {}).coefficients
        np.testing.assert_allclose(dual.unimodal, mimo.unimodal, rtol=1e-12)
        np.testing.assert_allclose(dual.fused, mimo.fused, rtol=1e-12)


def test_a_low_temperature_leaves_the_worst_modality_and_group() -> None:
    signals = site_signals(1)
    r = relative(signals)
    share = signals.counts.sum(-1) / signals.counts.sum((1, 2))[:, None]
    coefficients = replace(PLAIN, mu=1e-6).modulate(signals, {}).coefficients
    worst = int(np.argmax(r[0]))
    expected = np.full(GROUPS, PLAIN.coefficient_min)
    expected[worst] = 1 / share[0, worst]
    np.testing.assert_allclose(coefficients.fused, np.tile(expected, (4, 1)), rtol=1e-9)
    m, g = np.unravel_index(np.argmax(r[1:]), (3, GROUPS))
    expected = np.zeros((3, GROUPS))
    expected[m, g] = 1 / share[m + 1, g]
    np.testing.assert_allclose(coefficients.unimodal, expected, rtol=1e-9)


def equal_prevalence() -> MultimodalBatch:
    """Return complete records in which all groups, of unequal size, have the same prevalence of one half."""
    batch = cohort(records=160, complete=True)
    keep = []
    for g, size in enumerate((24, 16, 8)):
        for label in (0, 1):
            rows = torch.nonzero((batch.groups == g) & (batch.labels == label))[:, 0]
            assert len(rows) >= size
            keep.append(rows[:size])
    return batch.select(torch.cat(keep))


@pytest.mark.parametrize("sites", [1, 4])
def test_without_unimodal_losses_a_round_is_a_step_on_term_over_groups(sites: int) -> None:
    """mu log sum_g pi_g exp(f_g / mu) by autograd; at equal prevalence r_g = f_g / H, so mu counts in H."""
    batch, method = equal_prevalence(), replace(PLAIN, penalty=0.0)
    scale = method.mu * np.log(2)
    model = small_model()
    losses = cross_entropy(model(batch), batch.labels, reduction="none")
    group = torch.stack([losses[batch.groups == g].mean() for g in range(GROUPS)])
    share = torch.bincount(batch.groups) / torch.tensor(float(len(batch)), dtype=torch.float64)
    risk = scale * torch.logsumexp(torch.log(share) + group / scale, 0)
    names, owned = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(risk, owned, materialize_grads=True)
    before = parameters(model)
    (after,) = federate(small_model(), partition(batch, sites), method, 1, RATE)
    assert max(float(g.abs().max()) for g in gradients) > 1e-2
    for name, gradient in zip(names, gradients, strict=True):
        # One step; sums over a hundred records in another order, a temperature of 0.1.
        torch.testing.assert_close(after[name], before[name] - RATE * gradient, rtol=0, atol=1e-10)
