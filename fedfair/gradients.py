"""Gradients by block and group: one forward pass and one backward pass per group of a batch.

The graph is cut at the embeddings. The heads and the fusion network are differentiated down to
the cut, which gives one gradient per record and embedding; these are scaled by coefficients and
pulled back through the encoders. So a coefficient by (block, group) needs no second backward
pass, and the sum over the group rows is the ungrouped gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks, encoder_block, head_block
from fedfair.models import MultimodalModel
from fedfair.paths import Path, RowPlan, Scales
from fedfair.terms import PreparedTerms


@dataclass(frozen=True)
class _Cut:
    """Gradients of summed losses: of fusion and heads, and per record at the embeddings."""

    embeddings: list[Tensor]
    fusion: Tensor
    heads: list[Tensor]
    fused: list[Tensor]
    unimodal: list[Tensor] | None
    terms: tuple[Tensor, list[Tensor]] | None


def weighted_gradients(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    scales: Scales,
    terms: PreparedTerms | None,
) -> dict[str, Tensor]:
    """Return one gradient [P_b] per block, summed over the records with their coefficients.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        The model and its blocks.
    batch : MultimodalBatch
        B records.
    scales : Scales
        Coefficients by block and group.
    terms : PreparedTerms | None
        Extra loss terms.
    """
    groups = batch.groups
    cut = _backward_to_embeddings(
        model, blocks, batch, scales.live, terms, scales.fused[0, groups], scales.unimodal[:, groups]
    )
    result = {FUSION: cut.fusion if cut.terms is None else cut.fusion + cut.terms[0]}
    for m, name in enumerate(model.modalities):
        ratio = (scales.fused[m + 1] / scales.fused[0])[groups, None]
        pull = cut.fused[m] * ratio
        if cut.unimodal is not None:
            pull = pull + cut.unimodal[m]
        if cut.terms is not None:
            pull = pull + cut.terms[1][m]
        result[encoder_block(name)] = _pull_back(blocks, encoder_block(name), cut.embeddings[m], pull)
        result[head_block(name)] = cut.heads[m]
    return result


def path_gradients(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    plan: RowPlan,
    scales: Scales,
    terms: PreparedTerms | None,
) -> dict[str, Tensor]:
    """Return {path key: [rows, P_b]} summed over the records; grouped rows carry no coefficient.

    With no grouped block this is one pass over the batch, else one pass per group present.

    Raises
    ------
    ShapeError
        If the direction matrix does not fit the model.
    """
    if not plan.grouped:
        gradients = weighted_gradients(model, blocks, batch, scales, terms)
        return {f"{block}:all": value[None] for block, value in gradients.items()}
    num_groups = scales.fused.shape[1]
    paths = plan.paths(model.modalities, scales.live, terms is not None)
    rows = {
        path.key: torch.zeros(
            num_groups if path.grouped else 1, len(blocks.vectors[path.block]), dtype=scales.fused.dtype
        ).to(scales.fused)
        for path in paths
    }
    for g in torch.unique(batch.groups).tolist():
        members = batch.select(batch.groups == g)
        cut = _backward_to_embeddings(model, blocks, members, scales.live, terms)
        for path in paths:
            rows[path.key][g if path.grouped else 0] += _row(model, blocks, path, cut, scales, plan, g)
    return rows


def _row(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    path: Path,
    cut: _Cut,
    scales: Scales,
    plan: RowPlan,
    g: int,
) -> Tensor:
    """Return one group's contribution to one path."""
    kind, _, modality = path.block.partition("/")
    weigh = path.source == "all"
    if kind == FUSION:
        own = cut.fusion * scales.fused[0, g] if weigh else cut.fusion
        extra = cut.terms[0] if cut.terms is not None else torch.zeros_like(own)
        return extra if path.source == "terms" else own + extra if weigh else own
    m = model.modalities.index(modality)
    if kind == "head":
        return cut.heads[m] * scales.unimodal[m, g] if weigh else cut.heads[m]
    return _pull_back(blocks, path.block, cut.embeddings[m], _embedding_row(path, cut, scales, plan, m, g))


