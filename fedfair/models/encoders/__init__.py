"""Encoders: plain modules from one modality's inputs [B, ...] to an embedding [B, p], chosen by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from fedfair.data.crossing import Attributes
from fedfair.data.schema import ArrayModality, Modality, TableModality, TextModality, VolumeModality
from fedfair.errors import ConfigError, nearest
from fedfair.models.encoders._adapters import Adapter, adapters
from fedfair.models.encoders._plain import mlp, small_cnn
from fedfair.models.encoders._slices import SliceCnn, SlicePooling, VolumeEncoder
from fedfair.models.encoders._words import WordEncoder
from fedfair.models.encoders.pretrained import bert, tokenize, vit
from fedfair.plugins import call_factory

__all__ = [
    "ENCODERS",
    "Adapter",
    "Encoder",
    "SliceCnn",
    "SlicePooling",
    "VolumeEncoder",
    "WordEncoder",
    "adapters",
    "are_widths",
    "build_encoder",
    "mlp",
    "small_cnn",
    "tokenize",
]


@dataclass(frozen=True)
class Encoder:
    """The function that builds an encoder, and what it reads: kinds of modality with their number of axes."""

    build: Callable[..., nn.Module]
    reads: Collection[tuple[type, int]]

    def fits(self, spec: Modality) -> bool:
        """Return whether the encoder reads a modality."""
        return any(isinstance(spec, kind) and len(spec.shape) == axes for kind, axes in self.reads)


def vector_mlp(spec: TableModality | ArrayModality, out_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Return an MLP for a table or vector."""
    return mlp(spec.shape[0], hidden, out_dim)


def image_cnn(spec: ArrayModality, out_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Return a CNN for an image [channels, height, width]."""
    return small_cnn(spec.shape[0], hidden, out_dim)


def volume_slices(spec: VolumeModality, out_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Return a slice encoder for a volume, of any number of slices of any size."""
    del spec
    features = SliceCnn(hidden)
    return VolumeEncoder(features, features.width, out_dim)


def text_words(spec: TextModality, out_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Return a word encoder for a text."""
    return WordEncoder(spec.vocabulary, hidden, out_dim)


ENCODERS: Mapping[str, Encoder] = {
    "mlp": Encoder(vector_mlp, [(TableModality, 1), (ArrayModality, 1)]),
    "cnn": Encoder(image_cnn, [(ArrayModality, 3)]),
    "slices": Encoder(volume_slices, [(VolumeModality, 3)]),
    "words": Encoder(text_words, [(TextModality, 1)]),
    "vit": Encoder(vit, [(ArrayModality, 3), (VolumeModality, 3)]),
    "bert": Encoder(bert, [(TextModality, 1)]),
}
"""By name. A modality that names none gets the first that reads it."""


def are_widths(value: object) -> bool:
    """Return whether a value is a list of integers of at least 1."""
    return isinstance(value, Sequence) and all(isinstance(width, int) and width >= 1 for width in value)


def build_encoder(
    modality: str,
    spec: Modality,
    out_dim: int,
    hidden: Sequence[int],
    choice: Mapping[str, object],
    attributes: Attributes,
) -> nn.Module:
    """Return the encoder of a modality; vit and bert may be a `CellEncoder`.

    Parameters
    ----------
    modality, spec : str, Modality
        Its name and what its records are.
    out_dim : int
        p.
    hidden : Sequence[int]
        Hidden widths, unless `choice` gives some; vit and bert have none.
    choice : Mapping[str, object]
        The `name` of an encoder, unless it is the first that reads the modality, and options for it.
    attributes : Mapping[str, Sequence[str]]
        Group names by attribute, in the schema's order.

    Raises
    ------
    ConfigError, MissingDependency
        If the encoder or an option is unknown or does not fit, or a library is not installed.
    """
    try:
        return _build(spec, out_dim, hidden, choice, attributes)
    except ConfigError as error:
        raise ConfigError(f"model.options.encoders.{modality}: {error}") from error


def _build(
    spec: Modality,
    out_dim: int,
    hidden: Sequence[int],
    choice: Mapping[str, object],
    attributes: Attributes,
) -> nn.Module:
    fitting = [name for name, encoder in ENCODERS.items() if encoder.fits(spec)]
    if not fitting:
        raise ConfigError(
            "the modality must be a table, vector, image [channels, height, width], volume or text, got "
            f"shape {spec.shape}; give your own model as `model.name: package.module:factory`"
        )
    name = choice.get("name", fitting[0])
    if name not in fitting:
        raise ConfigError(
            f"`name` must be one of {fitting}, which read a {type(spec).__name__}, got {name!r}"
            f"{nearest(str(name), fitting)}"
        )
    build = ENCODERS[str(name)].build
    options = {key: value for key, value in choice.items() if key != "name"}
    takes = inspect.signature(build).parameters
    if "hidden" in takes:
        options.setdefault("hidden", hidden)
        if not are_widths(options["hidden"]):
            raise ConfigError(f"`hidden` must be a list of integers of at least 1, got {options['hidden']!r}")
    known = (attributes,) if "attributes" in takes else ()
    return cast(nn.Module, call_factory("options", build, spec, out_dim, *known, **options))
