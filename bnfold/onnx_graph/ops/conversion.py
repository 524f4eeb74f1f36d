"""What changes the type of numbers: casts, and quantization to integers and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Node, Refused, Role
from bnfold.onnx_graph.ops.facts import UNCHANGED, rank_of
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator
from bnfold.onnx_graph.site import CODES, DTYPES, FLOATS, Site, numpy_dtype

__all__ = ["CONVERSION", "PLAIN"]

# element types between which no cast saturates
_CASTS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16})
PLAIN = frozenset(DTYPES[code] for code in _CASTS)
# TensorProto.DataType
_FLOAT_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}

# Roles.


def _cast(site: Site) -> Role:
    code = site.attr("to", 0)  # a word before opset 6
    return _to_float(site, _FLOAT_TYPES.get(code, "no float type"))


def _cast_like(site: Site) -> Role:
    return _to_float(site, site.dtype(1))


def _to_float(site: Site, name: str) -> Role:
    if name not in FLOATS:
        raise Refused(f"casts to {name or 'an unknown type'}")
    rank_of(site, 0)
    return UNCHANGED


# Constants.


def _casted(site: Site, inputs: Inputs) -> Any:
    code = site.attr("to")
    if isinstance(code, str):  # opset 1 to 5 spelt it
        code = {"FLOAT": 1, "DOUBLE": 11, "FLOAT16": 10, "INT64": 7, "INT32": 6, "BOOL": 9}[code]
    return _cast_to(inputs[0], code)


def _casted_like(site: Site, inputs: Inputs) -> Any:
    return _cast_to(inputs[0], CODES[site.dtype(1)])


def _cast_to(array: Array, code: int) -> Array:
    if code not in _CASTS:
        raise ValueError("a cast to this type is not computed")
    return array.astype(numpy_dtype(DTYPES[code]), copy=False)


def _quantize(site: Site, inputs: Inputs) -> Any:
    """As runtimes do it: in float32, rounded half to even, saturated."""
    array, scale, zero = [*inputs, None][:3]
    if site.attr("block_size", 0) or (scale.size > 1 and scale.ndim != 1):
        raise ValueError("blocked quantization is not computed")
    dtype = numpy_dtype(_quantized_type(site))
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        raise ValueError("a type that is not computed")
    axis = site.attr("axis", 1) % max(array.ndim, 1)
    along = [-1 if a == axis else 1 for a in range(array.ndim)] if scale.size > 1 else []
    value = np.rint(array.astype(np.float32) / scale.astype(np.float32).reshape(along))
    if zero is not None:
        value += zero.astype(np.float32).reshape(along)
    limits = np.iinfo(dtype)
    return np.clip(value, limits.min, limits.max).astype(dtype)


def _quantized_type(site: Site) -> str:
    """The element type that a QuantizeLinear gives."""
    code = site.attr("output_dtype", 0)
    return DTYPES.get(code, "") if code else site.dtype(2) if site.has(2) else "uint8"


# Bounds.

_INTEGERS = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


def _of_integers(node: Node, inputs: list[Bounds]) -> Bounds:
    """Of a Cast from small integers; others have a role."""
    low, high = _INTEGERS[node.source.dtype(0)]
    shape = (1,) * node.outputs[0].rank
    return Bounds(np.full(shape, low), np.full(shape, high))


_INTEGER_SCALE = "its scale belongs to integers"  # a quantized weight is read as it was stored

CONVERSION: dict[str, Operator] = {
    "BitCast": Operator(float32="BitCast looks at the bits of float32"),
    "Cast": Operator(
        role=_cast,
        evaluate=_casted,
        result_type=lambda site: DTYPES.get(site.attr("to"), ""),
        bounds=_of_integers,
        half=Half.COUNTS,
    ),
    "CastLike": Operator(
        role=_cast_like, evaluate=_casted_like, result_type=lambda site: site.dtype(1), unseen=(1,)
    ),
    "DequantizeLinear": Operator(closed="reads integers", float32=_INTEGER_SCALE),
    "DynamicQuantizeLinear": Operator(closed="rounds to integers", float32=_INTEGER_SCALE),
    "QuantizeLinear": Operator(
        closed="rounds to integers", evaluate=_quantize, result_type=_quantized_type, float32=_INTEGER_SCALE
    ),
}
