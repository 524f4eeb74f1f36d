"""Integers behind a scale times a factor: new scales, and the same integers, negated where it is negative."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.graph import Array

__all__ = ["negated", "rescaled", "rescaled_blocks"]


def rescaled(
    stored: Array, scale: Array, zero: Array | None, axis: int, factor: Array
) -> tuple[Array | None, Array, Array | None, int]:
    """What makes `(stored - zero) * scale` its product with `factor`, which varies along one axis at most.

    Args:
        stored: the integers (or eight-bit floats).
        scale: one number, or one for each entry along `axis`.
        zero: of the scale's shape; None for zero.
        axis: that of the scale, if it is a vector.
        factor: of the rank of `stored`.

    Returns:
        New integers (None: as before), scale, zero point (None: left out), and their axis.
    """
    vary = [a for a, size in enumerate(factor.shape) if size > 1]
    vector: Any = factor.reshape(-1)
    if not vary:
        vector = vector[0]
    elif scale.size == 1:
        axis = vary[0]
    elif vary != [axis]:
        raise AssertionError(f"the scale runs along axis {axis}, the factor along {vary}")
    new_scale = (np.abs(vector) * scale.astype(np.float64)).astype(scale.dtype)
    if not vary:
        new_scale = new_scale.reshape(scale.shape)
    negative = np.broadcast_to(np.asarray(vector < 0), new_scale.shape)
    if not negative.any():
        if zero is not None and zero.shape != new_scale.shape:
            zero = np.broadcast_to(zero.reshape(-1) if zero.size == 1 else zero, new_scale.shape).copy()
        return None, new_scale, zero, axis
    new, new_zero = negated(stored, zero, negative, axis)
    return new, new_scale, new_zero, axis


def rescaled_blocks(
    stored: Array, scale: Array, zero: Array | None, factor: Array
) -> tuple[Array | None, Array, Array | None]:
    """The same where a scale holds for a block of entries along one axis, along which the factor is constant.

    Args:
        stored: the integers (or small floats).
        scale: of the rank of `stored`, one entry for each block.
        zero: of the scale's shape; None for zero.
        factor: of the rank of `stored`, of size 1 along the axis of the blocks.

    Returns:
        New integers (None: as before), scale, and zero point (None: left out).
    """
    new_scale = (np.abs(factor) * scale.astype(np.float64)).astype(scale.dtype)
    negative = factor < 0
    if not negative.any():
        return None, new_scale, zero
    if stored.dtype.kind not in "iu" and "int" not in stored.dtype.name:
        return (stored.astype(np.float32) * np.where(negative, -1, 1)).astype(stored.dtype), new_scale, zero
    wider = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32)
    signed = not stored.dtype.name.startswith("uint")
    bits = int("".join(filter(str.isdigit, stored.dtype.name)))
    lowest = ((wider == -(1 << (bits - 1))) & negative).any()
    if signed and zero is None and not lowest:
        return np.where(negative, -wider, wider).astype(stored.dtype), new_scale, None
    top = -1 if signed else (1 << bits) - 1
    zeros = np.zeros(scale.shape, wider.dtype) if zero is None else zero.astype(wider.dtype)
    new, new_zero = np.where(negative, top - wider, wider), np.where(negative, top - zeros, zeros)
    return new.astype(stored.dtype), new_scale, new_zero.astype(stored.dtype)


def negated(stored: Array, zero: Array | None, negative: Array, axis: int) -> tuple[Array, Array | None]:
    """Integers and zero points with the opposite difference where `negative` (one, or one a channel) is set.

    `-w` keeps a zero point of 0, but -(-128) is no int8; `~w`, that is -1-w, with `~zero` is exact for every
    integer, and so is its unsigned counterpart, the largest number minus w.
    """
    if stored.dtype.kind not in "iu" and "int" not in stored.dtype.name:  # eight-bit floats
        sign = np.where(_against(negative, stored.ndim, axis), -1.0, 1.0).astype(np.float32)
        return (stored.astype(np.float32) * sign).astype(stored.dtype), zero
    wider = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32)
    zeros = (
        np.zeros(negative.shape, wider.dtype)
        if zero is None
        else np.broadcast_to(zero.astype(wider.dtype), negative.shape)
    )
    signed = not stored.dtype.name.startswith("uint")
    bits = int("".join(filter(str.isdigit, stored.dtype.name)))
    lowest = -(1 << (bits - 1))
    along = negative.size > 1
    rest = tuple(a for a in range(stored.ndim) if not along or a != axis)
    has_lowest = (wider == lowest).any(axis=rest) if signed else np.ones((), bool)
    simple = negative & (zeros == 0) & ~np.asarray(has_lowest).reshape(-1 if along and signed else ())
    other = negative & ~simple
    top = -1 if signed else (1 << bits) - 1
    at_simple, at_other = (_against(mask, stored.ndim, axis) for mask in (simple, other))
    result = np.where(at_simple, -wider, np.where(at_other, top - wider, wider)).astype(stored.dtype)
    if zero is None and not other.any():
        return result, None
    return result, np.where(other, top - zeros, zeros).astype(stored.dtype)


def _against(mask: Array, rank: int, axis: int) -> Array:
    return mask.reshape([-1 if a == axis else 1 for a in range(rank)]) if mask.size > 1 else mask.reshape(())
