"""The built-in model: an encoder chosen by each modality's shape, heads, and a fusion network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fedfair.data.schema import Modality, Schema
from fedfair.errors import ConfigError
from fedfair.models._base import Head, MultimodalModel
from fedfair.models._encoders import mlp, small_cnn
from fedfair.models._fusion import AttentionFusion, ConcatFusion

FUSIONS = {"concat": ConcatFusion, "attention": AttentionFusion}


def late_fusion(
    schema: Schema,
    hidden: Sequence[int] = (16,),
    embedding_dim: int = 16,
    fusion: str = "concat",
    hidden_by_modality: Mapping[str, Sequence[int]] | None = None,
) -> MultimodalModel:
    """Return a late-fusion model for any schema.

    A vector modality gets an MLP, an image modality [channels, height, width] a small CNN.

    Parameters
    ----------
    schema : Schema
        Gives the modalities, their encoded shapes and the number of classes.
    hidden : Sequence[int]
        Hidden widths of every encoder (channels for a CNN).
    embedding_dim : int
        p, also the feature width of fusion and heads, so that their last layers have one shape.
    fusion : str
        ``concat`` or ``attention``.
    hidden_by_modality : Mapping[str, Sequence[int]] | None
        Overrides `hidden` for some modalities.

    Raises
    ------
    ConfigError
        If a name is unknown or a modality's shape has no built-in encoder.
    """
    if fusion not in FUSIONS:
        raise ConfigError(f"`model.options.fusion` must be one of {list(FUSIONS)}, got {fusion!r}")
    overrides = dict(hidden_by_modality or {})
    if unknown := set(overrides) - set(schema.modalities):
        raise ConfigError(
            f"`model.options.hidden_by_modality` must name modalities of the data, got {sorted(unknown)}"
        )
    for width in (hidden, [embedding_dim], *overrides.values()):
        if not isinstance(width, Sequence) or not all(isinstance(w, int) and w >= 1 for w in width):
            raise ConfigError(
                "`model.options.hidden` must be a list of integers of at least 1, and `embedding_dim` such "
                f"an integer, got {width!r}"
            )
    encoders = {
        name: _encoder(name, spec, overrides.get(name, hidden), embedding_dim)
        for name, spec in schema.modalities.items()
    }
    classes = len(schema.classes)
    heads = {name: _head(embedding_dim, classes) for name in schema.modalities}
    count = len(schema.modalities)
    join = FUSIONS[fusion](count, embedding_dim, embedding_dim, classes)
    return MultimodalModel(encoders, heads, join)


def _head(embedding_dim: int, classes: int) -> Head:
    body = nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.ReLU())
    return Head(body, nn.Linear(embedding_dim, classes))


def _encoder(name: str, spec: Modality, hidden: Sequence[int], out_dim: int) -> nn.Module:
    shape = spec.shape
    if len(shape) == 1:
        return mlp(shape[0], hidden, out_dim)
    if len(shape) == 3:
        return small_cnn(shape[0], hidden, out_dim)
    raise ConfigError(
        f"modality `{name}` must be a vector or an image [channels, height, width] for the built-in model, "
        f"got shape {shape}; give your own model as `model.name: package.module:factory`"
    )
