"""Patterns by where and how weights are stored: computed, nested; opsets, types, shapes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.onnx_graph.build import Array, Build
from tests.onnx_graph.cases.case import Patterns, image, rows

STORED = Patterns()

# Constant nodes and computed constants


def _plain(g: Build, x: str | None = None) -> str:
    return g.bn(g.conv(x or image(g), 8, k=3, group=2))


STORED.add("Constant nodes", _plain, builder={"how": "constant"})


@STORED("Constant nodes with attributes of their own")
def _constant_attributes(g: Build) -> str:
    values = [g.scales(7), g.normal((7,)), g.normal((7,)), g.rng.uniform(0.3, 3, 7)]
    parts = [g.op("Constant", value_floats=[float(np.float32(entry)) for entry in v]) for v in values]
    return g.op("BatchNormalization", g.conv(image(g), 7, k=3), *parts)


def _identity(g: Build, name: str, array: Array) -> str:
    return g.op("Identity", g.const(array, f"{name}_stored", "initializer"), out=name)


def _reshaped(g: Build, name: str, array: Array) -> str:
    return g.op(
        "Reshape", g.const(array.reshape(-1), f"{name}_flat", "initializer"), g.ints(*array.shape), out=name
    )


def _transposed(g: Build, name: str, array: Array) -> str:
    perm = list(range(array.ndim))[::-1]
    return g.op("Transpose", g.const(array.T, f"{name}_stored", "initializer"), perm=perm, out=name)


def _unsqueezed(g: Build, name: str, array: Array) -> str:
    wide = g.op("Unsqueeze", g.const(array, f"{name}_stored", "initializer"), g.ints(0, name="axes"))
    return g.op("Squeeze", wide, g.ints(0, name="axes"), out=name)


def _cast(g: Build, name: str, array: Array) -> str:
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    half = g.const(array, f"{name}_half", "initializer", dtype="float16")
    return g.op("Cast", half, to=code, out=name)


def _computed(g: Build, name: str, array: Array) -> str:
    """Small arithmetic: (2*a + 1) / 2 - 0.5."""
    double = g.op("Mul", g.const(array, f"{name}_stored", "initializer"), g.const(2.0, "two", "initializer"))
    more = g.op("Add", double, g.const(1.0, "one", "initializer"))
    half = g.op("Div", more, g.const(2.0, "two", "initializer"))
    return g.op("Sub", half, g.const(0.5, "half", "initializer"), out=name)


def _joined(g: Build, name: str, array: Array) -> str:
    parts = [g.const(part, f"{name}_part", "initializer") for part in np.split(array, [1])]
    return g.op("Concat", *parts, axis=0, out=name)


def _parted(g: Build, name: str, array: Array) -> str:
    whole = np.concatenate([array + 1, array, array])
    rows = len(array)
    stored, sizes = g.const(whole, f"{name}_whole", "initializer"), g.ints(rows, rows, rows, name="sizes")
    return g.ops("Split", stored, sizes, count=3, axis=0)[1]


COMPUTED = {
    "Identity": _identity,
    "Reshape": _reshaped,
    "Transpose": _transposed,
    "Unsqueeze and Squeeze": _unsqueezed,
    "Cast": _cast,
    "arithmetic": _computed,
    "Concat": _joined,
    "Split": _parted,
}


@STORED("all parameters out of one Split")
def _one_split(g: Build) -> str:
    y = g.conv(image(g), 7, k=3)
    whole = g.const(g.rng.uniform(0.3, 2, 28), "whole")
    return g.op("BatchNormalization", y, *g.ops("Split", whole, g.ints(7, 7, 7, 7, name="sizes"), count=4))


for _name, _how in COMPUTED.items():
    STORED.add(f"weights and parameters computed by {_name}", _plain, builder={"how": _how})


@STORED("bias and parameters from ConstantOfShape")
def _constant_of_shape(g: Build) -> str:
    def fill(value: float) -> str:
        filled = helper.make_tensor("fill", TensorProto.FLOAT, [1], [value])
        return g.op("ConstantOfShape", g.ints(7), value=filled)

    y = g.op("Conv", image(g), g.weight((7, 6, 3, 3), 54), fill(0.25))
    return g.op(
        "BatchNormalization",
        y,
        g.const(g.scales(7), "scale"),
        fill(0.5),
        g.op("ConstantOfShape", g.ints(7)),
        fill(1.5),
    )


def _expanded_bias(g: Build, outputs: int, x: str) -> str:
    zero = g.const(np.array(0.0, np.float32), "zero", "constant")
    like = g.op("CastLike", zero, x)
    return g.op("Expand", like, g.const(np.array([outputs], np.int64), "size", "constant"))


@STORED("raw torch: the bias is Expand(CastLike(0, x), shape)")
def _raw_torch(g: Build) -> str:
    x = image(g)
    return g.bn(
        g.op("Conv", x, g.weight((8, 3, 3, 3), 27), _expanded_bias(g, 8, x), group=2, pads=[1, 1, 1, 1])
    )


@STORED("raw torch: a chain of convs, the bias cast like each one's input")
def _raw_torch_chain(g: Build) -> str:
    x = image(g)
    for outputs in (8, 7):
        w = g.weight((outputs, g.channels(x), 3, 3), g.channels(x) * 9)
        x = g.op("Relu", g.bn(g.op("Conv", x, w, _expanded_bias(g, outputs, x), pads=[1, 1, 1, 1])))
    return x


@STORED("raw torch: the weight of a linear layer is transposed, and bn follows a Reshape", left=1)
def _raw_torch_linear(g: Build) -> str:
    x = g.input("x", (2, 7, 6))
    y = g.op("MatMul", x, g.op("Transpose", g.weight((8, 6), 6), perm=[1, 0]))
    y = g.op("Reshape", g.op("Add", y, g.const(g.normal((8,)), "bias")), g.ints(14, 8))
    return g.bn(y)


# inner graphs


def _branches(g: Build, x: str, **how: Any) -> str:
    branches = {}
    for name in ("then_branch", "else_branch"):
        body = g.body()
        body.how = how.get("how", body.how)
        body.output(body.op("Identity", body.bn(body.conv(x, 7, k=3))))
        branches[name] = body.graph(name)
    return g.op("If", g.input("cond", (), "bool"), **branches)


@STORED("inside the branches of If, weights in the branch")
def _if(g: Build) -> str:
    return _branches(g, image(g))


@STORED("inside the branches of If, weights in Constant nodes")
def _if_constants(g: Build) -> str:
    return _branches(g, image(g), how="constant")


@STORED("inside the branches of If, weights captured from outside")
def _if_captured(g: Build) -> str:
    x, w, parameters = image(g), g.weight((7, 6, 3, 3), 54), g.norm_parameters(7)
    branches = {}
    for name in ("then_branch", "else_branch"):
        body = g.body()
        body.output(body.bn(body.conv(x, 7, w=w, bias=name == "then_branch"), parameters=parameters))
        branches[name] = body.graph(name)
    return g.op("If", g.input("cond", (), "bool"), **branches)


@STORED("inside the body of Loop")
def _loop(g: Build) -> str:
    x = image(g)
    body = g.body()
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", (2, 6, 9, 11))
    y = body.op("Tanh", body.bn(body.conv(state, 6, k=3, pads=1)))
    body.output(body.op("Identity", "go_on"), body.op("Add", y, state))
    return g.op(
        "Loop", g.const(np.array(3), "steps"), g.const(np.array(True), "go"), x, body=body.graph("body")
    )


@STORED("inside the body of Loop, weights captured from outside and used there too")
def _loop_captured(g: Build) -> tuple[str, ...]:
    x, w, parameters = image(g), g.weight((6, 6, 3, 3), 54), g.norm_parameters(6)
    body = g.body()
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", (2, 6, 9, 11))
    y = body.op("Tanh", body.bn(body.conv(state, 6, w=w, bias=False, pads=1), parameters=parameters))
    body.output(body.op("Identity", "go_on"), body.op("Add", y, state))
    looped = g.op(
        "Loop", g.const(np.array(3), "steps"), g.const(np.array(True), "go"), x, body=body.graph("body")
    )
    return looped, g.conv(x, 6, w=w, bias=False)


@STORED("inside a function, weights in Constant nodes")
def _function(g: Build) -> str:
    body = g.body()
    body.how = "constant"
    body.types["t"] = g.type_of(image(g))
    body.output(body.op("Relu", _plain(body, "t")))
    body.function("Block", ["t"])
    return g.op("Block", "x", domain="test", out="y")


@STORED("inside a function that is called twice")
def _function_twice(g: Build) -> str:
    body = g.body()
    body.how = "constant"
    body.types["t"] = g.type_of(image(g))
    body.output(body.op("Relu", body.bn(body.conv("t", 6, k=3, pads=1))))
    body.function("Block", ["t"])
    return g.op("Block", g.op("Block", "x", domain="test", out="middle"), domain="test", out="y")


# opsets and IR versions


def _old(g: Build, **attrs: Any) -> str:
    """What reads alike in all opsets: conv -> bn -> Relu -> bn -> conv, and a batch norm past MaxPool."""
    y = g.bn(g.conv(image(g), 8, k=3, group=2), **attrs)
    y = g.op("MaxPool", g.op("Relu", y), kernel_shape=[2, 2])
    return g.conv(g.bn(y, **attrs), 7)


for _opset in (7, 8, 9, 11, 13, 14, 15, 18, 20, 21, 22, 23):
    STORED.add(f"opset {_opset}", _old, builder={"opset": _opset})
STORED.add("opset 7 with spatial=1", partial(_old, spatial=1, momentum=0.9), builder={"opset": 7})
STORED.add("opset 14 with training_mode=0", partial(_old, training_mode=0), builder={"opset": 14})


@STORED("opset 6 with is_test=1", builder={"opset": 6}, evaluator="reference")
def _opset6(g: Build) -> str:
    return g.bn(g.conv(image(g), 8, k=3, group=2), is_test=1)


@STORED("opset 9: attributes that became inputs", builder={"opset": 9})
def _opset9(g: Build) -> tuple[str, ...]:
    x = image(g)
    padded = g.op("Pad", g.conv(x, 8, k=3), mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    left, right = g.ops("Split", g.conv(x, 6, k=3), count=2, axis=1, split=[2, 4])
    part = g.op("Slice", right, axes=[1, 2], starts=[2, 1], ends=[9, -1])
    pooled = g.op("Squeeze", g.op("GlobalAveragePool", left), axes=[2, 3])
    clipped = g.op("Clip", g.conv(x, 5), min=-0.7, max=0.9)
    number = g.const(1.7, "number")
    return g.bn(padded), g.bn(part), g.bn(pooled), g.op("Mul", clipped, number)


@STORED("IR 3: initializers are inputs too, and still constants", builder={"opset": 7, "ir": 3})
def _ir3(g: Build) -> str:
    y = _plain(g)
    g.expose(*(tensor.name for tensor in g.initializers))
    return y


@STORED("IR 3 without bias: the new bias becomes an input too", builder={"opset": 8, "ir": 3})
def _ir3_bias(g: Build) -> str:
    y = g.bn(g.conv(image(g), 8, k=3, bias=False))
    g.expose(*(tensor.name for tensor in g.initializers))
    return y


# types


def _typed(g: Build) -> str:
    """Backward past Concat, and forward."""
    x = image(g)
    y = g.bn(g.op("Concat", g.conv(x, 4, k=3), g.conv(x, 3, k=3), axis=1), scale=g.scales(7))
    return g.conv(g.bn(g.op("Relu", y)), 5)


for _dtype, _opset, _evaluator, _tolerance in (
    ("float16", 18, "onnxruntime", 5e-3),
    ("float64", 18, "reference", 1e-13),
    ("bfloat16", 22, "reference", 5e-2),
):
    _options = {"dtype": _dtype, "opset": _opset}
    STORED.add(_dtype, _typed, builder=_options, evaluator=_evaluator, tolerance=_tolerance)
STORED.add(
    "float16 Gemm", lambda g: g.bn(g.gemm(rows(g), 7, c=(7,))), builder={"dtype": "float16"}, tolerance=5e-3
)


# what is known of shapes


@STORED("named sizes")
def _named(g: Build) -> str:
    y = _plain(g, g.input("x", ("N", 6, "H", "W")))
    return g.gemm(g.op("Flatten", g.op("GlobalAveragePool", g.bn(g.op("Relu", y)))), 5, c=(5,))


@STORED("sizes without names")
def _unnamed(g: Build) -> str:
    y = _plain(g, g.input("x", (None, 6, None, None)))
    return g.bn(g.op("MaxPool", y, kernel_shape=[2, 2]), "positive")


@STORED("nodes without names")
def _nameless(g: Build) -> str:
    y = g.bn(g.op("Concat", _plain(g), g.conv("x", 3, k=3), axis=1))
    for node in g.nodes:
        node.ClearField("name")
    return y


@STORED("names that look like new ones")
def _collisions(g: Build) -> str:
    for name in ("conv_bias", "conv_weight_1", "conv_weight_folded", "conv_folded_bias"):
        g.const(g.normal((7,)), name)
    return g.bn(g.conv(image(g), 7, k=3, bias=False))


@STORED("bn that feeds its own graph output and more")
def _output_used(g: Build) -> tuple[str, ...]:
    y = g.bn(g.conv(image(g), 7, k=3))
    return y, g.op("Relu", y)
