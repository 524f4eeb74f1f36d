"""Batch norms that go forward, into what reads them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns, image, rows, tokens

FORWARD = Patterns()

# into a convolution without padding

CONVS: dict[str, dict[str, Any]] = {
    "3x3": {"outputs": 7, "k": 3},
    "3x3 without bias": {"outputs": 7, "k": 3, "bias": False},
    "3x3 with stride and dilation": {"outputs": 7, "k": 3, "strides": [2, 1], "dilations": [1, 2]},
    "3x3 VALID": {"outputs": 7, "k": 3, "auto_pad": "VALID"},
    "1x1": {"outputs": 7},
    "1x1 without bias": {"outputs": 7, "bias": False},
    "1x1 SAME": {"outputs": 7, "auto_pad": "SAME_UPPER"},
    "grouped": {"outputs": 10, "k": 3, "group": 2},
    "grouped without bias": {"outputs": 9, "k": 3, "group": 3, "bias": False},
    "depthwise": {"outputs": 12, "k": 3, "group": 6},
    "depthwise without bias": {"outputs": 6, "k": 3, "group": 6, "bias": False},
}


def _into_conv(g: Build, shape: tuple[int, ...] = (2, 6, 9, 11), **attrs: Any) -> str:
    return g.conv(g.bn(g.input("x", shape)), **attrs)


for _name, _attrs in CONVS.items():
    FORWARD.add(f"bn -> conv {_name}", partial(_into_conv, **_attrs))
FORWARD.add("bn -> conv 1d grouped", partial(_into_conv, shape=(2, 6, 13), outputs=4, k=3, group=2))
FORWARD.add("bn -> conv 3d grouped", partial(_into_conv, shape=(2, 6, 5, 7, 6), outputs=4, k=3, group=2))


@FORWARD("bn -> two convs")
def _two(g: Build) -> tuple[str, ...]:
    y = g.bn(image(g))
    return g.conv(y, 7, k=3), g.conv(y, 8, group=2, bias=False)


@FORWARD("bn -> two convs with one weight")
def _two_shared(g: Build) -> tuple[str, ...]:
    x, w = image(g), g.weight((7, 6, 3, 3), 54)
    return g.conv(g.bn(x), 7, w=w), g.conv(x, 7, w=w)


@FORWARD("scale -> padded conv")
def _scale_padded(g: Build) -> str:
    return g.conv(g.bn(image(g), shift=False), 7, k=3, pads=1)


@FORWARD("scale -> ConvTranspose grouped")
def _scale_deconv(g: Build) -> str:
    return g.deconv(g.mul(image(g)), 10, k=3, group=2, strides=[2, 2])


@FORWARD("bn -> ConvTranspose 1x1 grouped")
def _point_deconv(g: Build) -> str:
    return g.deconv(g.bn(image(g)), 10, group=2)


@FORWARD("bn with a zero scale -> conv")
def _zero(g: Build) -> str:
    return g.conv(g.bn(image(g), "zero"), 7, k=3)


@FORWARD("bn with a zero scale -> AveragePool -> conv")
def _zero_pool(g: Build) -> str:
    return g.conv(g.op("AveragePool", g.bn(image(g), "zero"), kernel_shape=[2, 2]), 7, k=3)


@FORWARD("zero and positive scales -> Relu -> padded conv")
def _zero_relu(g: Build) -> str:
    y = g.bn(image(g), "zero or positive", shift=False)
    return g.conv(g.op("Relu", y), 7, k=3, pads=1)


# into Gemm and MatMul


@FORWARD("bn -> Gemm")
def _gemm(g: Build) -> str:
    return g.gemm(g.bn(rows(g)), 7, c=(7,))


@FORWARD("bn -> Gemm with alpha, beta, transB and scalar C")
def _gemm_scaled(g: Build) -> str:
    return g.gemm(g.bn(rows(g)), 7, c=(), alpha=0.5, beta=2.0, transB=1)


@FORWARD("bn -> Gemm without C")
def _gemm_plain(g: Build) -> str:
    return g.gemm(g.bn(rows(g)), 7, c=None, alpha=-2.0)


@FORWARD("bn -> Transpose -> Gemm with transA and a C of shape (M, 1)")
def _gemm_transposed(g: Build) -> str:
    y = g.op("Transpose", g.bn(rows(g)), perm=[1, 0])
    return g.gemm(y, 7, c=(5, 1), transA=1, beta=0.5)


@FORWARD("bn -> MatMul")
def _matmul(g: Build) -> str:
    return g.matmul(g.bn(rows(g)), 7)


@FORWARD("bn -> MatMul with Add", left=1, note="the Add was there; it may also go into a Gemm")
def _matmul_add(g: Build) -> str:
    return g.op("Transpose", g.matmul(g.op("Transpose", g.bn(tokens(g)), perm=[0, 2, 1]), 8, bias=True))


@FORWARD("bn -> MatMul with the weight on the left", left=1, note="an Add stands in for the bias")
def _matmul_left(g: Build) -> str:
    return g.matmul(g.bn(g.input("x", (2, 6, 9))), 7, left=True)


@FORWARD("bn -> MatMul -> MatMul -> Add", left=1, note="the shift is carried through the first MatMul")
def _matmul_twice(g: Build) -> str:
    y = g.op("Transpose", g.bn(g.input("x", (2, 6, 9))), perm=[0, 2, 1])
    return g.matmul(g.matmul(y, 7), 8, bias=True)


@FORWARD("bn -> Flatten -> Gemm")
def _flatten_gemm(g: Build) -> str:
    return g.gemm(g.op("Flatten", g.bn(g.input("x", (2, 6, 3, 5)))), 7, c=(7,))


@FORWARD("bn -> Reshape -> MatMul")
def _reshape_matmul(g: Build) -> str:
    return g.matmul(g.op("Reshape", g.bn(g.input("x", ("N", 6, 3, 5))), g.ints(-1, 90)), 7)


@FORWARD("bn -> GlobalAveragePool -> Flatten -> Gemm")
def _pool_gemm(g: Build) -> str:
    return g.gemm(g.op("Flatten", g.op("GlobalAveragePool", g.bn(image(g)))), 7, c=(7,))


@FORWARD("bn -> ReduceMean -> MatMul")
def _mean_matmul(g: Build) -> str:
    return g.matmul(g.op("ReduceMean", g.bn(image(g)), g.ints(2, 3, name="axes"), keepdims=0), 7)


@FORWARD("bn -> GlobalAveragePool -> conv")
def _pool_conv(g: Build) -> str:
    return g.conv(g.op("GlobalAveragePool", g.bn(image(g))), 7)


# past other operators


@FORWARD("bn -> reflect Pad -> conv")
def _pad(g: Build) -> str:
    y = g.op("Pad", g.bn(image(g)), g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads"), mode="reflect")
    return g.conv(y, 7, k=3)


@FORWARD("scale -> constant Pad -> conv")
def _pad_scale(g: Build) -> str:
    return g.conv(g.op("Pad", g.mul(image(g)), g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads")), 7, k=3)


@FORWARD("one number added -> constant Pad -> conv", note="the fill takes it")
def _pad_fill(g: Build) -> str:
    y = g.op("Add", image(g), g.const(0.6, "shift"))
    return g.conv(g.op("Pad", y, g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads"), g.const(0.0, "fill")), 7, k=3)


@FORWARD("bn -> AveragePool -> conv")
def _average(g: Build) -> str:
    return g.conv(g.op("AveragePool", g.bn(image(g)), kernel_shape=[2, 2]), 7, k=3)


@FORWARD("conv -> Relu -> bn -> MaxPool -> conv")
def _max_pool(g: Build) -> str:
    y = g.bn(g.op("Relu", g.conv(image(g), 8, k=3)), "positive")
    return g.conv(g.op("MaxPool", y, kernel_shape=[2, 2]), 7, k=3)


@FORWARD("conv -> Relu -> bn -> conv")
def _after_relu(g: Build) -> str:
    return g.conv(g.bn(g.op("Relu", g.conv(image(g), 8, k=3))), 7, k=3)


@FORWARD("bn -> Concat -> conv")
def _concat(g: Build) -> str:
    x = image(g)
    return g.conv(g.op("Concat", x, g.bn(x), g.op("Sigmoid", x), axis=1), 7, k=3)


@FORWARD("bn of both -> Concat -> conv grouped")
def _concat_both(g: Build) -> str:
    return g.conv(g.op("Concat", g.bn(image(g)), g.bn(image(g, 4, "x1")), axis=1), 6, group=2)


@FORWARD("bn -> Split -> convs")
def _split(g: Build) -> tuple[str, ...]:
    parts = g.ops("Split", g.bn(image(g)), g.ints(2, 4, name="sizes"), count=2, axis=1)
    return tuple(g.conv(part, 5, k=3) for part in parts)


@FORWARD("bn -> channel shuffle -> depthwise conv")
def _shuffle(g: Build) -> str:
    y = g.op("Reshape", g.bn(image(g)), g.ints(2, 3, 2, 9, 11))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.ints(2, 6, 9, 11))
    return g.conv(y, 6, k=3, group=6)


@FORWARD("bn -> SpaceToDepth -> conv")
def _space_to_depth(g: Build) -> str:
    return g.conv(g.op("SpaceToDepth", g.bn(g.input("x", (2, 3, 6, 10))), blocksize=2), 7)


@FORWARD("bn -> Resize -> Dropout -> conv")
def _resize(g: Build) -> str:
    y = g.op("Resize", g.bn(image(g)), "", g.const(np.array([1.0, 1.0, 2.0, 2.0]), "factors"), mode="linear")
    return g.conv(g.op("Dropout", y), 7, k=3)


@FORWARD("bn -> bn -> conv")
def _bn_bn(g: Build) -> str:
    return g.conv(g.bn(g.bn(image(g))), 7, k=3)


@FORWARD("scale -> Relu -> conv")
def _scale_relu(g: Build) -> str:
    return g.conv(g.op("Relu", g.mul(image(g), "positive")), 7, k=3, pads=1)


@FORWARD("scale -> PRelu -> conv")
def _scale_prelu(g: Build) -> str:
    slope = g.const(g.rng.uniform(0.1, 0.5, (6, 1, 1)), "slope")
    return g.conv(g.op("PRelu", g.mul(image(g)), slope), 7, k=3, pads=1)


@FORWARD("one number -> HardSigmoid")
def _hard_sigmoid(g: Build) -> str:
    y = g.op("Add", g.op("Mul", image(g), g.const(-0.6, "scale")), g.const(0.2, "shift"))
    return g.op("HardSigmoid", y, alpha=0.3, beta=0.4)


@FORWARD("shift -> InstanceNormalization")
def _instance_norm(g: Build) -> str:
    scale, bias = g.const(g.scales(6), "scale"), g.const(g.normal((6,)), "bias")
    return g.op("InstanceNormalization", g.add(image(g)), scale, bias)


@FORWARD("one positive number -> InstanceNormalization", note="eps follows")
def _instance_norm_scale(g: Build) -> str:
    scale, bias = g.const(g.scales(6), "scale"), g.const(g.normal((6,)), "bias")
    y = g.op("Mul", image(g), g.const(0.02, "number"))
    return g.op("InstanceNormalization", y, scale, bias, epsilon=1e-3)


@FORWARD("one number added -> Softmax")
def _softmax(g: Build) -> str:
    return g.op("Softmax", g.op("Add", rows(g), g.const(0.7, "shift")), axis=1)


@FORWARD("bn -> LSTM")
def _lstm(g: Build) -> str:
    x = g.op("Transpose", g.bn(g.input("x", (2, 6, 9))), perm=[2, 0, 1])
    w, r = g.weight((1, 16, 6), 6, "W"), g.weight((1, 16, 4), 4, "R")
    return g.ops("LSTM", x, w, r, g.const(g.normal((1, 32), 0.3), "B"), count=1, hidden_size=4)[0]


@FORWARD("bn -> GRU without bias")
def _gru(g: Build) -> str:
    x = g.op("Transpose", g.bn(g.input("x", (2, 6, 9))), perm=[2, 0, 1])
    w, r = g.weight((2, 12, 6), 6, "W"), g.weight((2, 12, 4), 4, "R")
    return g.ops("GRU", x, w, r, count=1, hidden_size=4, direction="bidirectional")[0]
