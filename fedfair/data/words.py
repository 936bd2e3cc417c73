"""Texts as numbers of words, by a hash that every site computes alike: there is no vocabulary to share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedfair.data.schema import TextModality

_WORD = re.compile(r"[^\W_]+(?:[.'][^\W_]+)*")


def to_words(texts: Sequence[str | None], modality: TextModality) -> NDArray[np.float32]:
    """Return texts as raw values of a modality.

    A word is a run of letters and digits, whatever its case, with points and apostrophes inside ("0.65",
    "patient's"). Its number is ``1 + CRC-32(word) mod (vocabulary - 1)``, so that different words may
    share one (feature hashing: Weinberger et al., ICML 2009).

    Parameters
    ----------
    texts : Sequence[str | None]
        n texts; None, and a text without a word, is missing.
    modality : TextModality
        Its length cuts longer texts.

    Returns
    -------
    NDArray[np.float32]
        [n, length], NaN after the last word.
    """
    raw = np.full((len(texts), modality.length), np.nan, np.float32)
    for row, text in zip(raw, texts, strict=True):
        words = _WORD.findall((text or "").casefold())[: modality.length]
        row[: len(words)] = [1 + zlib.crc32(word.encode()) % (modality.vocabulary - 1) for word in words]
    return raw
