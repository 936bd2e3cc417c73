"""One modality per encoder, in a model with a table beside it; tiny networks with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fedfair.batch import MultimodalBatch
from fedfair.blocks import ParameterBlocks
from fedfair.data.schema import (
    ArrayModality,
    Column,
    Modality,
    Schema,
    TableModality,
    TextModality,
    VolumeModality,
)
from fedfair.models import MultimodalModel, build_model
from fedfair.privacy.isolation import made_up_batch
from fedfair.seeding import torch_generator

GROUPS = 2
TRANSFORMERS = importlib.util.find_spec("transformers") is not None
PEFT = importlib.util.find_spec("peft") is not None

needs_transformers = pytest.mark.skipif(not TRANSFORMERS, reason="transformers is not installed")
needs_peft = pytest.mark.skipif(not (TRANSFORMERS and PEFT), reason="transformers or peft is not installed")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
BERT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 12}

TABLE = TableModality((Column("age"), Column("smoker", ("no", "yes", "former"))))
IMAGE = ArrayModality((2, 9, 7))
PHOTO = ArrayModality((1, 32, 32))
COLOUR = ArrayModality((3, 24, 40))
VOLUME = VolumeModality((5, 12, 10))
SCAN = VolumeModality((3, 20, 16))
NOTE = TextModality(8, 30)
STORED = {"vit": ArrayModality((3, 32, 32)), "bert": NOTE}


class Case(NamedTuple):
    """A modality, and the options of its encoder."""

    spec: Modality
    choice: Mapping[str, Any]


def pretrained(kind: str, tune: str) -> dict[str, Any]:
    choice = {"name": kind, "config": {"vit": VIT, "bert": BERT}[kind], "tune": tune, "rank": 2, "alpha": 4}
    return {**choice, "attribute": "sex"} if tune == "fair_lora" else choice


PLAIN = {
    "mlp": Case(TABLE, {}),
    "vector": Case(ArrayModality((5,)), {}),
    "cnn": Case(IMAGE, {}),
    "slices": Case(VOLUME, {"hidden": [5, 6]}),
    "words": Case(NOTE, {}),
}
PRETRAINED = {
    f"{label}-{tune}": Case(spec, pretrained(label.partition("-")[0], tune))
    for label, spec in (("vit", PHOTO), ("vit-resized", COLOUR), ("vit-slices", SCAN), ("bert", NOTE))
    for tune in ("frozen", "all", "lora", "fair_lora")
}
CASES = PLAIN | PRETRAINED


def marked(cases: Mapping[str, Case]) -> list[Any]:
    """Return the names as parameters of a test, those that need a library marked."""
    adapted = {"lora": needs_peft, "fair_lora": needs_peft}
    marks = adapted | {"frozen": needs_transformers, "all": needs_transformers}
    return [
        pytest.param(name, marks=[mark for end, mark in marks.items() if name.endswith(f"-{end}")])
        for name in cases
    ]


def schema_of(spec: Modality) -> Schema:
    attributes = {"sex": ("female", "male")}
    return Schema({"own": spec, "lab": TABLE}, ("healthy", "ill"), attributes, ("one",))


def model_of(case: Case, fusion: str = "concat", seed: int = 0) -> tuple[MultimodalModel, ParameterBlocks]:
    """Return a float64 model whose first modality has the encoder, and its blocks."""
    options = {"hidden": [6], "embedding_dim": 4, "fusion": fusion, "encoders": {"own": case.choice}}
    model = build_model("late_fusion", schema_of(case.spec), options, seed).double()
    return model, ParameterBlocks(model)


def shake(blocks: ParameterBlocks, scale: float = 0.2) -> None:
    """Move all parameters to where gradients do not vanish: adapters start at zero, a ReLU may be dead."""
    for name, vector in blocks.vectors.items():
        vector.add_(torch.randn(vector.shape, generator=torch_generator(2, name), dtype=vector.dtype) * scale)


def batch_of(spec: Modality, dtype: torch.dtype = torch.float64) -> MultimodalBatch:
    """Return three records: the second lacks the first modality, the third half its slices or words."""
    return made_up_batch(schema_of(spec), torch.zeros((), dtype=dtype), GROUPS)


def model_from(folder: Path | str, kind: str, spec: Any = None, **options: Any) -> MultimodalModel:
    choice = {"name": kind, "path": str(folder), **options}
    return model_of(Case(spec or STORED[kind], choice))[0].float()
