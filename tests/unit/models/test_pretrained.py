"""ViT and BERT: from a local folder without a network, frozen, whole or by low-rank adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import ArrayModality
from fedfair.models import FrozenEncoder, MultimodalModel, adapters
from tests.unit.models.cases import (
    NOTE,
    PRETRAINED,
    SCAN,
    STORED,
    Case,
    batch_of,
    marked,
    model_from,
    model_of,
    needs_peft,
    needs_transformers,
    shake,
)

pytestmark = needs_transformers

both = pytest.mark.parametrize("kind", ["vit", "bert"])


def features(model: MultimodalModel, value: Tensor) -> Tensor:
    encoder = model.encoders["own"]
    found: Tensor = encoder.precompute(value) if isinstance(encoder, FrozenEncoder) else encoder[0](value)
    return found.detach()


@pytest.mark.usefixtures("offline")
def test_stored_vit_reads_images_as_its_library_does(saved: Callable[..., Any]) -> None:
    network, folder = saved("vit")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    images = batch_of(STORED["vit"], torch.float32).modalities["own"]
    pixels = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    wanted = network(pixel_values=pixels).last_hidden_state[:, 0]
    # Other kernels of attention: float32.
    torch.testing.assert_close(features(model_from(folder, "vit"), images), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("offline")
def test_stored_bert_reads_words_as_its_library_does(saved: Callable[..., Any]) -> None:
    network, folder = saved("bert")
    words = batch_of(NOTE, torch.float32).modalities["own"][[0, 2]]
    assert not words[1, -1], "one text is shorter"
    tokens = [row[row > 0] - 1 for row in words]
    wanted = torch.cat([network(input_ids=own[None]).last_hidden_state[:, 0] for own in tokens])
    torch.testing.assert_close(features(model_from(folder, "bert"), words), wanted, rtol=1e-5, atol=1e-5)


def test_a_grey_image_is_one_of_equal_channels_and_half_is_the_mean() -> None:
    grey, colour = (
        model_of(Case(ArrayModality((c, 32, 32)), PRETRAINED["vit-all"].choice))[0] for c in (1, 3)
    )
    image = torch.rand(2, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = features(grey, image)
    assert torch.equal(one, features(colour, image.expand(-1, 3, -1, -1)))
    network = grey.encoders["own"][0].network
    wanted = network(pixel_values=(2 * image - 1).expand(-1, 3, -1, -1)).last_hidden_state[:, 0]
    torch.testing.assert_close(one, wanted.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(70, 131), (20, 24)])
def test_an_image_of_another_size_is_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    model, _ = model_of(PRETRAINED["vit-all"])
    image = np.random.default_rng(0).random(shape, np.float32)
    resized = np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    wanted, found = (features(model, torch.from_numpy(x).double()[None, None]) for x in (resized, image))
    # Pillow computes in float32.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tune", ["all", "frozen"])
def test_a_volume_is_pooled_over_its_slices_by_the_same_attention(tune: str) -> None:
    model, blocks = model_of(PRETRAINED[f"vit-slices-{tune}"])
    shake(blocks)
    volume = batch_of(SCAN).modalities["own"]
    encoder = model.encoders["own"]
    images = encoder.frozen.images if tune == "frozen" else encoder.features.images
    slices = [images(volume[:, [s]]) for s in range(SCAN.shape[0])]
    wanted = encoder.pool(encoder.project(torch.stack(slices, 1)), (volume != 0).flatten(2).any(2))
    torch.testing.assert_close(encoder(volume), wanted, rtol=1e-6, atol=1e-6)
    shuffled = encoder(volume[:, [2, 0, 1]])
    torch.testing.assert_close(shuffled, encoder(volume), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", marked(PRETRAINED))
def test_what_is_frozen_is_in_no_block_and_in_no_file(name: str) -> None:
    model, blocks = model_of(PRETRAINED[name])
    encoder = model.encoders["own"]
    own = dict(encoder.named_parameters())
    assert sum(p.numel() for p in own.values()) == len(blocks.vectors["encoder/own"])
    assert list(encoder.state_dict()) == list(own)
    inside = [key for key in own if ".network." in f".{key}"]
    if name.endswith("frozen"):
        assert inside == []
    elif name.endswith("lora"):
        # Queries and values of two layers, each with A and B of rank 2 at width 16, and values of 2 groups.
        values = 2 if name.endswith("fair_lora") else 0
        assert len(inside) == 4 * (2 + (values > 0))
        assert sum(own[key].numel() for key in inside) == 4 * 2 * (16 + 16 + values)
    else:
        assert len(inside) > 30
        assert not any("lora" in key or "pooler" in key for key in inside)


@pytest.mark.parametrize("name", marked(PRETRAINED))
def test_only_the_blocks_move_the_model(name: str) -> None:
    model, blocks = model_of(PRETRAINED[name])
    frozen = {key: value.clone() for key, value in model.named_buffers()}
    shake(blocks)
    again, other = model_of(PRETRAINED[name])
    other.load(blocks.snapshot())
    assert all(torch.equal(value, frozen[key]) for key, value in model.named_buffers())
    batch = batch_of(PRETRAINED[name].spec)
    assert torch.equal(model(batch), again(batch)), "blocks and seed are the whole model"


@needs_peft
@both
def test_adapters_start_as_nothing_and_are_a_low_rank_change_of_the_weights(
    kind: str, saved: Callable[..., Any]
) -> None:
    _, folder = saved(kind)
    value = batch_of(STORED[kind], torch.float32).modalities["own"]
    plain = model_from(folder, kind)
    assert adapters(plain) == {}
    model = model_from(folder, kind, tune="lora", rank=2, alpha=6)
    assert torch.equal(features(model, value), features(plain, value))
    shake(ParameterBlocks(model))
    assert (features(model, value) - features(plain, value)).abs().max() > 1e-2
    found = adapters(model)
    assert len(found) == 4
    for name, adapter in found.items():
        assert (tuple(adapter.A.shape), tuple(adapter.B.shape), adapter.scale) == ((2, 16), (16, 2), 3.0)
        assert adapter.A.requires_grad
        assert adapter.B.requires_grad
        layer = plain.get_submodule(name.replace("encoders.own.0.", "encoders.own.frozen."))
        layer.weight += adapter.scale * (adapter.B @ adapter.A).detach()
    torch.testing.assert_close(features(plain, value), features(model, value), rtol=1e-4, atol=1e-5)


@needs_peft
def test_targets_choose_the_layers() -> None:
    options = {**PRETRAINED["bert-lora"].choice, "targets": ["dense"]}
    names = [name.rpartition(".")[2] for name in adapters(model_of(Case(NOTE, options))[0])]
    assert names == ["dense"] * 6


@both
def test_stored_dropout_is_off(kind: str, saved: Callable[..., Any]) -> None:
    _, folder = saved(kind, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = model_from(folder, kind, tune="all").train()
    value = batch_of(STORED[kind], torch.float32).modalities["own"]
    assert torch.equal(features(model, value), features(model, value))


@both
def test_loading_is_silent_and_leaves_the_library_s_settings(
    kind: str, saved: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging  # noqa: PLC0415 - not installed everywhere

    _, folder = saved(kind)
    capfd.readouterr()
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        model_from(folder, kind)
        assert capfd.readouterr() == ("", "")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before)
