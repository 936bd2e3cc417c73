"""ViT and BERT, through the library transformers: frozen, fine-tuned, or with low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedfair.data.crossing import Attributes
from fedfair.data.options import as_items, as_number, as_text
from fedfair.data.schema import ArrayModality, TextModality, VolumeModality
from fedfair.errors import ConfigError, DataError
from fedfair.models.encoders._adapters import by_group, pretrained_module
from fedfair.models.encoders._frozen import FrozenSlices, FrozenVector
from fedfair.models.encoders._plain import mlp
from fedfair.models.encoders._slices import VolumeEncoder
from fedfair.models.encoders._weights import FROZEN, Pretrained, load_network, quiet, read_json
from fedfair.plugins import call_factory


class VitFeatures(nn.Module):
    """A vision transformer's class token [B, width] of images [B, C, H, W] with values in [0, 1].

    Dosovitskiy et al. 2021, arXiv 2010.11929.

    Parameters
    ----------
    network : nn.Module
        A ViTModel.
    size : int
        Height and width of its images.
    mean, std : Sequence[float]
        Per channel: what its images were normalised with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.size = [size, size]
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features; other sizes are resized, one channel is repeated."""
        if not len(images):
            return _no_features(self.network)
        if list(images.shape[-2:]) != self.size:
            images = interpolate(images, self.size, mode="bilinear", antialias=True)
        pixels = (images - self.mean) / self.std
        features: Tensor = self.network(pixel_values=pixels).last_hidden_state[:, 0]
        return features


class EachSlice(nn.Module):
    """An encoder of images on each slice, [B, S, H, W] -> [B, S, width]."""

    def __init__(self, images: nn.Module) -> None:
        super().__init__()
        self.images = images

    def forward(self, volume: Tensor) -> Tensor:
        """Return the features of all slices, which pass as images of one channel."""
        features: Tensor = self.images(volume.flatten(0, 1)[:, None])
        return features.view(*volume.shape[:2], features.shape[-1])


class BertFeatures(nn.Module):
    """BERT's first token [B, width] of words, int64 [B, L]: token number + 1, 0 after the last.

    Devlin et al. 2019, arXiv 1810.04805.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, words: Tensor) -> Tensor:
        """Return the features; a text without words is one token, numbered 0, to keep them finite."""
        if not len(words):
            return _no_features(self.network)
        place = torch.arange(words.shape[1], device=words.device).expand_as(words)
        unseen = (words == 0) & (place > 0)
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros_like(words, dtype=torch.float32).masked_fill(unseen, lowest)
        hidden = self.network(
            input_ids=(words - 1).clamp_min(0),
            # As a bias on scores: the library builds it from a mask by branching on its values.
            attention_mask=bias[:, None, None].expand(-1, 1, words.shape[1], -1),
            position_ids=place,
            token_type_ids=torch.zeros_like(words),
        )
        features: Tensor = hidden.last_hidden_state[:, 0]
        return features


def _no_features(network: Any) -> Tensor:  # noqa: ANN401 - of a class of another library
    """Return features [0, width], of no records, which the library cannot compute."""
    final: Tensor = next(part.weight for part in network.modules() if isinstance(part, nn.LayerNorm))
    return final.new_zeros(0, len(final))


def vit(
    spec: ArrayModality | VolumeModality, out_dim: int, attributes: Attributes, /, **options: object
) -> nn.Module:
    """Return a ViT, then a linear layer and ReLU; on volumes each slice, pooled by attention.

    Parameters
    ----------
    spec : ArrayModality | VolumeModality
        Images of one channel or as many as the network has, or slices.
    out_dim : int
        p.
    attributes : Mapping[str, Sequence[str]]
        Group names by attribute, one of which `tune: fair_lora` may read.
    **options : object
        Of `Pretrained`. With a path, preprocessor_config.json there says how to normalise images.

    Raises
    ------
    ConfigError, MissingDependency
        If an option or the modality does not fit, or a library is not installed.
    """
    chosen = _options(options)
    network = load_network("vit", chosen)
    config: Any = network.config
    own = 1 if isinstance(spec, VolumeModality) else spec.shape[0]
    if own not in (1, config.num_channels):
        raise ConfigError(
            f"encoder vit must read 1 or {config.num_channels} channels, got {own}; use encoder cnn"
        )
    mean, std = _normalisation(chosen.path, config.num_channels)
    features = VitFeatures(network, config.image_size, mean, std)
    if not isinstance(spec, VolumeModality):
        return _reading(_before_mlp(features, config.hidden_size, out_dim, chosen), attributes, chosen)
    build = FrozenSlices if chosen.tune == FROZEN else VolumeEncoder
    return _reading(build(EachSlice(features), config.hidden_size, out_dim), attributes, chosen)


