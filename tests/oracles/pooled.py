"""What the reference computes from pooled records: losses, AUCs and their errors, pairs, slopes.

Nothing of fedfair is imported: AUCs come from scikit-learn, their errors from the placements of single
records, surrogate AUCs from sums over explicit pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Array = NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class View:
    """What the model of one round says of every record, by head (0 is the fused one).

    `losses` [H][n], `bins` [H][n, C], `has` [H][n], `layers` [H] mean gradient of each last layer.
    """

    labels: Array
    groups: Array
    losses: list[Array]
    bins: list[Array]
    has: list[NDArray[np.bool_]]
    layers: list[Tensor]
    num_groups: int
    num_bins: int

    @property
    def heads(self) -> range:
        return range(len(self.has))

    @property
    def all_groups(self) -> range:
        return range(self.num_groups)

    def members(self, head: int, group: int | None = None) -> NDArray[np.bool_]:
        return self.has[head] & (True if group is None else self.groups == group)

    def scored(self, head: int) -> range:
        classes = self.bins[head].shape[1]
        return range(1, 2) if classes == 2 else range(classes)


def layer_gradient(losses: Tensor, layer: nn.Linear, graph: bool = False) -> Tensor:
    """Return the gradient [C, P + 1] of the mean loss by a last layer."""
    weight, bias = torch.autograd.grad(
        losses.mean(), [layer.weight, layer.bias], create_graph=graph, retain_graph=True
    )
    return torch.cat([weight, bias[:, None]], 1)


def look(model: Any, batch: Any, num_groups: int, num_bins: int) -> View:
    """Return the view of a model on all records."""
    embeddings = model.encode(batch)
    every = [model.fusion(embeddings, batch.present), *model.unimodal(embeddings)]
    layers = [model.fusion.classifier, *(model.heads[name].classifier for name in model.modalities)]
    has = [torch.ones(len(batch), dtype=torch.bool), *batch.present.unbind(1)]
    losses = [cross_entropy(s.logits, batch.labels, reduction="none") for s in every]
    bins = [np.minimum(torch.softmax(s.logits, 1).detach().numpy() * num_bins, num_bins - 1) for s in every]
    return View(
        batch.labels.numpy(),
        batch.groups.numpy(),
        [loss.detach().numpy() for loss in losses],
        [np.floor(b) for b in bins],
        [h.numpy() for h in has],
        [layer_gradient(x[h], layer) for x, h, layer in zip(losses, has, layers, strict=True)],
        num_groups,
        num_bins,
    )


def auc_and_error(labels: Array, scores: Array, least: int) -> tuple[float, float]:
    """Return the AUC and DeLong's standard error from the placements of single records."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    if min(len(positive), len(negative)) < max(least, 1):
        return NAN, NAN
    value = float(roc_auc_score(labels, scores))
    if min(len(positive), len(negative)) < 2:
        return value, NAN
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    square = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    return value, float(np.sqrt(square))


def macro(view: View, head: int, group: int | None, least: int) -> tuple[float, float]:
    """Return the mean over classes of `auc_and_error`."""
    rows = view.members(head, group)
    each = [
        auc_and_error((view.labels[rows] == c).astype(float), view.bins[head][rows, c], least)
        for c in view.scored(head)
    ]
    return float(np.mean([a for a, _ in each])), float(np.mean([e for _, e in each]))


def pairs(
    view: View, head: int, group: int, temperature: float, logits: Tensor | None = None
) -> Tensor | None:
    """Return the surrogate AUC of a head on a group over all pairs of records, or None.

    Scores are the logits of the bins' centres. With live `logits` [n, C] each record is set twice
    against the binned scores of the other class, once for either side of the pair.
    """
    values = []
    for c in view.scored(head):
        rows = view.members(head, group)
        centre = torch.as_tensor(view.bins[head][:, c] + 0.5) / view.num_bins
        stored = torch.log(centre / (1 - centre))
        own = rows & (view.labels == c), rows & (view.labels != c)
        if not (own[0].any() and own[1].any()):
            return None
        if logits is None:
            sides = [(stored[own[0]], stored[own[1]])]
        else:
            p = torch.softmax(logits, 1)[:, c]
            live = torch.log(p / (1 - p))
            sides = [(live[own[0]], stored[own[1]]), (stored[own[0]], live[own[1]])]
        values += [torch.sigmoid((u[:, None] - w) / temperature).mean() for u, w in sides]
    return torch.stack(values).sum() / len(list(view.scored(head)))


def direction(view: View, balance: Array) -> Tensor:
    """Return V, the derivative by G of L_gm = (1/M) sum_m (|B_m| - B_m cos(G, G_m)), by autograd."""
    leaf = view.layers[0].clone().requires_grad_()
    term = torch.zeros((), dtype=leaf.dtype)
    for factor, other in zip(balance, view.layers[1:], strict=True):
        cosine = torch.cosine_similarity(leaf.reshape(-1), other.reshape(-1), dim=0, eps=0.0)
        term = term + (abs(factor) - factor * cosine) / len(balance)
    return torch.autograd.grad(term, leaf)[0]


def capped(matrix: Tensor, largest: float) -> Tensor:
    norm = float((matrix**2).sum().sqrt())
    return matrix * (largest / norm) if norm > largest else matrix


def gap_slopes(method: Any, view: View) -> Tensor:
    """Return the derivative of F_G by each surrogate AUC [M, G], by autograd."""
    slopes = torch.zeros(len(view.heads) - 1, view.num_groups, dtype=torch.float64)
    total, leaves = torch.zeros((), dtype=torch.float64), {}
    known = {
        h: [g for g in view.all_groups if not np.isnan(macro(view, h, g, method.group_min)[0])]
        for h in view.heads[1:]
    }
    estimable = [h for h, groups in known.items() if groups]
    for h in estimable:
        values = torch.stack([pairs(view, h, g, method.temperature) for g in known[h]])
        leaves[h] = values.detach().requires_grad_()
        mean = leaves[h].mean()
        gap = torch.relu(mean.detach() - leaves[h]) if method.one_sided else (leaves[h] - mean).abs()
        total = total + gap.mean() / len(estimable)
    for h in estimable:
        slopes[h - 1, known[h]] = torch.autograd.grad(total, leaves[h], retain_graph=True)[0]
    return slopes
