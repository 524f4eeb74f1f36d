"""Operators that are computed when all their inputs are constant: the ONNX specification in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.model.site import DTYPES, Site

__all__ = ["EVALUATE", "FROM_INPUT", "PLAIN", "UNSEEN", "numpy_dtype", "quantized_type"]

LARGEST = 1 << 28  # bytes of a computed constant; a few bytes of a model can ask for any size
Inputs = Sequence[Any]  # one array for each input; None where it is left out or unseen

# Inputs of which only the shape or the type is used: they need not be constant.
UNSEEN = {("Shape", 0), ("Size", 0), ("CastLike", 1)}
# The result has the shape of the first input, whatever its values: computed only when it is needed.
FROM_INPUT = frozenset(
    {"Abs", "Cast", "CastLike", "Exp", "Log", "Neg", "QuantizeLinear", "Reciprocal", "Sqrt"}
)

# element types between which no cast saturates
_CASTS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16})
PLAIN = frozenset(DTYPES[code] for code in _CASTS)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, those of ml_dtypes included; raises ValueError for an unknown one."""
    own = getattr(ml_dtypes, name, None)
    return np.dtype(own) if own is not None else np.dtype(name)


def _room(shape: Sequence[int], itemsize: int) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) * max(itemsize, 1) > LARGEST:
        raise ValueError(f"a constant of shape {list(shape)} is too large")


def _ints(array: Any) -> list[int]:
    return [int(entry) for entry in np.asarray(array).reshape(-1)]


def _axes(site: Site, inputs: Inputs, rank: int) -> list[int] | None:
    """`axes` as attribute, or from opset 13 on as input; from the front."""
    given = inputs[1] if len(inputs) > 1 else site.attr("axes")
    if given is None:
        return None
    axes = _ints(given)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError("an axis is out of range")
    return [axis % rank for axis in axes]


def _cast(site: Site, inputs: Inputs) -> Any:
    code = site.attr("to")
    if isinstance(code, str):  # opset 1 to 5 spelt it
        code = {"FLOAT": 1, "DOUBLE": 11, "FLOAT16": 10, "INT64": 7, "INT32": 6, "BOOL": 9}[code]
    return _cast_to(inputs[0], code)


def _cast_like(site: Site, inputs: Inputs) -> Any:
    dtype = site.dtype(1)
    return _cast_to(inputs[0], next(code for code, name in DTYPES.items() if name == dtype))


def _cast_to(array: Array, code: int) -> Array:
    if code not in _CASTS:
        raise ValueError("a cast to this type is not computed")
    return array.astype(numpy_dtype(DTYPES[code]), copy=False)


def _transpose(site: Site, inputs: Inputs) -> Any:
    perm = site.attr("perm")
    return np.transpose(inputs[0], perm if perm else None)


def _reshape(site: Site, inputs: Inputs) -> Any:
    array = inputs[0]
    wanted = _ints(inputs[1] if len(inputs) > 1 else site.attr("shape"))
    if not site.attr("allowzero", 0):
        wanted = [array.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return array.reshape(wanted)


def _squeeze(site: Site, inputs: Inputs) -> Any:
    axes = _axes(site, inputs, inputs[0].ndim)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _unsqueeze(site: Site, inputs: Inputs) -> Any:
    given = inputs[1] if len(inputs) > 1 else site.attr("axes")
    rank = inputs[0].ndim + np.size(given)
    return np.expand_dims(inputs[0], tuple(_axes(site, inputs, rank) or ()))


def _flatten(site: Site, inputs: Inputs) -> Any:
    array, axis = inputs[0], site.attr("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return array.reshape(math.prod(array.shape[:axis]), -1)


def _expand(site: Site, inputs: Inputs) -> Any:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1])))
    _room(shape, inputs[0].itemsize)
    return np.broadcast_to(inputs[0], shape)


def _concat(site: Site, inputs: Inputs) -> Any:
    _room([sum(array.size for array in inputs)], inputs[0].itemsize)
    return np.concatenate(inputs, site.attr("axis", 1))


def _slice(site: Site, inputs: Inputs) -> Any:
    data = inputs[0]
    if site.opset < 10:
        starts, ends, axes, steps = site.attr("starts"), site.attr("ends"), site.attr("axes"), None
    else:
        starts, ends, axes, steps = [*inputs[1:], None, None][:4]
    starts, ends = _ints(starts), _ints(ends)
    axes = list(range(len(starts))) if axes is None else _ints(axes)
    steps = [1] * len(starts) if steps is None else _ints(steps)
    where: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        # numpy counts an end below -size from the back once more, where ONNX clamps it
        stop: int | None = end if end >= -size else (0 if step > 0 else None)
        where[axis] = slice(max(start, -size), stop, step)
    return data[tuple(where)]


