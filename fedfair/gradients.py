"""Gradients by block and group: one forward pass and one backward pass per group of a batch.

The graph is cut at the embeddings. The heads and the fusion network are differentiated down to
the cut, which gives one gradient per record and embedding; these are scaled by coefficients and
pulled back through the encoders. So a coefficient by (block, group) needs no second backward
pass, and the sum over the group rows is the ungrouped gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks, encoder_block, head_block
from fedfair.models import MultimodalModel, Scores
from fedfair.paths import Path, RowPlan, Scales
from fedfair.terms import PreparedTerms

Weights = tuple[Tensor, Tensor]
"""Per record: of the fused loss [B] and of the unimodal losses [M, B]."""


@dataclass(frozen=True)
class _Cut:
    """Gradients of summed losses: of fusion and heads, and per record at the M embeddings.

    Those of losses that do not reach a place are zero there.
    """

    embeddings: dict[str, Tensor]
    fusion: Tensor
    heads: list[Tensor]
    fused: list[Tensor]
    unimodal: list[Tensor]
    terms: tuple[Tensor, list[Tensor]]


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
    fused, unimodal = scales.fused[:, batch.groups], scales.unimodal[:, batch.groups]
    weights, ratios = (fused[0], unimodal), (fused[1:] / fused[0])[:, :, None]
    if terms is None:
        return _one_pass(model, blocks, batch, scales.live, weights, ratios)
    cut = _backward_to_embeddings(model, blocks, batch, scales.live, terms, weights)
    pulls = {
        encoder_block(name): cut.fused[m] * ratios[m] + cut.unimodal[m] + cut.terms[1][m]
        for m, name in enumerate(model.modalities)
    }
    heads = dict(zip(map(head_block, model.modalities), cut.heads, strict=True))
    return {FUSION: cut.fusion + cut.terms[0]} | _pull_back(blocks, cut, pulls) | heads


def _one_pass(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    live: bool,
    weights: Weights,
    ratios: Tensor,
) -> dict[str, Tensor]:
    """Return `weighted_gradients` without terms: the fused loss's is scaled as it enters an encoder."""
    embeddings = model.encode(batch)
    entries = [z.view_as(z) for z in embeddings]
    for entry, ratio in zip(entries, ratios, strict=True):
        if entry.requires_grad:
            entry.register_hook(ratio.mul)  # type: ignore[no-untyped-call]
    unimodal = model.unimodal(embeddings if live else [z.detach() for z in embeddings])
    loss = summed_loss(model.fusion(entries, batch.present), unimodal, batch, weights)
    gradients = iter(torch.autograd.grad(loss, [p for own in blocks.parameters.values() for p in own]))
    # An empty block (an encoder without parameters) is its own gradient.
    return {
        name: _take(gradients, own) if own else blocks.vectors[name]
        for name, own in blocks.parameters.items()
    }


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
    counts = {path.key: num_groups if path.grouped else 1 for path in paths}
    rows = {p.key: scales.fused.new_zeros(counts[p.key], len(blocks.vectors[p.block])) for p in paths}
    for g in torch.unique(batch.groups).tolist():
        members = batch.select(batch.groups == g)
        cut = _backward_to_embeddings(model, blocks, members, scales.live, terms)
        row = _group_row(model, blocks, paths, cut, scales, plan, g)
        for path in paths:
            rows[path.key][g if path.grouped else 0] += row[path.key]
    return rows


def _group_row(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    paths: Sequence[Path],
    cut: _Cut,
    scales: Scales,
    plan: RowPlan,
    g: int,
) -> dict[str, Tensor]:
    """Return one group's contribution to every path; all encoders are pulled back at once."""
    result: dict[str, Tensor] = {}
    pulls: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        kind, _, modality = path.block.partition("/")
        if kind == FUSION:
            result[path.key] = _fusion_row(path, cut, scales, plan, g)
            continue
        m = model.modalities.index(modality)
        if kind == "head":
            result[path.key] = cut.heads[m] * scales.unimodal[m, g] if path.source == "all" else cut.heads[m]
        else:
            pull = _embedding_row(path, cut, scales, plan, m, g)
            pulls.setdefault(path.source, {})[path.block] = pull
    for source, pull_by_block in pulls.items():
        for block, row in _pull_back(blocks, cut, pull_by_block).items():
            result[f"{block}:{source}"] = row
    return result


def _fusion_row(path: Path, cut: _Cut, scales: Scales, plan: RowPlan, g: int) -> Tensor:
    """Return the gradient of the fusion network that a path sends, [P_b]."""
    terms, scale = cut.terms[0], scales.fused[0, g]
    if path.source == "all":
        return cut.fusion * scale + terms
    if path.source == "fused":
        return cut.fusion if plan.split else cut.fusion + terms / scale
    return terms


