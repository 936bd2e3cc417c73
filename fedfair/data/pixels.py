"""Images at 8 bits, as their files hold them: a quarter of float32, and they may stay on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair.errors import ShapeError

Codes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FULL = np.float32(255)
"""The code of the value 1."""


@dataclass(frozen=True)
class Pixels:
    """Images or volumes of n records, value = code / 255.

    Attributes
    ----------
    parts : tuple[Codes, ...]
        Arrays or memory maps [N_1, *shape], [N_2, *shape] ... of N records together; never copied whole.
    rows : NDArray[np.int64]
        [n] in ``0 .. N-1``: which of the N records, in which order.
    seen : Mask
        [n, 1], or [n, S] for volumes of S slices: whether a record has the image, or the slice.
    """

    parts: tuple[Codes, ...]
    rows: NDArray[np.int64]
    seen: Mask

    @classmethod
    def of(cls, codes: Codes, present: Mask | None = None) -> Pixels:
        """Return all records of an array.

        Parameters
        ----------
        codes : Codes
            Uint8 [n, *shape].
        present : Mask | None
            Bool [n], or [n, S] by slice of a volume; all there by default.

        Raises
        ------
        ShapeError
            If codes or mask have another shape or type.
        """
        known = np.ones((len(codes), 1), np.bool_) if present is None else present
        own = known[:, None] if known.ndim == 1 else known
        if codes.dtype != np.uint8 or codes.ndim < 2:
            raise ShapeError(f"`codes` must be uint8 [n, *shape], got {codes.dtype} {list(codes.shape)}")
        if own.dtype != np.bool_ or own.shape not in {(len(codes), 1), codes.shape[:2]}:
            raise ShapeError(
                f"`present` must be bool [{len(codes)}] or {list(codes.shape[:2])}, got {known.dtype} "
                f"{list(known.shape)}"
            )
        return cls((codes,), np.arange(len(codes)), own)

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return ``(n, *shape)``, as an array of the values would."""
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, index: NDArray[np.int64] | Mask) -> Pixels:
        """Return the records at `index`, in that order; no pixel is read."""
        return Pixels(self.parts, self.rows[index], self.seen[index])

    def without(self, lost: Mask) -> Pixels:
        """Return the same records, those in `lost` [n] without the image."""
        return Pixels(self.parts, self.rows, self.seen & ~lost[:, None])

    def read_into(self, out: Codes) -> None:
        """Put the codes into `out` [n, *shape]; what is not there has any code."""
        start = 0
        for part in self.parts:
            rows = self.rows - start
            here = (rows >= 0) & (rows < len(part))
            if here.all():
                # Any other mode would go through a copy of `out`.
                np.take(part, rows, axis=0, out=out, mode="clip")
                return
            out[here] = part[rows[here]]
            start += len(part)

    def values(self) -> NDArray[np.float32]:
        """Return float32 [n, *shape], NaN where something is missing."""
        codes = np.empty(self.shape, np.uint8)
        self.read_into(codes)
        there = spread(self.seen, codes.ndim)
        return np.where(there, codes / FULL, np.float32(np.nan))


Raw = NDArray[np.float32] | Pixels
"""A modality's raw values: float32 [n, ...] with NaN where missing, or images at 8 bits."""


def spread(seen: Mask, axes: int) -> Mask:
    """Return what is there, [n, k], with as many axes as the codes it is about."""
    return seen.reshape(*seen.shape, *[1] * (axes - 2))


def observed(raw: Raw) -> Mask:
    """Return bool [n]: which record has at least one value."""
    if isinstance(raw, Pixels):
        return np.asarray(raw.seen.any(axis=1))
    return np.asarray(~np.isnan(raw).all(axis=tuple(range(1, raw.ndim))))


def in_memory(raw: Raw) -> NDArray[np.float32]:
    """Return float32 [n, *shape], NaN where missing."""
    return raw.values() if isinstance(raw, Pixels) else raw


def without(raw: Raw, lost: Mask) -> Raw:
    """Return raw values in which the records in `lost` [n] lack the modality; `raw` stays as it is."""
    if isinstance(raw, Pixels):
        return raw.without(lost)
    kept = raw.copy()
    kept[lost] = np.nan
    return kept


def concatenated(raws: Sequence[Raw]) -> Raw:
    """Return the records of several sites in a row; images stay where they are.

    Raises
    ------
    ShapeError
        If some sites have images at 8 bits and others float32, or images of other shapes.
    """
    pixels = [raw for raw in raws if isinstance(raw, Pixels)]
    arrays = [raw for raw in raws if not isinstance(raw, Pixels)]
    if not pixels:
        return np.concatenate(arrays)
    if arrays:
        raise ShapeError("a modality must be float32 or Pixels at every site, got both")
    if len(shapes := {own.shape[1:] for own in pixels}) > 1:
        raise ShapeError(f"a modality must have one shape at every site, got {sorted(shapes)}")
    # Sites without a missing slice may say so in one column.
    width = max(own.seen.shape[1] for own in pixels)
    counts = [sum(map(len, own.parts)) for own in pixels]
    starts = np.cumsum([0, *counts[:-1]])
    return Pixels(
        tuple(part for own in pixels for part in own.parts),
        np.concatenate([own.rows + start for own, start in zip(pixels, starts, strict=True)]),
        np.concatenate([np.broadcast_to(own.seen, (len(own), width)) for own in pixels]),
    )