def bert(spec: TextModality, out_dim: int, attributes: Attributes, /, **options: object) -> nn.Module:
    """Return a BERT, then a linear layer and ReLU; its words are those of `tokenize`.

    Parameters
    ----------
    spec : TextModality
        At most as long as the network reads, and with at most one number more than it has tokens.
    out_dim : int
        p.
    attributes : Mapping[str, Sequence[str]]
        As for `vit`.
    **options : object
        Of `Pretrained`.

    Raises
    ------
    ConfigError, MissingDependency
        If an option or the modality does not fit, or a library is not installed.
    """
    chosen = _options(options)
    network = load_network("bert", chosen)
    config: Any = network.config
    most, tokens = config.max_position_embeddings, config.vocab_size
    if spec.length > most or spec.vocabulary > tokens + 1:
        raise ConfigError(
            f"encoder bert must read at most {most} words numbered up to {tokens}, got length {spec.length} "
            f"and vocabulary {spec.vocabulary}; number the words with `tokenize`"
        )
    encoder = _before_mlp(BertFeatures(network), config.hidden_size, out_dim, chosen)
    return _reading(encoder, attributes, chosen)


def _options(options: Mapping[str, object]) -> Pretrained:
    return cast(Pretrained, call_factory("options", Pretrained, **options))


def _before_mlp(features: nn.Module, width: int, out_dim: int, chosen: Pretrained) -> nn.Module:
    build = FrozenVector if chosen.tune == FROZEN else nn.Sequential
    return build(features, mlp(width, (), out_dim))


def _reading(encoder: nn.Module, attributes: Attributes, chosen: Pretrained) -> nn.Module:
    """Return the encoder, its adapters reading the attribute that was chosen, if one was."""
    if chosen.attribute is None:
        return encoder
    return by_group(encoder, attributes, as_text(chosen.attribute, "attribute"))


def tokenize(texts: Sequence[str | None], path: str, modality: TextModality) -> NDArray[np.float32]:
    """Return texts as raw values of a modality that encoder bert reads: token number + 1.

    Parameters
    ----------
    texts : Sequence[str | None]
        n texts; None, and a text of blanks, is missing.
    path : str
        The folder of the weights, with the tokenizer's files.
    modality : TextModality
        Its length cuts longer texts; its vocabulary is the number of tokens + 1.

    Returns
    -------
    NDArray[np.float32]
        [n, length], NaN after the last token.

    Raises
    ------
    DataError, MissingDependency
        If the tokenizer cannot be read or has another number of tokens, or transformers is not installed.
    """
    library = pretrained_module("transformers")
    try:
        if not Path(path).is_dir():  # else it would be looked for among downloads
            raise FileNotFoundError(path)
        with quiet():
            tokenizer = library.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"`path` must be a folder with a tokenizer, got {path}") from error
    if modality.vocabulary != len(tokenizer) + 1:
        raise DataError(
            f"`vocabulary` must be {len(tokenizer) + 1}, tokens and one, got {modality.vocabulary}"
        )
    raw = np.full((len(texts), modality.length), np.nan, np.float32)
    for row, text in zip(raw, texts, strict=True):
        if text and text.strip():
            tokens = tokenizer(text, truncation=True, max_length=modality.length)["input_ids"]
            row[: len(tokens)] = np.add(tokens, 1)
    return raw


def _normalisation(path: str | None, channels: int) -> tuple[list[float], list[float]]:
    """Return the mean and deviation per channel that the weights were trained with."""
    file = None if path is None else Path(path) / "preprocessor_config.json"
    stored = read_json(file) if file is not None and file.is_file() else {}
    half = [0.5] * channels
    mean = [as_number(x, "image_mean") for x in as_items(stored.get("image_mean", half), "image_mean")]
    std = [as_number(x, "image_std", 1e-6) for x in as_items(stored.get("image_std", half), "image_std")]
    if not len(mean) == len(std) == channels:
        raise ConfigError(f"preprocessor_config.json must have {channels} means and deviations, got others")
    return mean, std