def _embedding_row(path: Path, cut: _Cut, scales: Scales, plan: RowPlan, m: int, g: int) -> Tensor:
    """Return the gradient at embedding m that an encoder path pulls back, [b, p]."""
    fused, unimodal, terms = cut.fused[m], cut.unimodal[m], cut.terms[1][m]
    fused_scale, unimodal_scale = scales.fused[m + 1, g], scales.unimodal[m, g]
    if path.source == "all":
        return fused * fused_scale + unimodal * unimodal_scale + terms
    if path.source == "fused":
        return fused if plan.split else fused + (unimodal * unimodal_scale + terms) / fused_scale
    return unimodal if path.source == "unimodal" else terms


def _backward_to_embeddings(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    batch: MultimodalBatch,
    live: bool,
    terms: PreparedTerms | None,
    weights: Weights | None = None,
) -> _Cut:
    embeddings = model.encode(batch)
    # Separate leaves keep the two losses' gradients apart although both are differentiated at once.
    fused_leaf = [z.detach().requires_grad_() for z in embeddings]
    probe = not live and (terms is None or terms.fairness is None)
    head_leaf = [z.detach().requires_grad_(not probe) for z in embeddings]
    fused = model.fusion(fused_leaf, batch.present)
    unimodal = model.unimodal(head_leaf)
    fusion_parameters = blocks.parameters[FUSION]
    head_parameters = [blocks.parameters[head_block(name)] for name in model.modalities]
    zeros = [torch.zeros_like(z) for z in embeddings]
    term_gradients = torch.zeros_like(blocks.vectors[FUSION]), zeros
    if terms is not None:
        term_gradients = _term_gradients(
            terms.loss(fused, unimodal, batch), fusion_parameters, fused_leaf, [] if probe else head_leaf
        )
    loss = summed_loss(fused, unimodal, batch, weights)
    inputs = [*fusion_parameters, *(p for own in head_parameters for p in own), *fused_leaf]
    if live:
        inputs += head_leaf
    gradients = iter(torch.autograd.grad(loss, inputs))
    return _Cut(
        dict(zip(map(encoder_block, model.modalities), embeddings, strict=True)),
        _take(gradients, fusion_parameters),
        [_take(gradients, own) for own in head_parameters],
        [next(gradients) for _ in fused_leaf],
        [next(gradients) for _ in head_leaf] if live else zeros,
        term_gradients,
    )


def _term_gradients(
    loss: Tensor, fusion: Sequence[Tensor], fused_leaf: Sequence[Tensor], head_leaf: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    inputs = [*fusion, *fused_leaf, *head_leaf]
    gradients = iter(torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True))
    own = _take(gradients, fusion)
    at_embeddings = [next(gradients) for _ in fused_leaf]
    return own, [a + b for a, b in zip(at_embeddings, gradients, strict=True)] if head_leaf else at_embeddings


def summed_loss(
    fused: Scores, unimodal: Sequence[Scores], batch: MultimodalBatch, weights: Weights | None
) -> Tensor:
    """Return the sum of all losses over the records, each with its weight if there are any."""
    loss = cross_entropy(fused.logits, batch.labels, reduction="none")
    present = batch.present.T
    if weights is not None:
        loss, present = loss * weights[0], weights[1] * present
    total = loss.sum()
    for scores, weight in zip(unimodal, present, strict=True):
        total = total + (cross_entropy(scores.logits, batch.labels, reduction="none") * weight).sum()
    return total


def _take(gradients: Iterator[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([next(gradients).reshape(-1) for _ in parameters])


def _pull_back(blocks: ParameterBlocks, cut: _Cut, pulls: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradient of each encoder block, given per record at its embedding, [P_b]."""
    parameters = {block: blocks.parameters[block] for block in pulls if blocks.parameters[block]}
    # An encoder without parameters (raw features) learns nothing.
    result = {block: blocks.vectors[block] for block in pulls.keys() - parameters.keys()}
    if parameters:
        # The derivative of sum_i z_i p_i by a parameter is p pulled back; handing p to torch as the
        # gradient of z instead makes its first call import a computer algebra system (0.4 s, 80 MB).
        products = [torch.dot(cut.embeddings[b].flatten(), pulls[b].flatten()) for b in parameters]
        learned = [p for own in parameters.values() for p in own]
        # Several paths may pull the same embedding back, hence the kept graph.
        gradients = iter(torch.autograd.grad(torch.stack(products).sum(), learned, retain_graph=True))
        result |= {block: _take(gradients, own) for block, own in parameters.items()}
    return result
