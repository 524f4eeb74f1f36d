"""Patterns with sizes that are known at run time only: free and without a name, computed ends and shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns

SIZES = Patterns()

FREE = (None, 3, None, None)


def _conv(g: Build, channels: int = 6, shape: tuple[int | str | None, ...] = FREE) -> str:
    return g.conv(g.input("x", shape), channels, k=3, pads=1)


def _size(g: Build, of: str, axis: int) -> str:
    """One size of a tensor, as a list of one."""
    size = g.op("Gather", g.op("Shape", of), g.const(np.array(axis)), axis=0)
    return g.op("Unsqueeze", size, g.ints(0, name="zero"))


def _shape(g: Build, *parts: str | int) -> str:
    return g.op("Concat", *(p if isinstance(p, str) else g.ints(p, name="size") for p in parts), axis=0)


@SIZES("Slice to sizes of another tensor -> Add -> bn, as Keras crops a ConvTranspose")
def _crop(g: Build) -> str:
    x = g.input("x", ("N", 3, "H", "W"))
    y = g.op("ConvTranspose", x, g.weight((3, 5, 3, 3), 27), strides=[2, 2])
    ends = g.op("Slice", g.op("Shape", x), g.ints(2, name="from"), g.ints(4, name="to"))
    y = g.op("Slice", y, g.ints(0, 0, name="starts"), ends, g.ints(2, 3, name="axes"))
    return g.op("Sigmoid", g.bn(g.op("Add", y, g.const(g.normal((1, 5, 1, 1)), "bias"))))


@SIZES("Slice to computed sizes, of a tensor whose sizes are stated in part")
def _crop_stated(g: Build) -> str:
    y = _conv(g)
    ends = g.op("Slice", g.op("Shape", "x"), g.ints(3, name="from"), g.ints(4, name="to"))
    y = g.op("Slice", y, g.ints(0, name="starts"), ends, g.ints(3, name="axes"))
    g.types[y].tensor_type.shape.dim[1].Clear()
    g.note(y)
    return g.op("Sigmoid", g.bn(g.op("Add", y, g.const(g.normal((6, 1, 1)), "bias"))))


def _flat(g: Build) -> str:
    y = _conv(g)
    return g.op("Reshape", y, _shape(g, _size(g, y, 0), 6, -1))


def _flat_by_input(g: Build) -> str:
    y = _conv(g)
    return g.op("Reshape", y, _shape(g, _size(g, "x", 0), 6, -1))


def _flat_by_product(g: Build) -> str:
    y = _conv(g)
    area = g.op("Mul", _size(g, y, 2), _size(g, y, 3))
    return g.op("Reshape", y, _shape(g, _size(g, y, 0), _size(g, y, 1), area))


def _shuffled(g: Build) -> str:
    y = _conv(g)
    sizes = [_size(g, y, axis) for axis in (0, 2, 3)]
    y = g.op("Reshape", y, _shape(g, sizes[0], 2, 3, *sizes[1:]))
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), _shape(g, sizes[0], -1, *sizes[1:]))


def _tokens(g: Build) -> str:
    """To tokens, through a linear layer and back to an image."""
    y = _conv(g)
    t = g.op("Transpose", g.op("Reshape", y, _shape(g, _size(g, y, 0), 6, -1)), perm=[0, 2, 1])
    t = g.op("Transpose", g.op("MatMul", t, g.weight((6, 8), 6)), perm=[0, 2, 1])
    return g.op("Reshape", t, _shape(g, _size(g, y, 0), 8, _size(g, y, 2), _size(g, y, 3)))


SHAPES: dict[str, Callable[[Build], str]] = {
    "channels kept": _flat,
    "channels kept, the batch of the input": _flat_by_input,
    "every size computed": _flat_by_product,
    "channels shuffled": _shuffled,
    "tokens": _tokens,
}


def _behind(made: Callable[[Build], str], g: Build) -> str:
    y = made(g)
    norm = g.op("BatchNormalization", y, *g.norm_parameters(8 if made is _tokens else 6))
    return g.op("Sigmoid", norm)


for _name, _made in SHAPES.items():
    name = f"Reshape by a computed shape, no size named: {_name}"
    SIZES.add(name, partial(_behind, _made), left=int(_made is _tokens))  # the bias of a MatMul
