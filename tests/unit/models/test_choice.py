"""Which encoder a modality gets: by its kind, or by name; the parameters that earlier runs had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fedfair.data.schema import ArrayModality, Schema
from fedfair.errors import ConfigError
from fedfair.models import MultimodalModel, build_model
from fedfair.models.encoders import VolumeEncoder, WordEncoder
from fedfair.models.encoders._plain import he_started
from fedfair.seeding import derive_seed
from tests.unit.models.cases import IMAGE, NOTE, TABLE, VOLUME, batch_of, schema_of

SCHEMA = replace(
    schema_of(TABLE),
    modalities={
        "table": TABLE,
        "vector": ArrayModality((4,)),
        "image": IMAGE,
        "volume": VOLUME,
        "text": NOTE,
    },
)


def build(schema: Schema = SCHEMA, **options: Any) -> MultimodalModel:
    return build_model("late_fusion", schema, options, 0)


def test_the_kind_of_a_modality_gives_its_encoder() -> None:
    encoders = build().encoders
    assert [type(module) for module in encoders["table"]] == [nn.Linear, nn.ReLU] * 2
    assert [type(module) for module in encoders["vector"]] == [nn.Linear, nn.ReLU] * 2
    assert isinstance(encoders["image"][1], nn.Conv2d)
    assert isinstance(encoders["volume"], VolumeEncoder)
    assert isinstance(encoders["text"], WordEncoder)


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_all_kinds_fit_in_one_model(fusion: str) -> None:
    model = build(replace(SCHEMA, modalities={**SCHEMA.modalities}), fusion=fusion, embedding_dim=6)
    batches = [batch_of(spec, torch.float32) for spec in SCHEMA.modalities.values()]
    whole = replace(
        batches[0],
        modalities={name: b.modalities["own"] for name, b in zip(SCHEMA.modalities, batches, strict=True)},
        present=torch.stack([b.present[:, 0] for b in batches], 1),
    )
    assert [tuple(z.shape) for z in model.encode(whole)] == [(3, 6)] * 5
    assert torch.isfinite(model(whole)).all()


def test_tables_and_images_keep_the_parameters_of_earlier_runs() -> None:
    """Names, order and draws: encoders, heads, the fusion; but convolutions, by PyTorch's own start."""
    schema = replace(SCHEMA, modalities={"table": TABLE, "image": IMAGE})
    found = build_model("late_fusion", schema, {"hidden": [7], "embedding_dim": 4}, 5).state_dict()
    torch.manual_seed(derive_seed(5, "model"))
    layers = {
        "encoders.table.0": nn.Linear(5, 7),
        "encoders.table.2": nn.Linear(7, 4),
        "encoders.image.1": he_started(nn.Conv2d(2, 7, 3)),
        "encoders.image.5": nn.Linear(7 * 16, 4),
        "heads.table.body.0": nn.Linear(4, 4),
        "heads.table.classifier": nn.Linear(4, 2),
        "heads.image.body.0": nn.Linear(4, 4),
        "heads.image.classifier": nn.Linear(4, 2),
        "fusion.classifier": nn.Linear(4, 2),
    }
    wanted = {f"{name}.{key}": p for name, layer in layers.items() for key, p in layer.named_parameters()}
    wanted |= {f"fusion.missing.{m}.weight": torch.zeros(4) for m in range(2)}
    last = nn.Linear(8, 4)
    wanted |= {"fusion.body.0.weight": last.weight, "fusion.body.0.bias": last.bias}
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_widths_of_one_encoder_stand_above_those_of_all() -> None:
    model = build(
        hidden=[3],
        hidden_by_modality={"image": [4], "volume": [5]},
        encoders={"volume": {"name": "slices", "hidden": [6, 7]}, "text": {"hidden": [8]}},
    )
    assert model.encoders["table"][0].out_features == 3
    assert model.encoders["image"][1].out_channels == 4
    volume = model.encoders["volume"].features.layers
    assert [layer.out_channels for layer in volume if isinstance(layer, nn.Conv3d)] == [6, 7]
    assert model.encoders["text"].vectors.embedding_dim == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": {"imaeg": {}}}, r"`model.options.encoders`.*'imaeg'; did you mean `image`\?"),
        ({"encoders": {"image": "cnn"}}, r"`model.options.encoders.image` must be a mapping, got 'cnn'"),
        ({"encoders": ["image"]}, r"`model.options.encoders` must be a mapping"),
        (
            {"encoders": {"image": {"name": "cn"}}},
            r"encoders.image: `name` .*\['cnn', 'vit'\], .*ArrayModality, got 'cn'; did you mean `cnn`\?",
        ),
        ({"encoders": {"text": {"name": "slices"}}}, r"encoders.text: .*one of \['words', 'bert'\]"),
        ({"encoders": {"text": {"name": ["words"]}}}, r"encoders.text: `name` must be one of"),
        ({"encoders": {"volume": {"hiden": [3]}}}, r"encoders.volume: `options`.*did you mean `hidden`\?"),
        ({"encoders": {"volume": {"hidden": [0]}}}, r"encoders.volume: `hidden` must be a list of integers"),
        ({"encoders": {"volume": {"hidden": 3}}}, r"encoders.volume: `hidden` must be a list of integers"),
        ({"hidden_by_modality": {"text": [2.5]}}, r"encoders.text: `hidden` must be a list of integers"),
        ({"hidden_by_modality": {"txt": [2]}}, r"`model.options.hidden_by_modality`.*did you mean `text`\?"),
        ({"encoders": {"image": {"name": "vit", "hidden": [3]}}}, r"encoders.image: .*Pretrained"),
    ],
)
def test_a_bad_option_is_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        build(**options)
    assert "\n" not in str(refused.value)
