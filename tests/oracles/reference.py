"""The methods written a second time: pooled records, one process, formulas as the papers print them.

Nothing of fedfair is imported. Group weights enter a plain loss, the direction term is a double backward of
CGGM's equation (3), F_G an autograd over explicit pairs, and tilted risks give their weights by autograd.
Methods read their parameters from the object under test and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.oracles.pooled import (
    NAN,
    Array,
    View,
    capped,
    direction,
    gap_slopes,
    layer_gradient,
    look,
    macro,
    pairs,
)


@dataclass(frozen=True)
class Terms:
    """Loss terms for the next round: V, and the pairs of F_G with their slopes kappa [M][G]."""

    direction: Tensor | None = None
    slopes: Tensor | None = None
    view: View | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Answer:
    """K for the fused loss [M + 1][G] and for the unimodal losses [M][G], and what is remembered."""

    fused: Array
    unimodal: Array
    live: bool
    terms: Terms = Terms()
    memory: dict[str, Any] = field(default_factory=dict)


def average(before: float, now: float, decay: float) -> float:
    """Return the moving average; what was not estimated keeps its last value."""
    if np.isnan(now):
        return before
    return now if np.isnan(before) else decay * before + (1 - decay) * now


def balance_factors(method: Any, now: Array, old: Array, new: Array, errors: Array) -> Array:
    """Return B_m: `now` this round's AUCs, `old` and `new` their moving averages before and after."""
    result = np.ones(len(new))
    known = [m for m in range(len(new)) if not np.isnan(now[m] + old[m])]
    if len(known) < 2:
        return result
    change = {m: new[m] - old[m] for m in known}
    kinds: dict[str, Callable[[float], float]] = {
        "positive": lambda d: max(d, 0.0),
        "absolute": abs,
        "signed": lambda d: d,
    }
    progress = {m: kinds[method.progress](d) for m, d in change.items()}
    total = sum(progress.values())
    noise = (1 - method.decay) * np.sqrt(sum(2 * errors[m] ** 2 for m in known))
    rho = method.rho if method.rho else len(known) / (len(known) - 1)
    for m in known:
        neutral = (len(known) - 1) / len(known)
        quiet = total == 0 or (method.gate > 0 and not abs(total) > method.gate * noise)
        share = neutral if quiet else (total - progress[m]) / total
        result[m] = min(max(rho * share, method.balance_min), method.balance_max)
    return result


def group_factor(method: Any, value: float, mean: float, error: float) -> float:
    """Return f_mg."""
    if np.isnan(value) or (method.gate > 0 and not abs(mean - value) > method.gate * error):
        return 1.0
    factor = 1 + method.gamma * (mean - value) / method.tau
    return float(min(max(factor, method.group_factor_min), method.group_factor_max))


def multifair(view: View, memory: dict[str, Any], method: Any) -> Answer:
    """Return MultiFair's answer: eq. (20) and (21) of the specification, and the terms."""
    modalities, groups = len(view.heads) - 1, view.num_groups
    now = np.array([macro(view, h, None, 1) for h in view.heads[1:]])
    by_group = np.array(
        [[macro(view, h, g, method.group_min) for g in view.all_groups] for h in view.heads[1:]]
    )
    old = memory.get("auc", np.full(modalities, NAN))
    old_group = memory.get("group", np.full((modalities, groups), NAN))
    new = np.array([average(a, b, method.decay) for a, b in zip(old, now[:, 0], strict=True)])
    balance = balance_factors(method, now[:, 0], old, new, now[:, 1])
    new_group, factors = np.full((modalities, groups), NAN), np.ones((modalities, groups))
    for m, g in product(range(modalities), range(groups)):
        new_group[m, g] = average(old_group[m, g], by_group[m, g, 0], method.decay)
    for m in range(modalities):
        estimated = [a for a in new_group[m] if not np.isnan(a)]
        mean = sum(estimated) / max(len(estimated), 1)
        row = [group_factor(method, new_group[m, g], mean, by_group[m, g, 1]) for g in range(groups)]
        if method.form == "scalar":
            size = [view.members(m + 1, g).sum() for g in range(groups)]
            row = [sum(n * f for n, f in zip(size, row, strict=True)) / sum(size)] * groups
        factors[m] = row
    rounds = memory.get("rounds", 0) + 1
    state = {"auc": new, "group": new_group, "rounds": rounds}
    fused = np.ones((modalities + 1, groups))
    if rounds <= method.warmup:
        return Answer(fused, np.ones((modalities, groups)), False, memory=state)
    fused[1:] = balance[:, None] * factors
    terms = Terms(
        capped(method.direction * direction(view, balance), method.direction_max)
        if method.direction
        else None,
        method.fairness * gap_slopes(method, view) if method.fairness else None,
        view,
        method.temperature,
    )
    return Answer(fused, np.ones((modalities, groups)), False, terms, state)


def mean_loss(view: View, head: int, group: int | None = None) -> float:
    return float(view.losses[head][view.members(head, group)].mean())


