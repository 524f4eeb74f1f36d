"""Batch norms whose scale and shift are settled apart, and regions that change as a whole."""

from __future__ import annotations

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns, image

SIDEWAYS = Patterns()


@SIDEWAYS("conv -> Relu -> bn -> Add(conv) -> Sigmoid")
def _sideways(g: Build) -> str:
    x = image(g)
    y = g.bn(g.op("Relu", g.conv(x, 8, k=3, pads=1)), "positive")
    return g.op("Sigmoid", g.op("Add", y, g.conv(x, 8)))


def _identity_block(g: Build, x: str) -> str:
    return g.op("Relu", g.op("Add", g.conv(x, 8, k=3, pads=1), g.bn(x, "positive")))


@SIDEWAYS("two blocks with a batch norm in place of the identity")
def _identity_blocks(g: Build) -> str:
    x = g.op("Relu", g.conv(image(g), 8, k=3, pads=1))
    return _identity_block(g, _identity_block(g, x))


@SIDEWAYS("Split -> swap -> Concat -> bn")
def _swap(g: Build) -> str:
    left, right = g.ops("Split", g.conv(image(g), 8, k=3), g.ints(3, 5, name="sizes"), count=2, axis=1)
    return g.bn(g.op("Concat", right, left, axis=1))


@SIDEWAYS("Add(t, t) -> bn")
def _twice(g: Build) -> str:
    t = g.conv(image(g), 7, k=3)
    return g.bn(g.op("Add", t, t))


@SIDEWAYS("t + AveragePool(t) -> bn")
def _pooled(g: Build) -> str:
    t = g.conv(image(g), 7)
    return g.bn(g.op("Add", t, g.op("AveragePool", t, kernel_shape=[3, 3], pads=[1, 1, 1, 1])))


@SIDEWAYS("residual blocks without activation between their sums", left=2, norms=2)
def _preactivation(g: Build) -> str:
    x = g.conv(image(g), 8, k=3)
    for _ in range(2):
        y = g.op("Relu", g.bn(x))
        x = g.op("Add", x, g.conv(y, 8, k=3, pads=1))
    return g.op("Relu", g.bn(x))


@SIDEWAYS("dense block: the batch norms of all but the last stay", left=2, norms=2)
def _dense(g: Build) -> str:
    features = [g.conv(image(g), 5)]
    for _ in range(2):
        whole = g.op("Concat", *features, axis=1) if len(features) > 1 else features[0]
        features.append(g.conv(g.op("Relu", g.bn(whole)), 3, k=3, pads=1))
    return g.op("Relu", g.bn(g.op("Concat", *features, axis=1)))


@SIDEWAYS("one wide batch norm against two narrow ones", left=1, norms=1, note="the wide one is evicted")
def _evict(g: Build) -> tuple[str, ...]:
    x = image(g)
    t1, t2 = g.conv(x, 3, k=3), g.conv(x, 5, k=3)
    wide = g.op("Sigmoid", g.bn(g.op("Concat", t1, t2, axis=1)))
    return wide, g.op("Sigmoid", g.bn(t1)), g.op("Sigmoid", g.bn(t2))


@SIDEWAYS("residual sum with a batch norm on each side")
def _downsample(g: Build) -> str:
    x = image(g)
    y = g.bn(g.conv(g.op("Relu", g.bn(g.conv(x, 8, k=3, pads=1))), 7, k=3, strides=[2, 2]))
    return g.op("Relu", g.op("Add", y, g.bn(g.conv(x, 7, k=3, pads=0, strides=[2, 2], bias=False))))


@SIDEWAYS("the scale goes back past Relu, the shift forward into a conv")
def _apart(g: Build) -> str:
    y = g.op("Relu", g.conv(image(g), 8, k=3))
    return g.op("Sigmoid", g.conv(g.add(g.mul(y, "positive")), 7, k=3))


# what no weight takes in: the entry names who reads the constants, or a neighbour of what changes nothing


@SIDEWAYS("Where of two constants -> bn")
def _where_constants(g: Build) -> str:
    mask = g.op("Greater", g.input("x", (2, 1, 4, 5)), g.const(0.0, "zero"))
    a, b = (g.const(g.normal((1, 6, 1, 1)), name) for name in "ab")
    return g.op("Sigmoid", g.bn(g.op("Where", mask, a, b)))


@SIDEWAYS("scales of one and shifts of zero between closed operators")
def _nothing(g: Build) -> str:
    y = g.op("Tanh", g.op("Mul", g.op("Sigmoid", image(g)), g.const(np.ones((6, 1, 1)), "one")))
    zeros, ones = g.const(np.zeros(6), "zeros"), g.const(np.ones(6), "ones")
    return g.op("Tanh", g.op("BatchNormalization", y, ones, zeros, zeros, ones, epsilon=0.0))
