"""Frozen parameters and low-rank adapters."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedfair.data.crossing import Attributes, axes
from fedfair.errors import ConfigError, MissingDependency, nearest
from fedfair.models.encoders._fair_lora import ByGroup, GroupValues, group_codes


class Adapter(NamedTuple):
    """A low-rank change of a linear layer's weight: it becomes W + scale * B A, and W stays as it is.

    `A` is [r, inputs] and `B` [outputs, r]. Hu et al. 2021, arXiv 2106.09685.
    With `values` s [G, r] it becomes W + scale * B diag(s_g) A for records of group g; s = 1 is the former.
    Li et al. 2025, arXiv 2508.00873.
    """

    A: Tensor
    B: Tensor
    scale: float
    values: Tensor | None = None


def adapters(encoder: nn.Module) -> dict[str, Adapter]:
    """Return the low-rank adapters of an encoder, or of a model, by the name of the layer they change."""
    return {
        name: Adapter(first[key].weight, layer.lora_B[key].weight, layer.scaling[key], _values(first[key]))
        for name, layer, first in _adapted(encoder)
        for key in first
    }


def by_group(encoder: nn.Module, attributes: Attributes, name: str) -> ByGroup:
    """Return the encoder with singular values per group in each adapter, all one at first.

    Parameters
    ----------
    encoder : nn.Module
        With the adapters of `add_adapters`; changed in place.
    attributes : Mapping[str, Sequence[str]]
        Group names by attribute, in the schema's order.
    name : str
        The attribute or crossing whose groups have values of their own.

    Raises
    ------
    ConfigError
        If a part of the name is no attribute, or stands twice.
    """
    codes = group_codes(attributes, name)
    for _, _, first in list(_adapted(encoder)):
        for key, linear in first.items():
            first[key] = GroupValues(linear, codes.shape[1])
    names = list(attributes)
    return ByGroup(encoder, codes, [names[axis] for axis in axes(attributes, name)])


def _adapted(encoder: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each layer that has adapters, the layer, and the first halves by key."""
    for name, layer in encoder.named_modules():
        if hasattr(layer, "lora_A"):
            yield name, layer, layer.lora_A


def _values(first: nn.Module) -> Tensor | None:
    return first.values.weight.T if isinstance(first, GroupValues) else None


def freeze(module: nn.Module) -> None:
    """Turn the parameters that need no gradient into buffers, in place.

    So they belong to no block: they are not trained, sent, counted, noised or stored with a run.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.detach(), persistent=False)


def add_adapters(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> nn.Module:
    """Return the module with an adapter at each linear layer that `targets` names; all else is frozen.

    B is zero at first, so nothing changes yet; the scale is alpha / rank.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    rank, alpha : int, float
        r and the scale's numerator.
    targets : Sequence[str]
        Last parts of layers' names, such as ``query``.

    Raises
    ------
    ConfigError, MissingDependency
        If a target is unknown, or the adapter library is not installed.
    """
    known = {n.rpartition(".")[2] for n, part in module.named_modules() if isinstance(part, nn.Linear)}
    for target in targets:
        if target not in known:
            raise ConfigError(
                f"`targets` must name linear layers of the encoder, {sorted(known)}, got {target!r}"
                f"{nearest(target, known)}"
            )
    peft = pretrained_module("peft")
    changed: nn.Module = peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), module
    )
    return changed


def pretrained_module(name: str) -> ModuleType:
    """Import a module of the extra `pretrained`.

    Raises
    ------
    MissingDependency
        If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the encoders vit and bert need `{error.name}`: pip install 'fedfair[pretrained]'"
        ) from error
