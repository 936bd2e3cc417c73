"""Clipping: the most that one record can add to each block, and the noise that this calls for.

Clip block b of each record to norm C_b and choose units s_b with sum_b (C_b / s_b)^2 = 1. Block b
divided by s_b then has sensitivity 1 over all blocks together, so noise of deviation sigma s_b
in every block is one Gaussian mechanism of multiplier sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedfair.errors import ConfigError, nearest

NOISE_UNITS = ("isotropic", "proportional", "optimal")
_PIECE = 256


def norm_bounds(max_grad_norm: float | Mapping[str, float], blocks: Sequence[str]) -> dict[str, float]:
    """Return the clipping bound C_b of each block.

    Parameters
    ----------
    max_grad_norm : float | Mapping[str, float]
        C > 0 of a record's whole gradient, shared as C / sqrt(blocks); or every block's own bound.
    blocks : Sequence[str]
        The blocks that have parameters.

    Raises
    ------
    ConfigError
        If a bound is not positive and finite, or the mapping does not name exactly the blocks.
    """
    if not isinstance(max_grad_norm, Mapping):
        _check_bound("max_grad_norm", max_grad_norm)
        return {block: max_grad_norm / math.sqrt(len(blocks)) for block in blocks}
    for block in max_grad_norm.keys() - set(blocks):
        raise ConfigError(
            f"`max_grad_norm.{block}` must name a block that has parameters, got none of that name"
            f"{nearest(block, blocks)}"
        )
    for block in blocks:
        if block not in max_grad_norm:
            raise ConfigError(
                f"`max_grad_norm.{block}` must be given, got bounds for {sorted(max_grad_norm)} only; "
                "a block without a bound would be unprotected"
            )
        _check_bound(f"max_grad_norm.{block}", max_grad_norm[block])
    return {block: float(max_grad_norm[block]) for block in blocks}


def noise_units(bounds: Mapping[str, float], sizes: Mapping[str, int], rule: str) -> dict[str, float]:
    """Return the noise unit s_b of each block, with sum_b (C_b / s_b)^2 = 1.

    ``isotropic`` is the same in all blocks, ``proportional`` is sqrt(blocks) C_b, and ``optimal``,
    s_b^2 = C_b sum_k C_k sqrt(P_k) / sqrt(P_b), has the least noise energy sum_b P_b s_b^2 of all.

    Parameters
    ----------
    bounds : Mapping[str, float]
        C_b > 0 by block.
    sizes : Mapping[str, int]
        P_b of these blocks at least; a block with P_b = 0 is left out.
    rule : str
        One of `NOISE_UNITS`.

    Raises
    ------
    ConfigError
        If there is no such rule.
    """
    own = {block: bound for block, bound in bounds.items() if sizes[block] > 0}
    if rule == "isotropic":
        return dict.fromkeys(own, math.hypot(*own.values()))
    if rule == "proportional":
        return {block: math.sqrt(len(own)) * bound for block, bound in own.items()}
    if rule == "optimal":
        whole = sum(bound * math.sqrt(sizes[block]) for block, bound in own.items())
        return {block: math.sqrt(bound * whole / math.sqrt(sizes[block])) for block, bound in own.items()}
    raise ConfigError(
        f"`noise_units` must be one of {list(NOISE_UNITS)}, got {rule!r}{nearest(rule, NOISE_UNITS)}"
    )


def clip_blocks(gradients: Mapping[str, Tensor], bounds: Mapping[str, float]) -> dict[str, Tensor]:
    """Clip in place each record's gradient of each block to the block's bound, and return it.

    Row i of block b times min(1, C_b / norm). A record with any value that is not finite, in
    whatever block, becomes zero in all of them: its norm is not known, and NaN would give it away.

    Parameters
    ----------
    gradients : Mapping[str, Tensor]
        [B, P_b] by block, B >= 0; overwritten.
    bounds : Mapping[str, float]
        C_b of every block that has parameters.

    Raises
    ------
    ConfigError
        If a block has no bound.
    """
    for block in gradients.keys() - bounds.keys():
        if gradients[block].shape[1]:
            raise ConfigError(f"block `{block}` must have a clipping bound, got bounds for {sorted(bounds)}")
    # A block without parameters has norm zero and needs no bound.
    own = [bounds.get(block, 1.0) for block in gradients]
    return _shrink(gradients, _norms(gradients), own)


def clip_flat(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Clip in place each record's gradient over all blocks together, and return it by block.

    Parameters
    ----------
    gradients : Mapping[str, Tensor]
        [B, P_b] by block, B >= 0; overwritten. A record that is not finite becomes zero.
    bound : float
        C > 0.
    """
    whole = torch.linalg.vector_norm(_norms(gradients), dim=0, keepdim=True)
    return _shrink(gradients, whole.expand(len(gradients), -1), [bound] * len(gradients))


def _norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return each block's norm of each record, float64 [blocks, B].

    Squares are summed within pieces in the gradient's own precision and between them in float64: the
    sum of a whole row of 64,000 equal values in float32 is off by 1.5e-5, and float64 throughout
    takes five times as long. A square that overflows makes the norm infinite, so the record is left out.
    """
    return torch.stack([_norm(gradient) for gradient in gradients.values()])


def _norm(gradient: Tensor) -> Tensor:
    pieces = gradient.shape[1] // _PIECE
    whole = gradient[:, : pieces * _PIECE].view(len(gradient), pieces, _PIECE)
    rest = gradient[:, pieces * _PIECE :]
    norms = [torch.linalg.vector_norm(whole, dim=2), torch.linalg.vector_norm(rest, dim=1, keepdim=True)]
    norm: Tensor = torch.linalg.vector_norm(torch.cat(norms, 1), dim=1, dtype=torch.float64)
    return norm


def _shrink(gradients: Mapping[str, Tensor], norms: Tensor, bounds: Sequence[float]) -> dict[str, Tensor]:
    """Scale the rows in place to at most the bounds, those of records that are not finite to zero."""
    left_out = ~torch.isfinite(norms).all(0)
    any_left_out = bool(left_out.any())
    for gradient, norm, bound in zip(gradients.values(), norms, bounds, strict=True):
        # _PIECE roundings at most, by eps / 2, of a sum of squares; one each of its root, factor, product.
        target = bound * (1 - (_PIECE / 4 + 2) * torch.finfo(gradient.dtype).eps)
        gradient.mul_((target / norm).clamp_(max=1.0).to(gradient.dtype)[:, None])
        if any_left_out:
            gradient[left_out] = 0.0
    return dict(gradients)


def _check_bound(name: str, bound: float) -> None:
    if not (math.isfinite(bound) and bound > 0):
        raise ConfigError(f"`{name}` must be positive and finite, got {bound!r}")
