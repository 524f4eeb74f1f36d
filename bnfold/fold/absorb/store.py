"""New values in the type of what they replace, and the ones that do not fit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from bnfold.fold.affine import all_finite
from bnfold.fold.edits import Edit, SetValue
from bnfold.fold.graph import Array, Constant, Key, Node

__all__ = ["OutOfRange", "as_float", "in_type", "store"]

TINY_BFLOAT16 = 1.1754943508222875e-38  # the smallest normal number, which numpy's finfo does not know


class OutOfRange(Exception):
    """A stored value would leave the range of its type."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason
        self.all = [self]  # and others that were found with it


def as_float(constant: Constant) -> Array:
    return np.asarray(constant.value, np.float64)


def store(
    node: Node, key: Key, value: Any, old: Constant | None, dtype: Any = None, axis: int | None = None
) -> SetValue:
    """The value in the type of what it replaces. `axis` names the channels of a weight, for the check."""
    return SetValue(node, key, in_type(node, value, old, dtype, axis), old)


def in_type(
    node: Node, value: Any, old: Constant | None, dtype: Any = None, axis: int | None = None
) -> Array:
    """The value as `store` stores it.

    Raises:
        OutOfRange: it does not fit.
    """
    dtype = old.value.dtype if old is not None else np.dtype(dtype)
    value = np.asarray(value, np.float64)
    new: Array = value.astype(dtype)
    if not all_finite(new):
        if np.isfinite(value).all() or not np.isfinite(as_float(old) if old is not None else value).all():
            where = np.unravel_index(int(np.argmax(np.abs(value))), value.shape) if value.ndim else ()
        else:
            where = ()
        channel = where[axis if axis is not None and axis < len(where) else 0] if where else 0
        largest = float(np.abs(value).max())
        raise OutOfRange(
            node, f"a weight of channel {int(channel)} would overflow {dtype.name} ({largest:.3g})"
        )
    if axis is not None and old is not None:
        _check_channels(node, value, old, axis, dtype)
    return new


def _check_channels(node: Node, value: Array, old: Constant, axis: int, dtype: Any) -> None:
    """A channel whose largest weight falls below the smallest normal number would lose its digits."""
    tiny = float(np.finfo(dtype).tiny) if dtype.kind == "f" else TINY_BFLOAT16
    axes = tuple(a for a in range(value.ndim) if a != axis)
    largest = np.maximum(value.max(axes), -value.min(axes))
    if largest.min(initial=tiny) >= tiny:
        return
    before = np.abs(np.broadcast_to(as_float(old), value.shape)).max(axes)
    lost = (largest > 0) & (largest < tiny) & (before >= tiny)
    if lost.any():
        channel = int(np.argmax(lost))
        what = f"the weights of channel {channel} would leave the normal range of {dtype.name}"
        raise OutOfRange(node, f"{what} ({largest[channel]:.3g})")


HELD = 1 << 28  # bytes of new weights that may stay in memory
SMALL = 1 << 20  # smaller ones always do


def to_disk(edits: Iterable[Edit], held: int = HELD) -> list[Edit]:
    """The edits, one after the other: beyond `held` bytes new values move to nameless temporary files."""
    made = []
    for edit in edits:
        if isinstance(edit, SetValue) and edit.value.nbytes >= SMALL:
            held -= edit.value.nbytes
            if held < 0:
                with tempfile.TemporaryFile() as file:
                    mapped = np.memmap(file, edit.value.dtype, "w+", shape=edit.value.shape)
                mapped[...] = edit.value
                mapped.flush()
                edit.value = mapped
        made.append(edit)
    return made