def _gather(site: Site, inputs: Inputs) -> Any:
    data, indices = inputs
    axis = site.attr("axis", 0)
    _room([indices.size, data.size // max(data.shape[axis], 1)], data.itemsize)
    return np.take(data, indices.astype(np.int64), axis)  # negative ones count from the end, as in ONNX


def _shape(site: Site, inputs: Inputs) -> Any:
    shape = _static(site)
    return np.array(shape[site.attr("start", 0) : site.attr("end", len(shape))], np.int64)


def _size(site: Site, inputs: Inputs) -> Any:
    return np.array(math.prod(_static(site)), np.int64)


def _static(site: Site) -> list[int]:
    sizes = [size for size in site.shape(0) or (None,) if isinstance(size, int)]
    if len(sizes) != len(site.shape(0) or (None,)):
        raise ValueError("the shape is not static")
    return sizes


def _constant_of_shape(site: Site, inputs: Inputs) -> Any:
    fill = site.attr("value")
    fill = np.zeros(1, np.float32) if fill is None else fill
    shape = tuple(_ints(inputs[0]))
    _room(shape, fill.itemsize)
    return np.broadcast_to(fill.reshape(()), shape)


def _range(site: Site, inputs: Inputs) -> Any:
    start, limit, delta = (array.reshape(()) for array in inputs)
    count = max(math.ceil((limit - start) / delta), 0)
    _room([count], start.itemsize)
    return (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)


def _constant(site: Site, inputs: Inputs) -> Any:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                        ("value_ints", np.int64)):  # fmt: skip
        value = site.attr(name)
        if value is not None:
            return np.array(value, dtype)
    value = site.attr("value")
    if not isinstance(value, np.ndarray):
        raise ValueError("not a dense number")
    return value


def _where(site: Site, inputs: Inputs) -> Any:
    _room(np.broadcast_shapes(*(array.shape for array in inputs)), inputs[1].itemsize)
    return np.where(*inputs)


def _unary(function: Callable[[Array], Array]) -> Callable[[Site, Inputs], Any]:
    return lambda site, inputs: function(inputs[0]).astype(inputs[0].dtype, copy=False)


def _binary(
    function: Callable[[Array, Array], Array], compares: bool = False
) -> Callable[[Site, Inputs], Any]:
    def evaluate(site: Site, inputs: Inputs) -> Any:
        a, b = inputs
        if (
            site.opset < 7
            and a.shape != b.shape
            and (not site.attr("broadcast", 0) or site.attr("axis") is not None)
        ):
            raise ValueError("not numpy's broadcasting")
        if a.dtype != b.dtype and site.op != "Pow":
            raise ValueError("two types")
        _room(np.broadcast_shapes(a.shape, b.shape), a.itemsize)
        result = np.asarray(function(a, b))
        return result if compares else result.astype(a.dtype, copy=False)

    return evaluate


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("an integer is divided by zero")
    quotient = np.floor_divide(np.abs(a), np.abs(b))  # ONNX rounds towards zero
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))


def _quantize(site: Site, inputs: Inputs) -> Any:
    """As runtimes do it: in float32, rounded half to even, saturated."""
    array, scale, zero = [*inputs, None][:3]
    if site.attr("block_size", 0) or (scale.size > 1 and scale.ndim != 1):
        raise ValueError("blocked quantization is not computed")
    dtype = numpy_dtype(quantized_type(site))
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        raise ValueError("a type that is not computed")
    axis = site.attr("axis", 1) % max(array.ndim, 1)
    along = [-1 if a == axis else 1 for a in range(array.ndim)] if scale.size > 1 else []
    value = np.rint(array.astype(np.float32) / scale.astype(np.float32).reshape(along))
    if zero is not None:
        value += zero.astype(np.float32).reshape(along)
    limits = np.iinfo(dtype)
    return np.clip(value, limits.min, limits.max).astype(dtype)


def quantized_type(site: Site) -> str:
    """The element type that a QuantizeLinear gives."""
    code = site.attr("output_dtype", 0)
    return DTYPES.get(code, "") if code else site.dtype(2) if site.has(2) else "uint8"


EVALUATE: dict[str, Callable[[Site, Inputs], Any]] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_divide),
    "Equal": _binary(np.equal, compares=True),
    "Exp": _unary(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda site, inputs: inputs[0],
    "Log": _unary(np.log),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Pow": _binary(np.power),
    "QuantizeLinear": _quantize,
    "Range": _range,
    "Reciprocal": _unary(lambda x: np.asarray(1 / x)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
