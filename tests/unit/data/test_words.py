"""Words as numbers: the same everywhere, whatever the case."""

from __future__ import annotations

import zlib

import numpy as np

from fedfair.data.schema import TextModality
from fedfair.data.words import to_words

MODALITY = TextModality(4, 1000)


def number(word: str) -> int:
    return 1 + zlib.crc32(word.encode("utf-8")) % 999


def test_a_word_has_the_number_of_its_hash() -> None:
    raw = to_words(["C/D 0.65, patient's", "ÖDEM _x_"], MODALITY)
    assert raw[0].tolist() == [number("c"), number("d"), number("0.65"), number("patient's")]
    assert raw[1, :2].tolist() == [number("ödem"), number("x")]
    assert np.isnan(raw[1, 2:]).all()


def test_a_long_text_is_cut_and_no_text_is_missing() -> None:
    raw = to_words(["a b c d e f", None, "", " -- "], MODALITY)
    assert raw[0].tolist() == [number(w) for w in "abcd"]
    assert np.isnan(raw[1:]).all()


def test_every_number_is_a_word_of_the_vocabulary() -> None:
    raw = to_words([" ".join(map(str, range(k, k + 4))) for k in range(0, 4000, 4)], TextModality(4, 2))
    assert (raw == 1).all()
