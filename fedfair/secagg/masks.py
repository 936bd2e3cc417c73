"""Masks: a ChaCha20 keystream read as words, uniform over the ring, added piece by piece.

The key has 256 bits and is used for one mask only. (A mask from a generator with a 32-bit state could
be found by trying all states.)
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

PIECE = 1 << 17  # bytes: a piece of the keystream stays in the cache
_ZEROS = bytes(PIECE)


def add_mask(words: Words, key: bytes, sign: int) -> None:
    """Add the mask of a key to `words` in place, or take it away.

    Parameters
    ----------
    words : Words
        [N] words of the ring; sums wrap around, as the ring wants it.
    key : bytes
        32 bytes, for this mask only.
    sign : int
        1 or -1.
    """
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    buffer = bytearray(PIECE)
    # Little-endian at every site, whatever its processor.
    mask = np.frombuffer(buffer, words.dtype.newbyteorder("<"))
    step = np.add if sign > 0 else np.subtract
    for start in range(0, len(words), len(mask)):
        piece = words[start : start + len(mask)]
        stream.update_into(memoryview(_ZEROS)[: piece.nbytes], buffer)
        step(piece, mask[: len(piece)], out=piece)
