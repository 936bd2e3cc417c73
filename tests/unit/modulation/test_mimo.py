"""MIMO's weights are a softmax of pooled losses, and its step is the gradient of the smoothed objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedfair.modulation import Mimo
from tests.oracles.cohort import cohort, federate, parameters, partition, small_model
from tests.unit.modulation.cases import site_signals

RATE = 0.3


@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_weights_are_torch_s_softmax_of_the_mean_losses(penalty: float, mu: float) -> None:
    signals = site_signals(1)
    result = Mimo(penalty, mu).modulate(signals, {})
    mean = torch.as_tensor(signals.losses[1:].sum(1) / signals.counts[1:].sum((1, 2)))
    expected = penalty * torch.softmax(mean / mu, 0).numpy()
    # Temperatures of 0.01 multiply the rounding of the losses by a hundred.
    np.testing.assert_allclose(result.coefficients.unimodal, np.tile(expected[:, None], 3), rtol=1e-11)
    assert (result.coefficients.fused == 1).all()
    np.testing.assert_allclose(result.diagnostics["unimodal_loss"], mean)


def test_a_high_temperature_weighs_all_alike_and_a_low_one_the_worst_alone() -> None:
    signals = site_signals(1)
    worst = int(np.argmax(signals.losses[1:].sum(1) / signals.counts[1:].sum((1, 2))))
    alike = Mimo(penalty=0.9, mu=np.inf).modulate(signals, {}).coefficients.unimodal
    np.testing.assert_allclose(alike, 0.3, rtol=1e-12)
    alone = Mimo(penalty=0.9, mu=1e-6).modulate(signals, {}).coefficients.unimodal
    np.testing.assert_allclose(alone, 0.9 * np.eye(3)[worst][:, None] * np.ones(3), atol=1e-12)


def test_a_modality_that_no_record_has_gets_no_weight() -> None:
    unimodal = Mimo().modulate(site_signals(1, without=[1]), {}).coefficients.unimodal
    assert (unimodal[1] == 0).all()
    np.testing.assert_allclose(unimodal.sum(0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("sites", [1, 4])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_round_is_a_step_on_the_smoothed_objective(classes: int, sites: int) -> None:
    """Phi = f_0 + lambda mu log sum_m exp(f_m / mu), differentiated as it stands, on complete records."""
    method, batch = Mimo(penalty=1.5, mu=0.05), cohort(classes=classes, complete=True)
    model = small_model(classes)
    embeddings = model.encode(batch)
    fused = cross_entropy(model.fusion(embeddings, batch.present).logits, batch.labels)
    unimodal = torch.stack([cross_entropy(s.logits, batch.labels) for s in model.unimodal(embeddings)])
    objective = fused + method.penalty * method.mu * torch.logsumexp(unimodal / method.mu, 0)
    names, owned = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(objective, owned, materialize_grads=True)
    before = parameters(model)
    (after,) = federate(small_model(classes), partition(batch, sites), method, 1, RATE)
    for name, gradient in zip(names, gradients, strict=True):
        # One step; sums over a hundred records in another order.
        torch.testing.assert_close(after[name], before[name] - RATE * gradient, rtol=0, atol=1e-12)


def test_the_mean_of_the_sites_own_softmaxes_is_another_weight() -> None:
    """Why the weights are chosen at the server: this is what local weights would average to."""
    sites = [site_signals(1), site_signals(9)]
    method = Mimo(mu=0.1)
    pooled = method.modulate(sites[0] + sites[1], {}).coefficients.unimodal
    local = np.mean([method.modulate(site, {}).coefficients.unimodal for site in sites], axis=0)
    assert np.abs(pooled - local).max() > 1e-3
