"""Operators that move numbers, and plain arithmetic, computed by numpy itself.

An exporter's constants are made by hundreds of them, and onnx's evaluator takes longer to be loaded, and to
be asked, than that. What is not plainly one of these is left to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Attributes: TypeAlias = "Mapping[str, Any]"

__all__ = ["plain"]


def plain(op: str, attributes: Attributes, values: Sequence[Array | None]) -> Array | None:
    """What an operator gives; None if it is none of these, or its inputs are not as they mostly are."""
    rule = _RULES.get(op)
    while values and values[-1] is None:  # that could be left out
        values = values[:-1]
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
    wanted = sizes.tolist()
    if 0 in wanted and attributes.get("allowzero", 0):
        return None
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _concat(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    one_type = all(value.dtype == values[0].dtype for value in values)
    return np.concatenate(values, attributes["axis"]) if one_type and "axis" in attributes else None


def _gather(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, indices = values
    return np.asarray(np.take(x, indices, attributes.get("axis", 0)))


def _gather_nd(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, indices = values
    if attributes.get("batch_dims", 0):
        return None
    return np.asarray(x[tuple(np.moveaxis(indices, -1, 0))])


def _dequantize(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    """One scale, or one for each entry of an axis (which onnx's evaluator lacks below opset 19)."""
    x, scale, *zero = values
    if scale.ndim > 1 or "output_dtype" in attributes or "int" not in x.dtype.name:  # float8, say
        return None
    at = [1] * x.ndim
    if scale.size > 1:
        at[attributes.get("axis", 1)] = scale.size
    whole = x.astype(np.int64)
    for point in zero:
        whole = whole - point.astype(np.int64).reshape(at if point.size > 1 else ())
    with np.errstate(all="ignore"):
        return np.asarray(whole.astype(scale.dtype) * scale.reshape(at if scale.size > 1 else ()))


def _slice(_: Attributes, values: Sequence[Array]) -> Array | None:
    x, starts, ends, axes, *rest = values
    steps = rest[0].tolist() if rest else [1] * axes.size
    at = [slice(None)] * x.ndim
    for axis, *some in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps, strict=True):
        at[axis] = slice(*some)
    return x[tuple(at)]


def _transpose(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return np.asarray(x.transpose(attributes.get("perm")))


def _unsqueeze(_: Attributes, values: Sequence[Array]) -> Array | None:
    x, axes = values
    return np.expand_dims(x, tuple(axes.tolist()))


def _arithmetic(how: Callable[..., Any]) -> Callable[[Attributes, Sequence[Array]], Array | None]:
    def rule(attributes: Attributes, values: Sequence[Array]) -> Array | None:
        x, y = values
        usual = not attributes and x.dtype == y.dtype and x.dtype.kind == "f"
        with np.errstate(all="ignore"):
            return np.asarray(how(x, y)) if usual else None

    return rule


def _gemm(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, y, *rest = values
    if any(value.dtype != x.dtype or value.dtype.kind != "f" for value in values):
        return None
    x, y = (v.T if attributes.get(name, 0) else v for v, name in ((x, "transA"), (y, "transB")))
    with np.errstate(all="ignore"):
        product = attributes.get("alpha", 1.0) * (x @ y)
        return np.asarray(product + attributes.get("beta", 1.0) * rest[0] if rest else product)


def _max(_: Attributes, values: Sequence[Array]) -> Array | None:
    if any(value.dtype != values[0].dtype or value.dtype.kind not in "fi" for value in values):
        return None
    return np.asarray(functools.reduce(np.maximum, values))


def _cast(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    to = _CASTS.get(attributes.get("to", 0))
    return None if to is None or x.dtype.kind not in "bi" else x.astype(to)


def _mean(attributes: Attributes, values: Sequence[Array]) -> Array | None:
    x, *rest = values
    axes = rest[0].tolist() if rest else attributes.get("axes")
    if not axes or x.dtype.kind != "f":
        return None
    return np.asarray(x.mean(tuple(axes), keepdims=bool(attributes.get("keepdims", 1))))


def _mean_of_places(_: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return np.asarray(x.mean(tuple(range(2, x.ndim)), keepdims=True)) if x.dtype.kind == "f" else None


def _relu(_: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return np.maximum(x, 0) if x.dtype.kind == "f" else None


def _cast_like(_: Attributes, values: Sequence[Array]) -> Array | None:
    x, like = values
    return x if x.dtype == like.dtype else None


def _identity(_: Attributes, values: Sequence[Array]) -> Array | None:
    (x,) = values
    return x


# By the number of a type in ONNX.
_CASTS: dict[int, Any] = {1: np.float32, 6: np.int32, 7: np.int64, 11: np.float64}
_RULES: dict[str, Callable[[Attributes, Sequence[Array]], Array | None]] = {
    "Add": _arithmetic(np.add),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "DequantizeLinear": _dequantize,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean_of_places,
    "Identity": _identity,
    "MatMul": _arithmetic(np.matmul),
    "Max": _max,
    "Mul": _arithmetic(np.multiply),
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Sub": _arithmetic(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
