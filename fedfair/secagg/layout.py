"""Layout: named arrays to one vector of ring words and back, in fixed point.

A value x becomes round(x 2^f) mod 2^bits. The sum over K sites is exact in the ring, so its error is
that of the rounding alone, K 2^-(f+1) for each value, provided no sum leaves the ring's range:

    K ceil(bound 2^f) <= 2^(bits-1) - 1

f is the largest that holds this, so the step 2^-f is some 2^-60 of the bound with 64 bits and four
sites, and 2^-28 with 32 bits: below what float32 can tell apart near the bound (2^-24). Rounding goes to
the nearest, the same at every repeat; a random rounding would hide a bias of at most half such a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import ConfigError, InconsistentUpdates, PrivacyError
from fedfair.secagg._codec import encode
from fedfair.secagg.masks import Words
from fedfair.secagg.primitives import digest

Array = NDArray[np.number]
_PIECE = 1 << 14
_TYPES: dict[int, tuple[type[np.unsignedinteger], type[np.signedinteger]]] = {
    32: (np.uint32, np.int32),
    64: (np.uint64, np.int64),
}


@dataclass(frozen=True)
class Field:
    """One array of every site's upload.

    Attributes
    ----------
    name : str
        Of the array.
    shape : tuple[int, ...]
        The same at every site.
    bound : float
        Largest absolute value at one site, above 0, noise included; a larger one is refused there.
        For float32 values that were clipped to it, one that float32 holds, such as a power of two.
    exact : bool
        Whether the values are integers, whose sum is exact.
    optional : bool
        Whether a site may leave the array out, such as a block whose modality it does not have. It
        then sends zeros, and nobody sees that it did.
    """

    name: str
    shape: tuple[int, ...]
    bound: float
    exact: bool = False
    optional: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Layout:
    """The order, scale and ring of an upload; public, and the same at every site.

    Parameters
    ----------
    fields : Sequence[Field]
        With distinct names.
    sites : int
        The most sites that a sum can have, K.
    bits : int
        64, or 32 for half the traffic.

    Raises
    ------
    ConfigError
        If a name repeats, or a bound is out of range or too large for the ring.
    """

    def __init__(self, fields: Sequence[Field], sites: int, bits: int = 64) -> None:
        if bits not in _TYPES:
            raise ConfigError(f"`bits` must be 32 or 64, got {bits}")
        if sites < 2:
            raise ConfigError(f"`sites` must be at least 2, got {sites}")
        self.fields, self.sites, self.bits = tuple(fields), sites, bits
        if len({field.name for field in fields}) < len(self.fields):
            raise ConfigError(f"`fields` must have distinct names, got {[field.name for field in fields]}")
        self._fraction = {field.name: _fraction_bits(field, sites, bits) for field in self.fields}
        self._limit = {field.name: _limit(field.bound, self._fraction[field.name]) for field in self.fields}

    @property
    def words(self) -> int:
        """Length of the vector: all values, and one word that counts sites."""
        return sum(field.size for field in self.fields) + 1

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the vector: uint64 or uint32."""
        return np.dtype(_TYPES[self.bits][0])

    @property
    def digest(self) -> bytes:
        """Hash of the whole layout, by which a server tells that all sites meant the same."""
        fields = tuple((f.name, f.shape, float(f.bound).hex(), f.exact) for f in self.fields)
        return digest("layout", encode((fields, self.sites, self.bits)))

    def fraction_bits(self, name: str) -> int:
        """Return f: the array is sent in steps of 2^-f."""
        return self._fraction[name]

    def error(self, name: str) -> float:
        """Return the bound K 2^-(f+1) on the error of a summed value; 0 for integers.

        A sum of more than 53 bits is moreover rounded once to float64, by at most 2^-53 of itself.
        """
        exact = next(field.exact for field in self.fields if field.name == name)
        return 0.0 if exact else math.ldexp(self.sites, -self._fraction[name] - 1)

    def check_sites(self, present: int) -> None:
        """Refuse more sites than the ring's range is meant for.

        Raises
        ------
        PrivacyError
            If `present` is above K.
        """
        if present > self.sites:
            raise PrivacyError(f"at most {self.sites} sites fit the layout's range, got {present}")

    def encode(self, values: Mapping[str, Array]) -> Words:
        """Return a site's values as ring words, [words]; the last one counts the site.

        Raises
        ------
        InconsistentUpdates
            If an array is missing, unexpected or of another shape.
        PrivacyError
            If a value is beyond its bound, not finite, or no integer where one is meant. Nothing is
            clipped here: a silent clip would change the sum.
        """
        self._check_names(values)
        words: Words = np.zeros(self.words, self.dtype)
        words[-1] = 1
        start = 0
        for field in self.fields:
            if (value := values.get(field.name)) is not None:
                self._fill(words[start : start + field.size], field, value)
            start += field.size
        return words

    def decode(self, total: Words, present: int) -> dict[str, NDArray[np.float64]]:
        """Return the sums over `present` sites.

        Raises
        ------
        InconsistentUpdates
            If the count of sites is wrong or a sum is beyond what they can reach: masks are left in
            it, or a site broke the bounds.
        """
        signed = total.view(_TYPES[self.bits][1])
        if int(signed[-1]) != present:
            raise InconsistentUpdates(f"a sum must be over {present} sites, got {int(signed[-1])}")
        sums, start = {}, 0
        for field in self.fields:
            part = signed[start : start + field.size]
            start += field.size
            self._check_range(field, part, present)
            sums[field.name] = np.ldexp(part.astype(np.float64), -self._fraction[field.name]).reshape(
                field.shape
            )
        return sums

    def _check_names(self, values: Mapping[str, Array]) -> None:
        required = {field.name for field in self.fields if not field.optional}
        wrong = (required - values.keys()) | (values.keys() - {field.name for field in self.fields})
        if wrong:
            raise InconsistentUpdates(f"an upload must fit the layout, got a mismatch in {sorted(wrong)}")

    def _fill(self, words: Words, field: Field, value: Array) -> None:
        if value.shape != field.shape:
            raise InconsistentUpdates(f"`{field.name}` must be {field.shape}, got {value.shape}")
        # In float64, as it is scaled: a float32 of 0.1 is above 0.1. NaN is in no range.
        if value.size and not (-field.bound <= float(value.min()) and float(value.max()) <= field.bound):
            raise PrivacyError(
                f"`{field.name}` must be finite and within {field.bound:g}, got a value that is not; raise"
                " `secure.bound` or clip before"  # which value it is must not travel in an error
            )
        signed, flat = words.view(_TYPES[self.bits][1]), value.reshape(-1)
        for start in range(0, field.size, _PIECE):
            piece = flat[start : start + _PIECE].astype(np.float64)
            scaled = np.rint(np.ldexp(piece, self._fraction[field.name]))
            if field.exact and not np.array_equal(scaled, piece):
                raise PrivacyError(f"`{field.name}` must hold integers, got fractions")
            signed[start : start + _PIECE] = scaled

    def _check_range(self, field: Field, part: NDArray[np.signedinteger], present: int) -> None:
        limit = present * self._limit[field.name]
        if part.size and not (-limit <= int(part.min()) and int(part.max()) <= limit):
            raise InconsistentUpdates(
                f"`{field.name}` must sum to at most {present} times its bound, it does not"
            )


def _fraction_bits(field: Field, sites: int, bits: int) -> int:
    """Return the largest f for which no sum leaves the ring's range; 0 for integers."""
    if not 0 < field.bound <= 1e300:
        raise ConfigError(f"`bound` of `{field.name}` must be above 0 and finite, got {field.bound}")
    fraction = 0 if field.exact else bits - 1 - math.frexp(sites * field.bound)[1]
    while not field.exact and sites * _limit(field.bound, fraction) >= 2 ** (bits - 1):
        fraction -= 1
    # Integers must come back exactly from float64 too.
    largest = min(2 ** (bits - 1) - 1, 2**53 if field.exact else math.inf)
    if fraction < 0 or sites * _limit(field.bound, fraction) > largest:
        raise ConfigError(
            f"`bound` of `{field.name}` must be below {largest / sites:.3g} for {sites} sites and {bits}"
            f" bits, got {field.bound:g}; lower it or use 64 bits"
        )
    return fraction


def _limit(bound: float, fraction: int) -> int:
    return math.ceil(Fraction(bound) * Fraction(2) ** fraction)
