"""Batch norms that go backward past other operators: conv -> ... -> batch norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns, image, rows, tokens

THROUGH = Patterns()


def _conv(g: Build, outputs: int = 8) -> str:
    return g.conv(image(g), outputs, k=3, group=2)


def _shuffle(g: Build, t: str, groups: int = 2) -> str:
    n, c, h, w = (int(size or 0) for size in g.shape(t))
    t = g.op("Reshape", t, g.ints(n, groups, c // groups, h, w))
    return g.op("Reshape", g.op("Transpose", t, perm=[0, 2, 1, 3, 4]), g.ints(n, c, h, w))


def _resize(g: Build, t: str, **attrs: Any) -> str:
    return g.op("Resize", t, "", g.const(np.array([1, 1, 2, 1.5], np.float32), "factors"), **attrs)


# one operator between conv and batch norm

BETWEEN: dict[str, Callable[[Build, str], str]] = {
    "Identity": lambda g, t: g.op("Identity", t),
    "Dropout": lambda g, t: g.op("Dropout", t, g.const(0.5, "ratio")),
    "Dropout with training_mode false": lambda g, t: g.op(
        "Dropout", t, g.const(0.5, "ratio"), g.const(np.array(False), "training")
    ),
    "Cast to double": lambda g, t: g.op("Cast", t, to=11),
    "Transpose of the image": lambda g, t: g.op("Transpose", t, perm=[0, 1, 3, 2]),
    "Reshape of the image": lambda g, t: g.op("Reshape", t, g.ints(0, 8, -1)),
    "Reshape that copies sizes": lambda g, t: g.op("Reshape", t, g.ints(0, 0, -1)),
    "GlobalMaxPool and Flatten": lambda g, t: g.op("Flatten", g.op("GlobalMaxPool", t)),
    "Unsqueeze": lambda g, t: g.op("Unsqueeze", t, g.ints(3, name="axes")),
    "DepthToSpace DCR": lambda g, t: g.op("DepthToSpace", t, blocksize=2, mode="DCR"),
    "DepthToSpace CRD": lambda g, t: g.op("DepthToSpace", t, blocksize=2, mode="CRD"),
    "channel shuffle": _shuffle,
    "AveragePool": lambda g, t: g.op("AveragePool", t, kernel_shape=[2, 3], strides=[2, 2]),
    "AveragePool with padding": lambda g, t: g.op("AveragePool", t, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "MaxPool": lambda g, t: g.op("MaxPool", t, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "GlobalAveragePool": lambda g, t: g.op("GlobalAveragePool", t),
    "GlobalMaxPool": lambda g, t: g.op("GlobalMaxPool", t),
    "ReduceMean without the axes": lambda g, t: g.op("ReduceMean", t, g.ints(2, 3, name="axes"), keepdims=0),
    "Resize nearest": lambda g, t: _resize(g, t, mode="nearest"),
    "Resize linear": lambda g, t: _resize(g, t, mode="linear"),
    "Resize cubic": lambda g, t: _resize(g, t, mode="cubic", coordinate_transformation_mode="align_corners"),
    "reflect Pad": lambda g, t: g.op("Pad", t, g.ints(0, 0, 2, 1, 0, 0, 1, 3, name="pads"), mode="reflect"),
    "edge Pad": lambda g, t: g.op("Pad", t, g.ints(0, 0, 2, 1, 0, 0, 1, 3, name="pads"), mode="edge"),
    "Slice of channels": lambda g, t: g.op("Slice", t, g.ints(1), g.ints(7), g.ints(1), g.ints(2)),
    "Slice of the image": lambda g, t: g.op("Slice", t, g.ints(1, 2), g.ints(-1, 100), g.ints(2, 3)),
    "Gather of channels": lambda g, t: g.op("Gather", t, g.ints(5, 0, 3), axis=1),
    "Tile of channels": lambda g, t: g.op("Tile", t, g.ints(1, 1, 2, 1)),
}
POSITIVE = {"MaxPool", "GlobalMaxPool", "GlobalMaxPool and Flatten"}


def _between(g: Build, name: str) -> str:
    t = BETWEEN[name](g, _conv(g))
    g.dtype = "float64" if name == "Cast to double" else g.dtype
    return g.bn(t, "positive" if name in POSITIVE else "mixed")


for _name in BETWEEN:
    THROUGH.add(f"conv -> {_name} -> bn", partial(_between, name=_name))


@THROUGH("conv -> Squeeze -> bn")
def _squeeze(g: Build) -> str:
    y = g.conv(g.input("x", (2, 6, 3, 11)), 8, k=3)
    return g.bn(g.op("Squeeze", y, g.ints(2, name="axes")))


@THROUGH("conv -> Squeeze without axes -> bn")
def _squeeze_all(g: Build) -> str:
    return g.bn(g.op("Squeeze", g.conv(g.input("x", (2, 6, 3, 11)), 8, k=3)))


@THROUGH("Gemm -> Reshape -> bn, channels of several features")
def _gemm_reshape(g: Build) -> str:
    return g.bn(g.op("Reshape", g.gemm(rows(g), 12, c=(12,)), g.ints(-1, 3, 2, 2)))


@THROUGH("conv -> Transpose -> Reshape -> Transpose -> bn")
def _there_and_back(g: Build) -> str:
    y = g.op("Reshape", g.op("Transpose", _conv(g), perm=[0, 2, 3, 1]), g.ints(2, -1, 8))
    return g.bn(g.op("Transpose", y, perm=[0, 2, 1]))


@THROUGH("conv -> Split -> bn on each part")
def _split(g: Build) -> tuple[str, ...]:
    parts = g.ops("Split", _conv(g), g.ints(3, 5, name="sizes"), count=2, axis=1)
    return tuple(g.bn(part) for part in parts)


@THROUGH("conv -> Split -> bn on one part")
def _split_one(g: Build) -> tuple[str, ...]:
    left, right = g.ops("Split", _conv(g), count=2, axis=1, num_outputs=2)
    return g.bn(left), g.op("Sigmoid", right)


@THROUGH("convs -> Concat -> bn")
def _concat(g: Build) -> str:
    x = image(g)
    parts = [g.conv(x, 3, k=3, pads=1), g.conv(x, 5), g.conv(x, 6, k=5, pads=2, group=3, bias=False)]
    return g.bn(g.op("Concat", *parts, axis=1))


@THROUGH("convs -> Concat -> Concat -> bn, with branches of batch norms")
def _concat_twice(g: Build) -> str:
    x = image(g)
    inner = g.op("Concat", g.conv(x, 3), g.bn(g.conv(x, 4)), axis=1)
    return g.bn(g.op("Concat", g.conv(x, 2), inner, axis=1))


@THROUGH("convs -> Concat along the image -> bn")
def _concat_image(g: Build) -> str:
    x = image(g)
    return g.bn(g.op("Concat", g.conv(x, 5), g.conv(x, 5, k=3, pads=1), axis=3))


@THROUGH("conv and a constant -> Concat -> bn")
def _concat_constant(g: Build) -> str:
    frame = g.const(g.normal((2, 3, 9, 11)), "coordinates")
    return g.bn(g.op("Concat", g.conv(image(g), 5), frame, axis=1))


@THROUGH("conv + conv -> bn")
def _add(g: Build) -> str:
    x = image(g)
    return g.bn(g.op("Add", g.conv(x, 7, k=3, pads=1), g.conv(x, 7, bias=False)))


@THROUGH("Sum of three convs -> bn")
def _sum(g: Build) -> str:
    x = image(g)
    return g.bn(g.op("Sum", *(g.conv(x, 7, bias=i != 1) for i in range(3))))


@THROUGH("conv - bn(conv) -> bn")
def _sub(g: Build) -> str:
    x = image(g)
    return g.bn(g.op("Sub", g.conv(x, 7, k=3, pads=1), g.bn(g.conv(x, 7))))


@THROUGH("conv -> InstanceNormalization -> bn")
def _instance_norm(g: Build) -> str:
    y = _conv(g)
    scale, bias = g.const(g.scales(8), "scale"), g.const(g.normal((8,)), "bias")
    return g.bn(g.op("InstanceNormalization", y, scale, bias))


@THROUGH("Pad and pool and shuffle and resize in a row")
def _in_a_row(g: Build) -> str:
    y = g.op("Pad", _conv(g), g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads"), mode="reflect")
    y = _shuffle(g, g.op("AveragePool", y, kernel_shape=[2, 2]))
    return g.bn(_resize(g, g.op("Identity", y), mode="nearest"))


# a positive scale past Relu, LeakyRelu, PRelu


def _slopes(g: Build) -> str:
    return g.const(g.rng.uniform(0.1, 0.5, (8, 1, 1)), "slope")


@THROUGH("conv -> Relu -> positive scale")
def _relu(g: Build) -> str:
    return g.mul(g.op("Relu", _conv(g)), "positive")


@THROUGH("conv -> Relu -> bn without shift")
def _relu_bn(g: Build) -> str:
    return g.bn(g.op("Relu", _conv(g)), "positive", shift=False)


@THROUGH("conv -> LeakyRelu -> positive scale")
def _leaky(g: Build) -> str:
    return g.mul(g.op("LeakyRelu", _conv(g), alpha=0.2), "positive")


@THROUGH("conv -> LeakyRelu -> negative scale on all channels")
def _leaky_negative(g: Build) -> str:
    return g.mul(g.op("LeakyRelu", _conv(g), alpha=0.2), "negative")


@THROUGH("conv -> PRelu -> positive scale")
def _prelu(g: Build) -> str:
    return g.mul(g.op("PRelu", _conv(g), _slopes(g)), "positive")


@THROUGH("conv -> PRelu -> scale of both signs")
def _prelu_mixed(g: Build) -> str:
    return g.mul(g.op("PRelu", _conv(g), _slopes(g)), "mixed")


# other operators of the table


@THROUGH("conv -> Abs -> positive scale")
def _abs(g: Build) -> str:
    return g.mul(g.op("Abs", _conv(g)), "positive")


@THROUGH("conv -> Neg -> bn")
def _neg(g: Build) -> str:
    return g.bn(g.op("Neg", _conv(g)))


@THROUGH("conv -> Clip -> one number", note="new bounds")
def _clip(g: Build) -> str:
    y = g.op("Clip", _conv(g), g.const(0.0, "low"), g.const(1.5, "high"))
    return g.op("Add", g.op("Mul", y, g.const(-0.6, "scale")), g.const(0.8, "shift"))


@THROUGH("conv -> Clip without an upper bound -> Sub -> bn with a zero scale", left=1)
def _clip_below(g: Build) -> str:
    y = g.op("Sub", g.const(0.4, "from"), g.op("Clip", _conv(g), g.const(0.0, "low")))
    scale = np.linspace(0, 1.4, 8, dtype=np.float32)
    others = (g.const(np.full(8, value, np.float32)) for value in (0.8, 0.3, 1.0))
    return g.op("BatchNormalization", y, g.const(scale), *others)


@THROUGH("conv -> Celu -> one positive number")
def _celu(g: Build) -> str:
    return g.op("Mul", g.op("Celu", _conv(g), alpha=0.7), g.const(0.4, "scale"))


@THROUGH("Max of two convs -> bn with positive scales")
def _max(g: Build) -> str:
    x = image(g)
    return g.bn(g.op("Max", g.conv(x, 7), g.conv(x, 7)), "positive")


@THROUGH("Max with a constant -> bn with positive scales")
def _max_constant(g: Build) -> str:
    return g.bn(g.op("Max", _conv(g), g.const(g.normal((8, 1, 1)), "floor")), "positive")


def _one_number(g: Build, op: str, number: float, rank: int, first: bool) -> str:
    """Where, Max or Min with a stored number: it grows to one for each channel."""
    y, one = _conv(g), g.const(np.full((1,) * rank, number), "one")
    inputs: tuple[str, ...] = (one, y) if first else (y, one)
    if op == "Where":
        rows = g.input("m", (2, 1, 1, 1))
        inputs = (g.op("Greater", rows, g.const(0.0, "zero")), *inputs)
    return g.bn(g.op(op, *inputs), "mixed" if op == "Where" else "positive")


for _op, _number, _rank, _first in (
    *(("Where", 0.0, 0, True), ("Where", -3.5, 1, False), ("Where", 1.25, 4, True)),
    *(("Max", 0.0, 0, False), ("Max", 0.5, 1, True), ("Min", 0.25, 3, False), ("Min", 0.0, 0, True)),
):
    THROUGH.add(
        f"{_op} with {_number}, of rank {_rank}, {'first' if _first else 'second'} -> bn",
        partial(_one_number, op=_op, number=_number, rank=_rank, first=_first),
    )


@THROUGH("Max with 0 -> bn -> bn")
def _zero_that_was_shifted(g: Build) -> str:
    """The first fold shifts the zero, which the second then scales as well."""
    y = g.bn(g.op("Max", _conv(g), g.const(np.zeros(()), "zero")), "positive")
    return g.bn(y, "positive")


@THROUGH("Where between two convs -> bn")
def _where(g: Build) -> str:
    x = image(g)
    mask = g.op("Greater", g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1)), g.const(0.0, "zero"))
    return g.bn(g.op("Where", mask, g.conv(x, 7), g.conv(x, 7)))


@THROUGH("ReduceMax of a conv -> negative scale", note="becomes ReduceMin")
def _reduce_max(g: Build) -> str:
    return g.bn(g.op("ReduceMax", _conv(g), g.ints(2, 3, name="axes")), "negative")


@THROUGH("ReduceSum of a conv -> bn")
def _reduce_sum(g: Build) -> str:
    return g.bn(g.op("ReduceSum", _conv(g), g.ints(2, 3, name="axes")))


@THROUGH("ReduceL2 of a conv -> positive scale")
def _reduce_l2(g: Build) -> str:
    return g.mul(g.op("ReduceL2", _conv(g), g.ints(2, 3, name="axes")), "positive")


@THROUGH("conv times a gate -> scale")
def _gate(g: Build) -> str:
    y = _conv(g)
    gate = g.op("Sigmoid", g.conv(g.op("GlobalAveragePool", y), 8))
    return g.mul(g.op("Mul", y, gate))


@THROUGH("conv divided by a tensor -> scale")
def _divided(g: Build) -> str:
    x = image(g)
    return g.mul(g.op("Div", g.conv(x, 7), g.op("Exp", g.conv(x, 7))))


@THROUGH("attention: Softmax(QK) @ V -> Transpose -> bn", left=1, note="an Add stands in for V's bias")
def _attention(g: Build) -> str:
    x = tokens(g)
    q, k, v = (g.matmul(x, 8) for _ in range(3))
    weights = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    return g.bn(g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1]))


@THROUGH("MatMul -> LayerNormalization -> scale and shift")
def _layer_norm(g: Build) -> str:
    y = g.matmul(tokens(g), 8)
    y = g.op("LayerNormalization", y, g.const(g.scales(8), "scale"), g.const(g.normal((8,)), "bias"))
    return g.add(g.mul(y, axis=2), axis=2)


@THROUGH("conv -> GroupNormalization 21 -> bn", builder={"opset": 21})
def _group_norm(g: Build) -> str:
    y = _conv(g)
    scale, bias = g.const(g.scales(8), "scale"), g.const(g.normal((8,)), "bias")
    return g.bn(g.op("GroupNormalization", y, scale, bias, num_groups=4))


@THROUGH("conv -> GridSample with border padding -> bn")
def _grid_sample(g: Build) -> str:
    y, grid = _conv(g), g.input("grid", (2, 5, 4, 2))
    return g.bn(g.op("GridSample", y, grid, padding_mode="border"))


@THROUGH("conv -> Expand of a map -> one number")
def _expand(g: Build) -> str:
    y = g.op("Expand", g.op("GlobalAveragePool", _conv(g)), g.ints(2, 8, 3, 5))
    return g.bn(y)


@THROUGH("conv -> bn -> QuantizeLinear", note="the fold goes backward, so that the integers do not change")
def _quantize(g: Build) -> str:
    y = g.bn(_conv(g))
    scale, zero = g.const(0.05, "step"), g.const(np.array(3, np.int8), "zero", dtype="int8")
    return g.op("DequantizeLinear", g.op("QuantizeLinear", y, scale, zero), scale, zero)
