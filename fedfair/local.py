"""Local training: one site, one round, from the downloaded model to summed updates.

Everything returned is a sum over the site's records (an update is multiplied by the records
behind it), so the server can add sites up and divide once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.blocks import FUSION, ParameterBlocks
from fedfair.gradients import path_gradients
from fedfair.loading import batches
from fedfair.measure import chunks
from fedfair.models import MultimodalModel
from fedfair.paths import Path, RowPlan, Scales, path_scale
from fedfair.signals import Signals
from fedfair.terms import PreparedTerms


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains.

    Attributes
    ----------
    mode : str
        ``gradient``: one exact step on all records. ``update`` or ``weights``: local epochs of
        mini-batch SGD (they differ in the `RowPlan` only).
    local_epochs, batch_size : int
        Local epochs and records per mini-batch.
    chunk_size : int
        Records per forward pass where no mini-batch is meant (signals, gradient mode).
    learning_rate, momentum : float
        Of plain SGD; momentum keeps the update linear in the gradients, an adaptive optimiser
        would not and would cancel constant coefficients.
    """

    mode: str = "update"
    local_epochs: int = 1
    batch_size: int = 32
    chunk_size: int = 512
    learning_rate: float = 0.05
    momentum: float = 0.0


@dataclass(frozen=True)
class SiteUpdate:
    """What a site sends in one round; nothing here is per record.

    Attributes
    ----------
    site : str
        The site's name.
    rows : Mapping[str, NDArray]
        Per path key [rows, P_b]: records times the change of the block (sums over records).
        Blocks of a modality that the site does not have are left out. Under sample-level privacy
        the noised change itself, of every block.
    train, test : Signals | None
        Of the downloaded model on the training records (by group of the modulated attribute) and
        on the test records (by cell of all attributes); None where nothing is released.
    """

    site: str
    rows: Mapping[str, NDArray[np.floating]]
    train: Signals | None
    test: Signals | None
    sites: int = 1


def block_records(signals: Signals, modalities: tuple[str, ...], block: str) -> float:
    """Return the records that moved a block: all of them, or those that have its modality."""
    kind, _, modality = block.partition("/")
    head = 0 if kind == FUSION else 1 + modalities.index(modality)
    return float(signals.counts[head].sum())


def train(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    records: MultimodalBatch,
    plan: RowPlan,
    scales: Scales,
    terms: PreparedTerms | None,
    settings: LocalTraining,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Train on a site's records along the broadcast coefficients; return summed updates by path.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        The downloaded model; moved in place.
    records : MultimodalBatch
        n > 0 training records.
    plan, scales, terms : RowPlan, Scales, PreparedTerms | None
        Which rows to keep apart, and the coefficients and terms to train along.
    settings : LocalTraining
        How to train.
    generator : torch.Generator
        Draws the order of the records.

    Returns
    -------
    dict[str, Tensor]
        {path key: [rows, P_b]}, n_b times the change that each row caused, n_b the records that
        have the block's modality. Grouped rows carry no coefficient, so with constant
        coefficients sum_g K U / n_b is the site's own update.
    """
    model.train()
    keep = _records_by_block(model, records)
    paths = [p for p in plan.paths(model.modalities, scales.live, terms is not None) if keep[p.block] > 0]
    if settings.mode == "gradient":
        total = _full_gradient(model, blocks, records, plan, scales, terms, settings.chunk_size)
        return {p.key: total[p.key].mul_(-settings.learning_rate) for p in paths}
    local = Sgd(blocks, paths, scales, model.modalities, settings)
    for batch in _mini_batches(records, settings, generator):
        rows = path_gradients(model, blocks, batch, plan, scales, terms)
        # The expected number of records with the modality, not the actual one of this batch: the
        # step stays a sum over records times a constant.
        local.step(rows, {b: len(records) / (n * len(batch)) for b, n in keep.items() if n > 0})
    return {p.key: local.moved[p.key].mul_(keep[p.block]) for p in paths}


class Sgd:
    """SGD with momentum that keeps the rows of every path apart.

    Parameters
    ----------
    blocks : ParameterBlocks
        Moved in place.
    paths : list[Path]
        What is kept apart, in `moved`.
    scales, modalities : Scales, tuple[str, ...]
        The coefficients along which the model moves.
    settings : LocalTraining
        Learning rate and momentum.
    """

    def __init__(
        self,
        blocks: ParameterBlocks,
        paths: list[Path],
        scales: Scales,
        modalities: tuple[str, ...],
        settings: LocalTraining,
    ) -> None:
        self.blocks, self.paths, self.settings = blocks, paths, settings
        self.scale = {p.key: path_scale(p, scales, modalities) for p in paths}
        self.moved: dict[str, Tensor] = {}
        self.velocity: dict[str, Tensor] = {}

    def step(self, rows: Mapping[str, Tensor], factor: Mapping[str, float]) -> None:
        """Move by the gradient rows, each block's times its factor; `rows` is used up."""
        rate, momentum = self.settings.learning_rate, self.settings.momentum
        for path in self.paths:
            change = rows[path.key].mul_(-rate * factor[path.block])
            if momentum:
                change = self.velocity.get(path.key, torch.zeros_like(change)).mul_(momentum).add_(change)
                self.velocity[path.key] = change
            if path.key in self.moved:
                self.moved[path.key] += change
            else:
                self.moved[path.key] = change.clone()
            self.blocks.vectors[path.block] += self.scale[path.key] @ change


def _records_by_block(model: MultimodalModel, records: MultimodalBatch) -> dict[str, int]:
    having = records.present.sum(0).tolist()
    result = {FUSION: len(records)}
    for m, name in enumerate(model.modalities):
        result[f"encoder/{name}"] = result[f"head/{name}"] = int(having[m])
    return result


def _full_gradient(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    records: MultimodalBatch,
    plan: RowPlan,
    scales: Scales,
    terms: PreparedTerms | None,
    chunk_size: int,
) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for chunk in chunks(records, chunk_size):
        for key, value in path_gradients(model, blocks, chunk, plan, scales, terms).items():
            total[key] = total[key] + value if key in total else value
    return total


def _mini_batches(
    records: MultimodalBatch, settings: LocalTraining, generator: torch.Generator
) -> Iterator[MultimodalBatch]:
    for _ in range(settings.local_epochs):
        order = torch.randperm(len(records), generator=generator)
        yield from batches(records, order, settings.batch_size)
