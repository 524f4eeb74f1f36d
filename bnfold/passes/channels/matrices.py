"""Weights of linear layers as matrices (groups, outputs, inputs): their bounds, zeros and sums over the taps.

They are read a few million entries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from bnfold.fold.affine import at_axis
from bnfold.fold.graph import Array
from bnfold.fold.roles import Linear
from bnfold.onnx_graph.ops.interval import Bounds, unknown

__all__ = ["bias_of", "is_matrix", "read_by", "sums", "through"]

PIECE = 1 << 22  # entries


def is_matrix(role: Linear) -> bool:
    """One matrix for each group, with taps or without; not a batch of matrices."""
    return role.w_group is not None or len(role.split) == 2


def _pieces(role: Linear) -> Iterator[tuple[slice, Array]]:
    """(groups, some outputs, inputs, taps), and which outputs these are."""
    weight = role.matrices(role.weight.load())
    groups, outputs, inputs = weight.shape[:3]
    weight = weight.reshape(groups, outputs, inputs, math.prod(role.rest))
    step = max(1, PIECE // max(1, weight.size // max(outputs, 1)))
    for start in range(0, outputs, step):
        where = slice(start, min(start + step, outputs))
        yield where, weight[:, where].astype(np.float64)


def _joined(role: Linear, of: Callable[[Array], Array]) -> Array:
    """(groups, outputs, ...) of what `of` makes of each piece."""
    return np.concatenate([of(piece) for _, piece in _pieces(role)], 1)


def sums(role: Linear) -> Array:
    """alpha * W summed over the taps: (groups, outputs, inputs)."""
    return role.alpha * _joined(role, lambda piece: piece.sum(3))


def read_by(role: Linear, rows: Array | None = None) -> Array:
    """For each input channel, whether any of the outputs (those that `rows` marks) has a weight for it."""
    found = np.zeros(role.split[role.w_in], bool)
    for where, piece in _pieces(role) if role.alpha else ():
        hits = (piece != 0).any(3)
        if rows is not None:
            hits = hits[:, rows[where]]
        found |= hits.any((0, 1))
    return found


def bias_of(role: Linear, y_rank: int) -> Bounds | None:
    """What is added to the product, of the rank of the output; None if that is not known."""
    if role.bias_open:
        return None
    if role.bias is None:
        return Bounds(np.zeros((1,) * y_rank), np.zeros((1,) * y_rank))
    value = role.bias.load().astype(np.float64) * role.beta
    if value.ndim == 1 and value.size > 1:
        value = at_axis(value, role.out_axis, y_rank)
    elif value.ndim <= 1:
        value = value.reshape((1,) * y_rank)
    return Bounds(value, value)


def through(role: Linear, x: Bounds, y_rank: int) -> Bounds:
    """The bounds of the output of a linear layer."""
    bias = bias_of(role, y_rank)
    if bias is None or not is_matrix(role):
        return unknown(y_rank)
    ends = x.along(role.in_axis, role.inputs)
    lo, hi = (end.reshape(role.groups, -1) for end in ends)
    if role.padded:  # a tap sees the channel, or zero
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    bounds = (at_axis(_extreme(role, lo, hi, sign), role.out_axis, y_rank) for sign in (1.0, -1.0))
    return Bounds(*bounds).plus(bias)


def _extreme(role: Linear, lo: Array, hi: Array, sign: float) -> Array:
    """The smallest (sign 1) or largest (sign -1) value that each output may take, before the bias."""
    if sign < 0:
        lo, hi = hi, lo
    lost_lo, lost_hi = ~np.isfinite(lo), ~np.isfinite(hi)
    lo, hi = np.where(lost_lo, 0.0, lo), np.where(lost_hi, 0.0, hi)

    def piece(weight: Array) -> Array:
        weight = weight * role.alpha
        up, down = np.maximum(weight, 0).sum(3), np.minimum(weight, 0).sum(3)
        least = np.einsum("goi,gi->go", up, lo) + np.einsum("goi,gi->go", down, hi)
        gone = ((up != 0) & lost_lo[:, None]) | ((down != 0) & lost_hi[:, None])
        return np.where(gone.any(2), -sign * np.inf, least)

    return _joined(role, piece).reshape(-1)
