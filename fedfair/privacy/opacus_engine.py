"""Sample-level private training on Opacus's own parts, for plain models; `sample_level` takes any model.

Opacus differentiates by record with hooks on the layers, which assume that the first axis of all that
passes through a layer is the batch, in one order. A model can break that without an error, so none is
trained before `check_opacus` has compared its gradients with those of single records.
Yousefpour et al. 2021, arXiv 2109.12298; Abadi et al. 2016, arXiv 1607.00133, Algorithm 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import Schema
from fedfair.errors import PrivacyError
from fedfair.local import LocalTraining
from fedfair.measure import chunks
from fedfair.models import MultimodalModel
from fedfair.paths import Path, Scales
from fedfair.privacy.accounting import opacus_module
from fedfair.privacy.clipping import clip_flat
from fedfair.privacy.noise import Noise
from fedfair.privacy.sample_level import FLAT, Mechanism, mechanism
from fedfair.privacy.settings import PrivacyConfig
from fedfair.privacy.single_records import all_parameters, by_block, check_gradients, record_loss
from fedfair.terms import PreparedTerms

WAY_OUT = "or set `privacy.engine: functional`"
HINT = f"look for sequence-first layers, repacked records or dropout outside nn.Dropout, {WAY_OUT}"

_CHECKED: WeakSet[nn.Module] = WeakSet()

# What a model that the hooks do not fit raises is whatever its layers happen to.
_MISFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def opacus_mechanism(
    blocks: ParameterBlocks,
    paths: tuple[Path, ...],
    scales: Scales,
    modalities: tuple[str, ...],
    privacy: PrivacyConfig,
) -> Mechanism:
    """Return the `mechanism` of a round of `train_with_opacus`.

    Coefficients stand before clipping here, so no weight acts on a record's clipped gradient.
    """
    ones = Scales(torch.ones_like(scales.fused), torch.ones_like(scales.unimodal), scales.live)
    return mechanism(blocks, paths, ones, modalities, privacy)


def train_with_opacus(
    model: MultimodalModel,
    blocks: ParameterBlocks,
    records: MultimodalBatch,
    scales: Scales,
    terms: PreparedTerms | None,
    settings: LocalTraining,
    public: Mechanism,
    noise: Noise,
) -> dict[str, Tensor]:
    """Train by noised steps of Opacus from the downloaded model; return its change by path.

    The loss of a record is l + sum_m k_m u_m over its modalities (u_m reaches the encoders if live).
    Its whole gradient is clipped to norm C; a step adds noise of deviation sigma C to their sum and
    divides by the expected batch.

    Parameters
    ----------
    model : MultimodalModel
        The downloaded model, which has passed `check_opacus`; moved in place.
    scales, terms : Scales, PreparedTerms | None
        Coefficients k_m, the same for all groups, those of the fused loss 1; no terms.
    public : Mechanism
        What `opacus_mechanism` returned.
    blocks, records, settings, noise
        As for `fedfair.privacy.sample_level.train_privately`.

    Returns
    -------
    dict[str, Tensor]
        {path key: [1, P_b]} for every block, also where no record was drawn or has the modality.

    Raises
    ------
    PrivacyError
        If this engine cannot do what is asked, or the model has not passed the check.
    """
    _refuse(model, scales, terms, public)
    before = blocks.snapshot()
    parameters = all_parameters(blocks)
    model.train()
    with _hooked(model):
        optimizer = _optimizer(parameters, settings, public, noise)
        for drawn in _draws(len(records), public, noise):
            batch = records.select(torch.tensor(drawn, dtype=torch.int64))
            parts = list(chunks(batch, settings.chunk_size))
            for part in parts:  # an empty batch is one part, and a step like any other
                _differentiate(model, parameters, part, scales)
                optimizer.signal_skip_step(part is not parts[-1])
                optimizer.step()
                optimizer.zero_grad()
    return {p.key: (blocks.vectors[p.block] - before[p.block])[None] for p in public.paths}


def check_opacus(
    model: MultimodalModel, blocks: ParameterBlocks, schema: Schema, like: Tensor, groups: int
) -> None:
    """Refuse a model whose gradients by record are not those of single records; once per model.

    Parameters
    ----------
    model : MultimodalModel
        Left in training mode, otherwise unchanged.
    blocks, schema, like, groups
        As for `fedfair.privacy.single_records.check_gradients`.

    Raises
    ------
    PrivacyError
        Naming the layer that Opacus refuses, or the block and the difference.
    """
    if model in _CHECKED:
        return
    model.train()
    if errors := opacus_module("opacus.validators").ModuleValidator.validate(model, strict=False):
        raise PrivacyError(f"the model must fit Opacus, got {errors[0]}; replace the layer {WAY_OUT}")
    try:
        check_gradients(model, blocks, schema, like, groups, _hooked_gradients, HINT)
    except _MISFIT as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise PrivacyError(
            f"the model must fit Opacus's hooks, got {reason}; keep every parameter in a layer with one "
            f"input {WAY_OUT}"
        ) from error
    _CHECKED.add(model)


def _refuse(model: MultimodalModel, scales: Scales, terms: PreparedTerms | None, public: Mechanism) -> None:
    by_group = any(bool((k != k[:, :1]).any()) for k in (scales.fused, scales.unimodal))
    rows = any(path.grouped for path in public.paths)
    reasons = (
        (FLAT not in public.bounds, "`privacy.clipping` must be flat", "bounds by block"),
        (min(public.deviations.values()) <= 0, "`privacy.exact` must be without gradients", "no noise"),
        (rows, "`training.mode` must be weights, which asks for one sum", "group rows"),
        (by_group, "coefficients must be the same for all groups", "others"),
        (bool((scales.fused != 1).any()), "coefficients of the fused loss must be 1", "others"),
        (terms is not None, "there must be no extra loss terms", "some"),
        (model not in _CHECKED, "the model must have passed `check_opacus`", "one that has not"),
    )
    for refused, wanted, got in reasons:
        if refused:
            raise PrivacyError(f"for `privacy.engine: opacus` {wanted}, got {got}; change it {WAY_OUT}")


def _optimizer(
    parameters: list[nn.Parameter], settings: LocalTraining, public: Mechanism, noise: Noise
) -> Any:  # noqa: ANN401 - of a class that exists only where Opacus is installed
    base = opacus_module("opacus.optimizers").DPOptimizer
    bound, deviation = public.bounds[FLAT], max(public.deviations.values())

    class SiteOptimizer(base):  # type: ignore[misc, valid-type]
        """Opacus's, with the site's own noise, and without records that are not finite."""

        def clip_and_accumulate(self) -> None:
            # Opacus's norms have the rounding of float32: 3e-5 of the bound at two million parameters.
            pairs = enumerate(zip(self.params, self.grad_samples, strict=True))
            rows = {str(i): g.reshape(len(g), p.numel()) for i, (p, g) in pairs}
            for p, own in zip(self.params, clip_flat(rows, bound).values(), strict=True):
                p.grad_sample = own.reshape(len(own), *p.shape)
            super().clip_and_accumulate()

        def add_noise(self) -> None:
            for p in self.params:
                p.grad = p.summed_grad + deviation * noise.normal(tuple(p.shape), p.summed_grad)

    sgd = torch.optim.SGD(parameters, settings.learning_rate, settings.momentum)
    return SiteOptimizer(
        sgd, noise_multiplier=deviation / bound, max_grad_norm=bound, expected_batch_size=public.divisor
    )


def _draws(n: int, public: Mechanism, noise: Noise) -> Iterable[list[int]]:
    """Return the records of every step."""
    if n == 0:  # which the sampler refuses
        return [[]] * public.steps
    sampler = opacus_module("opacus.utils.uniform_sampler").UniformWithReplacementSampler
    draws: Iterable[list[int]] = sampler(
        num_samples=n, sample_rate=public.sample_rate, generator=noise.generator(), steps=public.steps
    )
    return draws


def _differentiate(
    model: MultimodalModel, parameters: Sequence[nn.Parameter], batch: MultimodalBatch, scales: Scales
) -> None:
    """Fill `grad_sample` [B, ...] of every parameter."""
    if not len(batch):
        for parameter in parameters:
            parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]
        return
    with warnings.catch_warnings():
        # Inputs and detached embeddings need no gradient; the hooks of their layers fire all the same.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        record_loss(model, batch, scales).backward()  # type: ignore[no-untyped-call]
    for parameter in parameters:
        found = parameter.grad_sample  # type: ignore[attr-defined]
        if not isinstance(found, Tensor) or len(found) != len(batch):
            raise PrivacyError(
                f"a parameter of shape {tuple(parameter.shape)} must have a gradient for each record, got "
                f"another number; {HINT}"
            )


@contextmanager
def _hooked(model: MultimodalModel) -> Iterator[None]:
    """Put Opacus's hooks on the model's layers, and leave nothing of them behind."""
    parts: list[nn.Module | nn.Parameter] = [*model.modules(), *model.parameters()]
    known = [set(vars(part)) for part in parts]
    hooks = None
    try:
        hooks = opacus_module("opacus.grad_sample").GradSampleHooks(model, loss_reduction="sum")
        yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        # It forgets activations and sums, and records must not outlive the step.
        for part, names in zip(parts, known, strict=True):
            for name in vars(part).keys() - names:
                delattr(part, name)
        model.zero_grad(set_to_none=True)


def _hooked_gradients(
    model: MultimodalModel, blocks: ParameterBlocks, batch: MultimodalBatch, scales: Scales
) -> dict[str, Tensor]:
    """Return every record's gradient {block: [B, P_b]} by Opacus's hooks."""
    parameters = all_parameters(blocks)
    with _hooked(model):
        _differentiate(model, parameters, batch, scales)
        samples = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
    return by_block(blocks, samples)
