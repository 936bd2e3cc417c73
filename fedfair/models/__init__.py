"""Models: a `MultimodalModel` built by name or by a user's own factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, nearest
from fedfair.models._base import CellEncoder, FrozenEncoder, Fusion, Head, MultimodalModel, Scores
from fedfair.models._fusion import AttentionFusion, ConcatFusion
from fedfair.models._late_fusion import late_fusion
from fedfair.models.encoders import Adapter, adapters
from fedfair.plugins import call_factory, import_factory
from fedfair.seeding import derive_seed

__all__ = [
    "Adapter",
    "AttentionFusion",
    "CellEncoder",
    "ConcatFusion",
    "FrozenEncoder",
    "Fusion",
    "Head",
    "MultimodalModel",
    "Scores",
    "adapters",
    "build_model",
    "late_fusion",
]

MODELS: Mapping[str, Callable[..., object]] = {"late_fusion": late_fusion}


def build_model(name: str, schema: Schema, options: Mapping[str, object], seed: int) -> MultimodalModel:
    """Return the model `name`, its initial parameters drawn from `seed` alone.

    Parameters
    ----------
    name : str
        A key of `MODELS`, or ``package.module:factory`` where ``factory(schema, **options)``
        returns a `MultimodalModel`.
    schema : Schema
        The data's schema.
    options : Mapping[str, Any]
        Passed to the factory.
    seed : int
        The run's seed.

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or the factory returns something else.
    """
    if name in MODELS:
        factory = MODELS[name]
    elif ":" in name:
        factory = import_factory("model.name", name)
    else:
        raise ConfigError(
            f"`model.name` must be one of {sorted(MODELS)} or module:factory, got {name!r}"
            f"{nearest(name, MODELS)}"
        )
    # The only place where torch's global generator is used: module initialisers know no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        model = call_factory("model.options", factory, schema, **options)
    if not isinstance(model, MultimodalModel):
        raise ConfigError(f"`model.name` must build a MultimodalModel, got {type(model).__name__}")
    if model.modalities != tuple(schema.modalities):
        raise ConfigError(
            f"`model.name` must build a model of the modalities {list(schema.modalities)}, in that order, "
            f"got {list(model.modalities)}"
        )
    return model
