"""Weights, options and libraries that do not fit are refused, each in one sentence."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfair.data.schema import ArrayModality, TextModality, VolumeModality
from fedfair.errors import ConfigError, DataError, MissingDependency
from fedfair.models import build_model
from fedfair.models.encoders import tokenize
from fedfair.models.encoders._weights import Pretrained, load_network
from tests.unit.models.cases import (
    BERT,
    COLOUR,
    NOTE,
    PHOTO,
    PRETRAINED,
    VIT,
    Case,
    model_from,
    model_of,
    needs_peft,
    needs_transformers,
    schema_of,
)

pytestmark = needs_transformers


def test_the_checksum_of_the_weights_is_compared(saved: Callable[..., Any]) -> None:
    _, folder = saved("bert")
    own = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    model_from(folder, "bert", sha256=own)
    with pytest.raises(ConfigError, match=f"`sha256` must be that of .*{own}, got '0000'"):
        model_from(folder, "bert", sha256="0000")


def spoil(folder: Path, how: str) -> None:
    import safetensors.torch  # noqa: PLC0415 - not installed everywhere

    weights, config = folder / "model.safetensors", folder / "config.json"
    settings = json.loads(config.read_text())
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif how == "a weight missing":
        kept = safetensors.torch.load_file(weights)
        kept.pop(next(name for name in kept if "query.weight" in name))
        safetensors.torch.save_file(kept, weights, {"format": "pt"})
    elif how == "another width":
        config.write_text(json.dumps({**settings, "hidden_size": 8}))
    elif how == "a width that is none":
        config.write_text(json.dumps({**settings, "hidden_size": "x"}))
    elif how == "another network":
        config.write_text(json.dumps({**settings, "model_type": "gpt2"}))
    elif how == "no json":
        config.write_text("{")
    else:
        (folder / "preprocessor_config.json").write_text(how)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        ("bert", "no weights", r"without model.safetensors"),
        ("bert", "cut weights", r"readable weights"),
        ("bert", "a weight missing", r"all weights.*query.weight"),
        ("bert", "another width", r"readable weights"),
        ("bert", "a width that is none", r"readable weights"),
        ("bert", "another network", r"weights of encoder bert, got a 'gpt2'"),
        ("bert", "no json", r"readable config.json"),
        ("vit", '{"image_mean": [0.5, 0.5]}', r"must have 3 means and deviations"),
        ("vit", '{"image_std": [0.5, 0.5, 0]}', r"`image_std` must be a finite number in \[1e-06, inf\]"),
        ("vit", "[]", r"`preprocessor_config.json` must be a mapping"),
    ],
)
def test_a_spoilt_folder_is_refused(kind: str, how: str, message: str, saved: Callable[..., Any]) -> None:
    _, folder = saved(kind)
    spoil(folder, how)
    with pytest.raises(ConfigError, match=f"model.options.encoders.own: .*{message}") as refused:
        model_from(folder, kind)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("offline")
def test_a_name_on_a_hub_is_no_folder() -> None:
    with pytest.raises(ConfigError, match="`path` must be a folder with config.json"):
        model_from("google-bert/bert-base-uncased", "bert")
    with pytest.raises(DataError, match="`path` must be a folder with a tokenizer"):
        tokenize(["cup"], "google-bert/bert-base-uncased", NOTE)


@pytest.mark.parametrize(
    ("spec", "choice", "message"),
    [
        (PHOTO, {"name": "vit"}, r"either `path` or `config`, got None and None"),
        (PHOTO, {"name": "vit", "path": "x", "config": VIT}, r"either `path` or `config`"),
        (PHOTO, {"name": "vit", "config": {"hiden_size": 8}}, r"hiden_size.*did you mean `hidden_size`\?"),
        (PHOTO, {"name": "vit", "config": {**VIT, "hidden_size": "x"}}, r"`config` must describe a network"),
        (NOTE, {"name": "bert", "config": {**BERT, "hidden_size": 0}}, r"`config` must describe a network"),
        (NOTE, {"name": "bert", "config": {**BERT, "num_attention_heads": 3}}, r"`config` must describe"),
        (PHOTO, {"name": "vit", "config": VIT, "tune": "frozn"}, r"`tune`.*did you mean `frozen`\?"),
        (PHOTO, {"name": "vit", "config": VIT, "path_": 1}, r"did you mean `path`\?"),
        (ArrayModality((2, 32, 32)), {"name": "vit", "config": VIT}, r"1 or 3 channels, got 2"),
        (TextModality(13, 30), {"name": "bert", "config": BERT}, r"at most 12 words.*got length 13"),
        (TextModality(8, 42), {"name": "bert", "config": BERT}, r"numbered up to 40.*vocabulary 42"),
    ],
)
def test_a_bad_option_is_refused_in_one_sentence(spec: Any, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model.options.encoders.own: .*{message}") as refused:
        model_of(Case(spec, choice))
    assert "\n" not in str(refused.value)


@needs_peft
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rank": 0}, r"`rank` must be an integer of at least 1"),
        ({"alpha": "x"}, r"`alpha` must be a finite number"),
        ({"targets": ["qurey"]}, r"'qurey'; did you mean `query`\?"),
        ({"targets": "query"}, r"`targets` must be a list"),
    ],
)
def test_a_bad_adapter_is_refused_in_one_sentence(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        model_of(Case(NOTE, {**PRETRAINED["bert-lora"].choice, **option}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_a_missing_library_is_named_with_what_to_install(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=rf"`{library}`: pip install 'fedfair\[pretrained\]'"):
        model_of(PRETRAINED["bert-lora"])


def test_other_encoders_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("transformers", "peft", "safetensors"):
        monkeypatch.setitem(sys.modules, library, None)
    for spec in (PHOTO, NOTE, COLOUR, VolumeModality((2, 4, 4))):
        build_model("late_fusion", schema_of(spec), {}, 0)


def test_a_hash_of_no_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="`sha256` must be left out without `path`"):
        load_network("vit", Pretrained(config={"hidden_size": 8}, sha256="abc"))
