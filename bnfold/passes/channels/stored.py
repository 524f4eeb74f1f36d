"""Stored values that shrink: whether they may, and how."""

from __future__ import annotations

import numpy as np

from bnfold.fold.graph import Array, Constant
from bnfold.onnx_graph.model.site import FLOATS, Value

__all__ = ["cut", "why_not"]


def why_not(constant: Constant) -> str:
    """Why entries cannot be taken out of a stored value; "" if they can."""
    if constant.locked:
        return f"{constant.store} {constant.locked}"
    if constant.quantized is not None:
        return f"{constant.store} is quantized"
    if constant.dtype not in FLOATS:
        return f"{constant.store} is not of a floating point type"
    if sum(size > 1 for size in constant.shape) > 1 and _is_shared(constant.view):
        return f"{constant.store} is shared with other nodes"  # a cut copy would make the file larger
    return ""


def _is_shared(value: Value, depth: int = 100) -> bool:
    """It, or what it is computed from, has several readers."""
    if value.count > 1 or value.is_output or depth == 0:
        return True
    sources = [] if value.site is None else value.site.values
    return any(source is not None and _is_shared(source, depth - 1) for source in sources)


def cut(array: Array, axis: int, rank: int, keep: Array) -> Array:
    """The entries to keep along an axis of a tensor of this rank, against which the array is broadcast."""
    place = axis - (rank - array.ndim)
    if place < 0 or array.shape[place] == 1:
        return array
    return np.ascontiguousarray(np.take(array, keep, place))
