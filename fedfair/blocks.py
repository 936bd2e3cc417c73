"""ParameterBlocks: which parameter belongs to which part of the model.

Modulation multiplies blocks, so every parameter must belong to exactly one. Membership comes
from the module that owns the parameter, never from a substring of its name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedfair.errors import ShapeError
from fedfair.models import MultimodalModel

FUSION = "fusion"


def encoder_block(modality: str) -> str:
    """Return the name of a modality's encoder block."""
    return f"encoder/{modality}"


def head_block(modality: str) -> str:
    """Return the name of a modality's unimodal head block."""
    return f"head/{modality}"


def block_names(modalities: tuple[str, ...]) -> tuple[str, ...]:
    """Return all block names: fusion, the encoders, the heads."""
    return (FUSION, *map(encoder_block, modalities), *map(head_block, modalities))


class ParameterBlocks:
    """The parameters of a model, as one flat vector [P_b] per block b.

    The model's parameters become views of these vectors, so an in-place operation on a vector
    moves the model. Build it after the model is on its device and has its dtype.

    Parameters
    ----------
    model : MultimodalModel
        Its modules `fusion`, `encoders` and `heads` must own every parameter exactly once.

    Raises
    ------
    ShapeError
        If a parameter has no block, has two, or the model keeps batch statistics.
    """

    def __init__(self, model: MultimodalModel) -> None:
        owners: dict[str, nn.Module] = {FUSION: model.fusion}
        for name in model.modalities:
            owners[encoder_block(name)] = model.encoders[name]
            owners[head_block(name)] = model.heads[name]
        self.names = block_names(model.modalities)
        self.parameters: dict[str, list[nn.Parameter]] = {
            name: list(owners[name].parameters()) for name in self.names
        }
        _check_partition(model, self.parameters)
        _check_batch_statistics(model)
        self.vectors: dict[str, Tensor] = {
            name: _flatten(parameters, model.fusion.classifier.weight)
            for name, parameters in self.parameters.items()
        }

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Copy one vector per block into the model.

        Raises
        ------
        ShapeError
            If a block is missing or its length differs.
        """
        for name, own in self.vectors.items():
            value = vectors.get(name)
            if value is None or value.shape != own.shape:
                found = None if value is None else tuple(value.shape)
                raise ShapeError(f"block `{name}` must be {tuple(own.shape)}, got {found}")
            own.copy_(value)

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of all block vectors."""
        return {name: vector.clone() for name, vector in self.vectors.items()}


def _flatten(parameters: list[nn.Parameter], like: Tensor) -> Tensor:
    if not parameters:
        return like.new_zeros(0)
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = vector[start:end].view(parameter.shape)
        start = end
    return vector


def _check_partition(model: nn.Module, blocks: Mapping[str, list[nn.Parameter]]) -> None:
    owner: dict[int, str] = {}
    for name, parameters in blocks.items():
        for parameter in parameters:
            other = owner.setdefault(id(parameter), name)
            if other != name:
                raise ShapeError(f"a parameter must belong to one block, got `{other}` and `{name}`")
    for name, parameter in model.named_parameters():
        if id(parameter) not in owner:
            raise ShapeError(
                f"parameter `{name}` must belong to a block, got none; put its module into "
                "`encoders`, `heads` or `fusion`"
            )
        if not parameter.requires_grad:
            raise ShapeError(
                f"parameter `{name}` must require a gradient, got a frozen one; make it a buffer"
            )


def _check_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        running = getattr(module, "running_mean", None) is not None
        if running or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ShapeError(
                f"module `{name}` must not use batch statistics (a site's update would not be a sum "
                f"over its records), got {type(module).__name__}; use GroupNorm or LayerNorm"
            )
