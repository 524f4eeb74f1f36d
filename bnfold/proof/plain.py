"""Operators that only move numbers, computed by numpy itself.

An exporter's constants are made by hundreds of them, and onnx's evaluator takes longer to be loaded, and to
be asked, than that. What is not plainly one of these is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Attributes: TypeAlias = "Mapping[str, Any]"

__all__ = ["plain"]


def plain(op: str, attributes: Attributes, values: Sequence[Array | None]) -> Array | None:
    """What an operator gives; None if it is none of these, or its inputs are not as they mostly are."""
    rule = _RULES.get(op)
    given = [value for value in values if value is not None]
    if rule is None or len(given) < len(values) or any(isinstance(value, list) for value in given):
        return None
    try:
        return rule(attributes, given)
    except (IndexError, TypeError, ValueError):
        return None


def _shape(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return np.array(x.shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _expand(_: Attributes, values: Sequence[Array]) -> Array | None:
    x, sizes = values
    return np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes.tolist()))))


def _reshape(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, sizes = values
    if attributes.get("allowzero", 0):
        return None
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes.tolist())])


def _concat(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    one_type = all(value.dtype == values[0].dtype for value in values)
    return np.concatenate(values, attributes["axis"]) if one_type and "axis" in attributes else None


def _gather(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, indices = values
    return np.asarray(np.take(x, indices, attributes.get("axis", 0)))


def _cast_like(_: Attributes, values: Sequence[Array]) -> Array | None:
    x, like = values
    return x if x.dtype == like.dtype else None


def _identity(_: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return x


_RULES: dict[str, Callable[[Attributes, Sequence[Array]], Array | None]] = {
    "CastLike": _cast_like,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Shape": _shape,
}
