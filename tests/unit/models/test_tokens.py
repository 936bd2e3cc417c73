"""Texts as the numbers that BERT reads, by its own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfair.data.encode import to_batch
from fedfair.data.schema import SiteRecords, TextModality
from fedfair.errors import DataError
from fedfair.models.encoders import tokenize
from tests.unit.models.cases import (
    BERT,
    NOTE,
    PRETRAINED,
    Case,
    model_of,
    needs_transformers,
    schema_of,
)

pytestmark = needs_transformers

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cup", "disc", "ratio", "0", ".", "8", "##s"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Return a folder with the tokenizer of a dozen tokens."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("offline")
def test_tokens_are_those_of_the_network_plus_one(tokenizer: Path) -> None:
    modality = TextModality(6, len(VOCABULARY) + 1)
    texts = ["Cups", None, "  ", "disc", "cup disc ratio 0.8"]
    found = tokenize(texts, str(tokenizer), modality)
    nan = np.nan
    start, end = VOCABULARY.index("[CLS]") + 1, VOCABULARY.index("[SEP]") + 1
    number = {token: 1 + i for i, token in enumerate(VOCABULARY)}
    wanted = [
        [start, number["cup"], number["##s"], end, nan, nan],
        [nan] * 6,
        [nan] * 6,
        [start, number["disc"], end, nan, nan, nan],
        [start, number["cup"], number["disc"], number["ratio"], number["0"], end],  # cut, its end kept
    ]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))
    assert found.dtype == np.float32


def test_tokens_pass_through_the_schema_to_the_network(tokenizer: Path) -> None:
    modality = TextModality(6, len(VOCABULARY) + 1)
    schema = schema_of(modality)
    note = tokenize(["cup", None], str(tokenizer), modality)
    table = np.zeros((2, 2), np.float32)
    records = SiteRecords({"own": note, "lab": table}, np.array([0, 1]), {"sex": np.array([0, 1])})
    batch = to_batch(records, schema, {"lab": np.array([[0.0], [1.0]])}, np.zeros(2, np.int64))
    assert batch.present[:, 0].tolist() == [True, False]
    choice = {**PRETRAINED["bert-frozen"].choice, "config": {**BERT, "vocab_size": len(VOCABULARY)}}
    model, _ = model_of(Case(modality, choice))
    assert torch.isfinite(model.encoders["own"](batch.modalities["own"])).all()


@pytest.mark.parametrize("vocabulary", [len(VOCABULARY), len(VOCABULARY) + 2])
def test_a_vocabulary_that_is_not_the_tokenizer_s_is_refused(tokenizer: Path, vocabulary: int) -> None:
    with pytest.raises(DataError, match=f"`vocabulary` must be {len(VOCABULARY) + 1}"):
        tokenize(["cup"], str(tokenizer), TextModality(6, vocabulary))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`path` must be a folder with a tokenizer"):
        tokenize(["cup"], str(tmp_path), NOTE)
