"""What makes tensors of shapes, of numbers or of nothing; and control flow, whose bodies are graphs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.onnx_graph.ops.facts import check_size, ints
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator
from bnfold.onnx_graph.site import Site

__all__ = ["SOURCES"]


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


def _constant_of_shape(site: Site, inputs: Inputs) -> Any:
    fill = site.attr("value")
    fill = np.zeros(1, np.float32) if fill is None else fill
    shape = tuple(ints(inputs[0]))
    check_size(shape, fill.itemsize)
    return np.broadcast_to(fill.reshape(()), shape)


def _range(site: Site, inputs: Inputs) -> Any:
    start, limit, delta = (array.reshape(()) for array in inputs)
    count = max(math.ceil((limit - start) / delta), 0)
    check_size([count], start.itemsize)
    return (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype)


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


def _control(op: str) -> Operator:
    return Operator(closed="is control flow", float32=f"{op} is control flow, whose body stays float32")


_like = Operator(unseen=(0,))

SOURCES: dict[str, Operator] = {
    "Constant": Operator(evaluate=_constant, half=Half.EXACT),
    "ConstantOfShape": Operator(evaluate=_constant_of_shape),
    "EyeLike": _like,
    "If": _control("If"),
    "Loop": _control("Loop"),
    "RandomNormalLike": _like,
    "RandomUniformLike": _like,
    "Range": Operator(evaluate=_range, half=Half.COUNTS),
    "Scan": _control("Scan"),
    "SequenceMap": _control("SequenceMap"),
    "Shape": Operator(evaluate=_shape, unseen=(0,)),
    "Size": Operator(evaluate=_size, unseen=(0,)),
}