def mimo(view: View, memory: dict[str, Any], method: Any) -> Answer:
    """Return MIMO's answer: w = softmax(f / mu)."""
    losses = torch.tensor([mean_loss(view, h) for h in view.heads[1:]], dtype=torch.float64)
    weights = torch.softmax(losses / method.mu, 0).numpy() * method.penalty
    fused = np.ones((len(view.heads), view.num_groups))
    return Answer(fused, np.repeat(weights[:, None], view.num_groups, 1), True, memory=memory)


def tilt(relative: Tensor, prior: Tensor, mu: float) -> Tensor:
    """Return d/dr mu log sum prior exp(r / mu), divided by the prior."""
    leaf = relative.clone().requires_grad_()
    risk = mu * torch.logsumexp(torch.log(prior) + leaf / mu, 0)
    return torch.autograd.grad(risk, leaf)[0] / prior


def dual_mimo(view: View, memory: dict[str, Any], method: Any) -> Answer:
    """Return dual-level MIMO's answer; every group must have records of two classes at every head."""
    groups, modalities = view.num_groups, len(view.heads) - 1
    relative, share = np.zeros((modalities + 1, groups)), np.zeros((modalities + 1, groups))
    for h in view.heads:
        size = np.array([view.members(h, g).sum() for g in view.all_groups])
        share[h] = size / size.sum()
        for g in view.all_groups:
            _, count = np.unique(view.labels[view.members(h, g)], return_counts=True)
            p = count / count.sum()
            relative[h, g] = mean_loss(view, h, g) / -(p * np.log(p)).sum()
        mean = (share[h] * relative[h]).sum()
        relative[h] = mean + size / (size + method.shrinkage) * (relative[h] - mean)
    one = tilt(torch.as_tensor(relative[0]), torch.as_tensor(share[0]), method.mu).numpy()
    prior = torch.as_tensor(share[1:]).reshape(-1) / modalities
    many = tilt(torch.as_tensor(relative[1:]).reshape(-1), prior, method.mu).numpy()
    many = many.reshape(modalities, groups)
    fused = np.minimum(np.maximum(one, method.coefficient_min), method.coefficient_max)
    unimodal = method.penalty * np.minimum(many / modalities, method.unimodal_max)
    return Answer(np.tile(fused, (modalities + 1, 1)), unimodal, True, memory=memory)


def fedavg(view: View, memory: dict[str, Any], method: Any) -> Answer:
    """Return ones."""
    del method
    shape = len(view.heads) - 1, view.num_groups
    return Answer(np.ones((shape[0] + 1, shape[1])), np.ones(shape), False, memory=memory)


RULES: dict[str, Callable[[View, dict[str, Any], Any], Answer]] = {
    "fedavg": fedavg,
    "multifair": multifair,
    "mimo": mimo,
    "dual_mimo": dual_mimo,
}


def descend(model: Any, batch: Any, answer: Answer, stale: Terms, rate: float) -> None:
    """Take one full-batch step of SGD; block m is normalised by the N_m records that have modality m."""
    embeddings = model.encode(batch)
    fused, unimodal = model.fusion(embeddings, batch.present), model.unimodal(embeddings)
    loss = cross_entropy(fused.logits, batch.labels, reduction="none")
    weight, own_weight = torch.as_tensor(answer.fused), torch.as_tensor(answer.unimodal)
    aligned = gap = torch.zeros((), dtype=loss.dtype)
    if stale.direction is not None:
        aligned = (layer_gradient(loss, model.fusion.classifier, graph=True) * stale.direction).sum()
    if stale.slopes is not None and stale.view is not None:
        for m, g in product(range(len(unimodal)), range(weight.shape[1])):
            if stale.slopes[m, g] != 0:
                auc = pairs(stale.view, m + 1, g, stale.temperature, unimodal[m].logits)
                gap = gap + stale.slopes[m, g] * auc
    objectives = [(model.fusion, (weight[0, batch.groups] * loss).mean() + aligned)]
    for m, name in enumerate(model.modalities):
        has = batch.present[:, m]
        scale = len(batch) / int(has.sum())
        own = cross_entropy(unimodal[m].logits, batch.labels, reduction="none")
        own = (own_weight[m, batch.groups] * own)[has].mean()
        encoder = scale * ((weight[m + 1, batch.groups] * loss).mean() + aligned) + gap
        objectives.append((model.encoders[name], encoder + own if answer.live else encoder))
        objectives.append((model.heads[name], own))
    owned = [(objective, list(module.parameters())) for module, objective in objectives]
    steps = [(own, torch.autograd.grad(objective, own, retain_graph=True)) for objective, own in owned]
    with torch.no_grad():
        for own, gradients in steps:
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.sub_(rate * gradient)


def centralise(
    model: Any, batch: Any, method: Any, rounds: int, rate: float, groups: int, bins: int
) -> list[dict[str, Tensor]]:
    """Return the parameters after every round of the method on pooled records."""
    memory: dict[str, Any] = {}
    stale, history = Terms(), []
    for _ in range(rounds):
        answer = RULES[method.name](look(model, batch, groups, bins), memory, method)
        descend(model, batch, answer, stale, rate)
        stale, memory = answer.terms, answer.memory
        history.append({name: value.detach().clone() for name, value in model.named_parameters()})
    return history
