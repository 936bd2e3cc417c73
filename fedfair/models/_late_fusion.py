"""The built-in model: an encoder chosen by each modality's kind or name, heads, and a fusion network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from fedfair.data.options import as_mapping
from fedfair.data.schema import Schema
from fedfair.errors import ConfigError, nearest
from fedfair.models._base import Head, MultimodalModel
from fedfair.models._fusion import AttentionFusion, ConcatFusion
from fedfair.models.encoders import are_widths, build_encoder

FUSIONS = {"concat": ConcatFusion, "attention": AttentionFusion}


def late_fusion(
    schema: Schema,
    hidden: Sequence[int] = (16,),
    embedding_dim: int = 16,
    fusion: str = "concat",
    hidden_by_modality: Mapping[str, Sequence[int]] | None = None,
    encoders: Mapping[str, Mapping[str, object]] | None = None,
) -> MultimodalModel:
    """Return a late-fusion model for any schema.

    A table or vector gets an MLP, an image [channels, height, width] a small CNN, a volume that CNN on each
    slice with attention over the slices, a text the mean of its word vectors.

    Parameters
    ----------
    schema : Schema
        Gives the modalities, their encoded shapes, the number of classes and the attributes.
    hidden : Sequence[int]
        Hidden widths of every encoder that has some (channels for a CNN).
    embedding_dim : int
        p, also the feature width of fusion and heads, so that their last layers have one shape.
    fusion : str
        ``concat`` or ``attention``.
    hidden_by_modality : Mapping[str, Sequence[int]] | None
        Overrides `hidden` for some modalities.
    encoders : Mapping[str, Mapping[str, object]] | None
        For some modalities, the `name` of another encoder and its options: see `encoders.ENCODERS`.

    Raises
    ------
    ConfigError
        If a name is unknown, an option does not fit, or a modality has no built-in encoder.
    """
    if fusion not in FUSIONS:
        raise ConfigError(f"`model.options.fusion` must be one of {list(FUSIONS)}, got {fusion!r}")
    widths = _by_modality("hidden_by_modality", hidden_by_modality, schema)
    chosen = _by_modality("encoders", encoders, schema)
    for width in (hidden, [embedding_dim]):
        if not are_widths(width):
            raise ConfigError(
                "`model.options.hidden` must be a list of integers of at least 1, and `embedding_dim` such "
                f"an integer, got {width!r}"
            )
    built = {
        name: build_encoder(
            name, spec, embedding_dim, hidden, _choice(name, widths, chosen), schema.attributes
        )
        for name, spec in schema.modalities.items()
    }
    classes = len(schema.classes)
    heads = {name: _head(embedding_dim, classes) for name in schema.modalities}
    count = len(schema.modalities)
    join = FUSIONS[fusion](count, embedding_dim, embedding_dim, classes)
    return MultimodalModel(built, heads, join)


def _by_modality(option: str, value: object, schema: Schema) -> Mapping[str, object]:
    """Return an option that maps modalities of the data to anything; refused otherwise."""
    where = f"model.options.{option}"
    found = as_mapping({} if value is None else value, where)
    for name in found:
        if name not in schema.modalities:
            raise ConfigError(
                f"`{where}` must name modalities of the data, got {name!r}{nearest(name, schema.modalities)}"
            )
    return found


def _choice(name: str, widths: Mapping[str, object], chosen: Mapping[str, object]) -> Mapping[str, object]:
    """Return the options of a modality's encoder; `hidden` may stand with the others or by itself."""
    own = as_mapping(chosen.get(name, {}), f"model.options.encoders.{name}")
    return {"hidden": widths[name], **own} if name in widths else own


def _head(embedding_dim: int, classes: int) -> Head:
    body = nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.ReLU())
    return Head(body, nn.Linear(embedding_dim, classes))
