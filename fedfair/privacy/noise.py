"""Secret random numbers of one site: the noise of its releases and the coins of its samples.

Whoever knows or repeats a site's noise can subtract it, so it comes from ChaCha20 under a key that
never leaves the process, not from the seeds of a run, which the server knows. The values are floating
point: this is a cryptographic source of Gaussians, not the exact discrete Gaussian mechanism.
"""

from __future__ import annotations

import hashlib
import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray
from torch import Tensor

from fedfair.errors import ConfigError, PrivacyError

# torch's CPU generator is a Mersenne twister; its state is kept as 64-bit words of which 32 bits are used.
_TWISTER_WORDS = 624
_TWISTER_OFFSET = 24  # bytes of bookkeeping before them


class Noise:
    """Independent normal values and independent coins from two keystreams of one key.

    Normals and coins have a keystream each, so the number of coins drawn (the number of a site's
    records) does not shift the normals.

    Parameters
    ----------
    key : bytes
        32 bytes; use `from_os` for anything that leaves a site.
    """

    def __init__(self, key: bytes) -> None:
        self._normals = _keystream(key, b"normals")
        self._coins = _keystream(key, b"coins")
        self._process = os.getpid()

    @classmethod
    def from_os(cls) -> Noise:
        """Return noise under a new key from the operating system, the only kind that is private."""
        return cls(os.urandom(32))

    @classmethod
    def fixed(cls, seed: int, *labels: str | int) -> Noise:
        """Return NOT PRIVATE noise that repeats, for tests and repeatable experiments.

        Parameters
        ----------
        seed : int
            The run's seed.
        *labels : str | int
            The draw's place, for example ``("Cleveland", 3, "noise")``.
        """
        text = "\x1f".join(["noise", str(seed), *(f"{type(x).__name__}:{x}" for x in labels)])
        return cls(hashlib.sha256(text.encode()).digest())

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return independent N(0, 1) values.

        Parameters
        ----------
        shape : tuple[int, ...]
            Of the result.
        like : Tensor
            Whose floating dtype and device the result has.

        Raises
        ------
        PrivacyError
            If `like` holds integers, which would round the noise away.
        """
        if not like.is_floating_point():
            raise PrivacyError(f"`like` must be of a floating dtype to carry noise, got {like.dtype}")
        return torch.from_numpy(self.gaussian(shape)).to(dtype=like.dtype, device=like.device)

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return independent N(0, 1) values by the Box-Muller transform.

        With u in (0, 1] and v in [0, 1) of 53 bits each, ``sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v)``;
        the largest value is sqrt(106 ln 2), about 8.6.

        Parameters
        ----------
        shape : tuple[int, ...]
            Of the result.
        """
        size = math.prod(shape)
        pairs = (size + 1) // 2
        u, v = self._uniform(self._normals, 2 * pairs).reshape(2, pairs)
        radius = np.sqrt(-2.0 * np.log1p(-u))  # 1 - u is exact, and never 0
        angle = 2.0 * np.pi * v
        values: NDArray[np.float64] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return values[:size].reshape(shape)

    def poisson(self, n: int, rate: float) -> Tensor:
        """Return one Poisson sample: an independent coin for each record, bool [n].

        Parameters
        ----------
        n : int
            Number of records, at least 0.
        rate : float
            Probability in (0, 1] that a record is in the sample; 1 takes them all.

        Raises
        ------
        ConfigError
            If `rate` is outside (0, 1].
        """
        if not 0 < rate <= 1:
            raise ConfigError(f"`rate` must be in (0, 1], got {rate}")
        return torch.from_numpy(self._uniform(self._coins, n) < rate)

    def generator(self) -> torch.Generator:
        """Return a CPU generator for coins, its whole state from the keystream of the coins.

        For code that takes nothing else: it is no cryptographic source, but `manual_seed` would
        give it one of 2^32 states, which can be tried one by one.
        """
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        words = self._words(self._coins, _TWISTER_WORDS) >> np.uint64(32)
        state[_TWISTER_OFFSET : _TWISTER_OFFSET + words.nbytes] = torch.from_numpy(words.view(np.uint8))
        return generator.set_state(state)

    def _uniform(self, stream: CipherContext, n: int) -> NDArray[np.float64]:
        """Return n multiples of 2^-53 in [0, 1)."""
        values: NDArray[np.float64] = np.ldexp(self._words(stream, n) >> np.uint64(11), -53)
        return values

    def _words(self, stream: CipherContext, n: int) -> NDArray[np.uint64]:
        """Return n words of 64 bits."""
        if os.getpid() != self._process:
            raise PrivacyError(
                "`Noise` must be made in the process that draws from it, got a forked copy, which would"
                " repeat the noise of its parent; make one in each process"
            )
        return np.frombuffer(stream.update(bytes(8 * n)), dtype="<u8")


def _keystream(key: bytes, purpose: bytes) -> CipherContext:
    # The first half of ChaCha20's 16 bytes counts blocks, so streams differ in the second half.
    nonce = bytes(8) + purpose.ljust(8, b"\0")
    return Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
