"""Networks of the library transformers: from a local folder, or with random weights; never from a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedfair.data.options import as_integer, as_mapping, as_number, as_text, as_texts
from fedfair.errors import ConfigError, nearest
from fedfair.models.encoders._adapters import add_adapters, freeze, pretrained_module

CLASSES = {"vit": "ViT", "bert": "Bert"}
TARGETS = {"vit": ("q_proj", "v_proj"), "bert": ("query", "value")}
FROZEN = "frozen"
FAIR_LORA = "fair_lora"
ADAPTED = ("lora", FAIR_LORA)
TUNE = (FROZEN, "all", *ADAPTED)
WEIGHTS = "model.safetensors"

# Dropout would make statistics and gradients by record random, and `eager` is the attention that is
# the same sum on every device.
_FIXED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}


@dataclass(frozen=True)
class Pretrained:
    """Options of a network: where its weights come from, and which of them learn.

    Attributes
    ----------
    path : str | None
        A folder with config.json and model.safetensors, as ``save_pretrained`` writes it.
    config : Mapping[str, object] | None
        In place of a path: keys of the network's configuration; the weights are random.
    sha256 : str | None
        Of model.safetensors, checked if given: frozen weights are not sent, so all sites must have the same.
    tune : str
        ``frozen``, ``all``, or adapters at the linear layers that `targets` names: ``lora``, or
        ``fair_lora``, whose singular values belong to the groups of `attribute`.
    rank, alpha : int, float
        An adapter adds alpha / rank * B A to a weight, A having `rank` rows.
    targets : Sequence[str] | None
        Last parts of layers' names; None for queries and values.
    attribute : str | None
        An attribute or a crossing, with ``fair_lora`` and only with it.

    Raises
    ------
    ConfigError
        If `tune` is unknown, or `attribute` does not go with it.
    """

    path: str | None = None
    config: Mapping[str, object] | None = None
    sha256: str | None = None
    tune: str = FROZEN
    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] | None = None
    attribute: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.tune not in TUNE:
            raise ConfigError(
                f"`tune` must be one of {list(TUNE)}, got {self.tune!r}{nearest(str(self.tune), TUNE)}"
            )
        if (self.tune == FAIR_LORA) != (self.attribute is not None):
            raise ConfigError(
                f"`attribute` must be given with `tune: {FAIR_LORA}` and left out otherwise, got "
                f"{self.attribute!r} with `tune: {self.tune}`"
            )


def load_network(kind: str, options: Pretrained) -> nn.Module:
    """Return a network without its pooling layer, ``vit`` or ``bert``; what does not learn is a buffer.

    Raises
    ------
    ConfigError, MissingDependency
        If the folder or an option does not fit, or a library is not installed.
    """
    path, config = options.path, options.config
    if (path is None) == (config is None):
        raise ConfigError(f"encoder {kind} must have either `path` or `config`, got {path!r} and {config!r}")
    if path is None and options.sha256 is not None:
        raise ConfigError(
            f"`sha256` must be left out without `path`, got {options.sha256!r}: no file is read"
        )
    library = pretrained_module("transformers")
    network, settings = (getattr(library, CLASSES[kind] + part) for part in ("Model", "Config"))
    if path is None:
        return _tuned(kind, _random(network, settings, as_mapping(config, "config")), options)
    folder = Path(as_text(path, "path"))
    _check_folder(kind, folder, options.sha256)
    with quiet():
        return _tuned(kind, _stored(network, folder), options)


def _tuned(kind: str, network: nn.Module, options: Pretrained) -> nn.Module:
    if options.tune in ADAPTED:
        targets = TARGETS[kind] if options.targets is None else as_texts(options.targets, "targets")
        rank, alpha = as_integer(options.rank, "rank", 1), as_number(options.alpha, "alpha", 0)
        network = add_adapters(network, rank, alpha, targets)
    else:
        network.requires_grad_(options.tune == "all")
    freeze(network)
    return network


def _random(network: type[nn.Module], settings: type, config: Mapping[str, object]) -> nn.Module:
    known = settings().to_dict()
    for key in config:
        if key not in known:
            raise ConfigError(f"`config.{key}` is not a known key{nearest(key, known)}")
    try:
        return network(settings(**{**config, **_FIXED}), add_pooling_layer=False)
    except _misfits() as error:
        raise ConfigError(f"`config` must describe a network, got {dict(config)} ({_line(error)})") from error


def _check_folder(kind: str, folder: Path, sha256: str | None) -> None:
    for name in ("config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(
                f"`path` must be a folder with config.json and {WEIGHTS}, got {folder} without {name}; "
                "write it with `save_pretrained`"
            )
    found = read_json(folder / "config.json").get("model_type")
    if found != kind:
        raise ConfigError(f"`path` must hold weights of encoder {kind}, got a {found!r} in {folder}")
    if sha256 is not None and (own := _digest(folder / WEIGHTS)) != sha256:
        raise ConfigError(f"`sha256` must be that of {folder / WEIGHTS}, {own}, got {sha256!r}")


def read_json(file: Path) -> Mapping[str, object]:
    """Return what a file of settings says.

    Raises
    ------
    ConfigError
        If it is not readable JSON.
    """
    try:
        return as_mapping(json.loads(file.read_text(encoding="utf-8")), file.name)
    except ValueError as error:
        raise ConfigError(f"`path` must hold a readable {file.name}, got {_line(error)!r}") from error


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stored(network: type[nn.Module], folder: Path) -> nn.Module:
    try:
        # Pickled weights could run code, so only safetensors are read.
        loaded, report = network.from_pretrained(  # type: ignore[attr-defined]
            folder,
            add_pooling_layer=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **_FIXED,
        )
    except _misfits() as error:
        raise ConfigError(f"`path` must hold readable weights, got {folder} ({_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"`path` must hold all weights, got {folder} without {missing[0]}")
    trained: nn.Module = loaded
    return trained


def _misfits() -> tuple[type[Exception], ...]:
    """Return what the libraries raise where a configuration or weights do not fit."""
    broken: type[Exception] = pretrained_module("safetensors").SafetensorError
    refused: type[Exception] = pretrained_module("huggingface_hub.errors").StrictDataclassError
    return (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError, broken, refused)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and the report of unused weights off the terminal."""
    log = pretrained_module("transformers.utils.logging")
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