def _embedding_row(path: Path, cut: _Cut, scales: Scales, plan: RowPlan, m: int, g: int) -> Tensor:
    """Return the gradient at embedding m that an encoder path pulls back, [b, p]."""
    zero = torch.zeros_like(cut.fused[m])
    unimodal = zero if cut.unimodal is None else cut.unimodal[m]
    terms = zero if cut.terms is None else cut.terms[1][m]
    fused_scale, unimodal_scale = scales.fused[m + 1, g], scales.unimodal[m, g]
    if path.source == "all":
        return cut.fused[m] * fused_scale + unimodal * unimodal_scale + terms
    if path.source == "unimodal":
        return unimodal
    if path.source == "terms":
        return terms
    return cut.fused[m] if plan.split else cut.fused[m] + unimodal * (unimodal_scale / fused_scale)


def _backward_to_embeddings(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    live: bool,
    terms: PreparedTerms | None,
    fused_weight: Tensor | None = None,
    unimodal_weight: Tensor | None = None,
) -> _Cut:
    embeddings = model.encode(batch)
    # Separate leaves keep the two losses' gradients apart although both are differentiated at once.
    fused_leaf = [z.detach().requires_grad_() for z in embeddings]
    probe = not live and (terms is None or terms.fairness is None)
    head_leaf = [z.detach().requires_grad_(not probe) for z in embeddings]
    fused = model.fusion(fused_leaf, batch.present)
    unimodal = model.unimodal(head_leaf)
    term_gradients = None
    fusion_parameters = blocks.parameters[FUSION]
    head_parameters = [blocks.parameters[head_block(name)] for name in model.modalities]
    if terms is not None:
        term_gradients = _term_gradients(
            terms.loss(fused, unimodal, batch), fusion_parameters, fused_leaf, [] if probe else head_leaf
        )
    loss = _weighted_sum(cross_entropy(fused.logits, batch.labels, reduction="none"), fused_weight)
    for m, scores in enumerate(unimodal):
        each = cross_entropy(scores.logits, batch.labels, reduction="none") * batch.present[:, m]
        loss = loss + _weighted_sum(each, None if unimodal_weight is None else unimodal_weight[m])
    inputs = [*fusion_parameters, *(p for own in head_parameters for p in own), *fused_leaf]
    if live:
        inputs += head_leaf
    gradients = iter(torch.autograd.grad(loss, inputs))
    return _Cut(
        embeddings,
        _take(gradients, fusion_parameters),
        [_take(gradients, own) for own in head_parameters],
        [next(gradients) for _ in fused_leaf],
        [next(gradients) for _ in head_leaf] if live else None,
        term_gradients,
    )


def _term_gradients(
    loss: Tensor, fusion: Sequence[Tensor], fused_leaf: Sequence[Tensor], head_leaf: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    gradients = iter(
        torch.autograd.grad(
            loss, [*fusion, *fused_leaf, *head_leaf], retain_graph=True, materialize_grads=True
        )
    )
    own = _take(gradients, fusion)
    at_embeddings = [next(gradients) for _ in fused_leaf]
    return own, [a + b for a, b in zip(at_embeddings, gradients, strict=True)] if head_leaf else at_embeddings


def _weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.sum() if weight is None else (values * weight).sum()


def _take(gradients: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    source = iter(gradients)
    return torch.cat([next(source).reshape(-1) for _ in parameters])


def _pull_back(blocks: ParameterBlocks, block: str, embedding: Tensor, gradient: Tensor) -> Tensor:
    parameters = blocks.parameters[block]
    if not parameters:
        return blocks.vectors[block]
    # Several paths may pull the same embedding back, hence the kept graph.
    pulled = torch.autograd.grad(embedding, parameters, gradient, retain_graph=True)
    return torch.cat([p.reshape(-1) for p in pulled])
