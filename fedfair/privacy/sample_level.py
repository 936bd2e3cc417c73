"""Sample-level private training: a site's local steps, each a subsampled Gaussian mechanism.

A step takes each record with probability q, clips each record's gradient by block, adds the
records up and adds noise to every row, occupied or not; it divides by a public constant. All that
follows is post-processing, so coefficients that were derived from released quantities may act
on the clipped gradients: they are public, and the noise is scaled to the largest of them.
Abadi et al. 2016, arXiv 1607.00133, Algorithm 1, with a clipping bound per block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.errors import ConfigError
from fedfair.local import LocalTraining, Sgd
from fedfair.measure import chunks
from fedfair.models import MultimodalModel
from fedfair.paths import Path, Scales, path_scale
from fedfair.privacy.clipping import clip_blocks, clip_flat, noise_units, norm_bounds
from fedfair.privacy.noise import Noise
from fedfair.privacy.per_record import record_gradients
from fedfair.privacy.settings import PrivacyConfig, training_event
from fedfair.terms import PreparedTerms

FLAT = "all blocks"


@dataclass(frozen=True)
class Mechanism:
    """The public side of a round's steps: what a record can add, and how much noise each row gets.

    Attributes
    ----------
    paths : tuple[Path, ...]
        What is released; one entry of the mappings below per path key.
    sample_rate, steps, divisor : float, int, float
        q, K, and what each noised sum is divided by; no count of records.
    bounds : Mapping[str, float]
        Clipping bound by block, or of the whole gradient under `FLAT`.
    weights : Mapping[str, Tensor]
        [G]: multiplies a record's clipped gradient.
    deviations : Mapping[str, float]
        Standard deviation of the noise; zero for gradients that leave exactly.
    sensitivities : Mapping[str, float]
        L2 distance that one record can make in one step.
    shapes : Mapping[str, tuple[int, int]]
        [rows, P_b].
    """

    paths: tuple[Path, ...]
    sample_rate: float
    steps: int
    divisor: float
    bounds: Mapping[str, float]
    weights: Mapping[str, Tensor]
    deviations: Mapping[str, float]
    sensitivities: Mapping[str, float]
    shapes: Mapping[str, tuple[int, int]]


def mechanism(
    blocks: ParameterBlocks,
    paths: tuple[Path, ...],
    scales: Scales,
    modalities: tuple[str, ...],
    privacy: PrivacyConfig,
) -> Mechanism:
    """Return the mechanism of a round from public quantities alone.

    Grouped rows hold each record once, in the row of its group, so each row needs no more noise
    than a single sum would; a weighted sum needs that of its largest weight.

    Parameters
    ----------
    blocks, paths, scales, modalities
        What is released, and the coefficients of this round.
    privacy : PrivacyConfig
        Of mode sample, its noise multiplier given.

    Raises
    ------
    ConfigError
        If a bound is missing or names no block.
    """
    sizes = {p.block: len(blocks.vectors[p.block]) for p in paths}
    weights = {p.key: _weights(p, scales, modalities) for p in paths}
    largest = {p.block: float(weights[p.key].max()) for p in paths}
    bounds, reach, units = _noise(privacy, sizes, largest)
    event = training_event(privacy)
    return Mechanism(
        paths,
        event.sample_rate,
        event.steps,
        float(privacy.expected_batch or math.nan),
        bounds,
        weights,
        # Nothing is infinite times zero: an unbounded gradient has no unit of noise.
        {p.key: event.noise_multiplier * units[p.block] if event.noise_multiplier else 0.0 for p in paths},
        {p.key: reach.get(p.block, 0.0) for p in paths},
        {p.key: (scales.fused.shape[1] if p.grouped else 1, sizes[p.block]) for p in paths},
    )


def _noise(
    privacy: PrivacyConfig, sizes: Mapping[str, int], largest: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return clipping bounds, what a record can add, and the unit of the noise, by block."""
    given = privacy.max_grad_norm
    if given is None or (privacy.clipping == "flat" and isinstance(given, Mapping)):
        raise ConfigError(
            f"`privacy.max_grad_norm` must be a number, or by block for block clipping, got {given!r}"
        )
    if privacy.clipping == "flat" and not isinstance(given, Mapping):
        whole = given * max(largest.values())
        return {FLAT: given}, dict.fromkeys(sizes, whole), dict.fromkeys(sizes, whole)
    bounds = norm_bounds(given, [block for block, size in sizes.items() if size])
    reach = {block: bound * largest[block] for block, bound in bounds.items()}
    # A block whose weights are all zero receives nothing, so it needs no noise.
    active = {block: own for block, own in reach.items() if own > 0}
    return bounds, reach, dict.fromkeys(sizes, 0.0) | noise_units(active, sizes, privacy.noise_units)


def train_privately(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    records: MultimodalBatch,
    scales: Scales,
    terms: PreparedTerms | None,
    settings: LocalTraining,
    public: Mechanism,
    noise: Noise,
) -> dict[str, Tensor]:
    """Train by noised steps from the downloaded model; return its change by path.

    Parameters
    ----------
    model, blocks : MultimodalModel, ParameterBlocks
        The downloaded model; moved in place.
    records : MultimodalBatch
        n >= 0 training records.
    scales, terms : Scales, PreparedTerms | None
        The released coefficients and terms to train along.
    settings : LocalTraining
        Learning rate, momentum and chunk size; epochs and batch size do not act.
    public : Mechanism
        What `mechanism` returned.
    noise : Noise
        Coins and normals of this round, known to nobody else.

    Returns
    -------
    dict[str, Tensor]
        {path key: [rows, P_b]} for every block, also where no record was drawn or has the modality.
    """
    local = Sgd(blocks, list(public.paths), scales, model.modalities, settings)
    model.train()
    for _ in range(public.steps):
        drawn = noise.poisson(len(records), public.sample_rate)
        batch = records.select(drawn.nonzero()[:, 0])
        rows = {p.key: blocks.vectors[p.block].new_zeros(public.shapes[p.key]) for p in public.paths}
        # An empty draw is a step like any other: it releases the noise.
        for chunk in chunks(batch, settings.chunk_size) if len(batch) else ():
            _add(
                rows,
                _clip(record_gradients(model, blocks, chunk, scales, terms), public.bounds),
                chunk,
                public,
            )
        for key, deviation in public.deviations.items():
            if deviation > 0:
                rows[key] += deviation * noise.normal(tuple(rows[key].shape), rows[key])
        local.step(rows, dict.fromkeys(blocks.names, 1.0 / public.divisor))
    return local.moved


def _weights(path: Path, scales: Scales, modalities: tuple[str, ...]) -> Tensor:
    if path.grouped:
        return torch.ones_like(scales.fused[0])
    grouped = Path(path.block, "unimodal" if path.block.startswith("head/") else "fused", True)
    return path_scale(grouped, scales, modalities)


def _clip(gradients: Mapping[str, Tensor], bounds: Mapping[str, float]) -> Mapping[str, Tensor]:
    return clip_flat(gradients, bounds[FLAT]) if FLAT in bounds else clip_blocks(gradients, bounds)


def _add(
    rows: Mapping[str, Tensor], clipped: Mapping[str, Tensor], batch: MultimodalBatch, public: Mechanism
) -> None:
    for path in public.paths:
        if path.grouped:
            rows[path.key].index_add_(0, batch.groups, clipped[path.block])
        else:
            rows[path.key][0] += public.weights[path.key][batch.groups] @ clipped[path.block]
