"""Broken rules of what takes changes in: layers with weights, recurrent ones, norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold import role_builders
from bnfold.fold.absorb import linear
from bnfold.fold.carry import equation, layers
from bnfold.fold.carry.common import other_side
from bnfold.fold.roles import (
    Affine,
    Closed,
    Gate,
    Linear,
    Normalize,
    Recurrent,
    Sampled,
    SoftmaxInput,
)
from bnfold.onnx_graph import requantize
from bnfold.onnx_graph.ops import batch_norms
from tests.onnx_graph.build import Build
from tests.proof.broken.breaking import (
    Table,
    altered,
    conv,
    image,
    replaced,
    ruled,
    stored,
    storing,
)

LAYERS = Table()


def _onwards(spread: Any, node: Any, slot: int, f: Any) -> None:
    """As if it did nothing."""
    spread.want(other_side(node, slot), f, node)


def _end(g: Build, y: str) -> str:
    return g.op("Sigmoid", y, name="end")


# what takes nothing in


@LAYERS("Closed passes a scale", ruled(Closed, _onwards, "scale"), "tanh")
def _closed_scale(g: Build) -> str:
    return _end(g, g.mul(g.op("Tanh", conv(g), name="tanh"), "positive", name="mul"))


@LAYERS("Closed passes a shift", ruled(Closed, _onwards, "shift"), "tanh")
def _closed_shift(g: Build) -> str:
    return _end(g, g.add(g.op("Tanh", conv(g), name="tanh"), name="add"))


# linear layers


def _sides(u: Any = lambda u: u, v: Any = lambda v: v, p: Any = lambda p: p, q: Any = lambda q: q) -> Any:
    def change(given: Any) -> Any:
        return u(given[0]), v(given[1]), p(given[2]), q(given[3])

    return storing(Linear, "both_sides", change)


@LAYERS("Linear, output: p is left out", _sides(p=lambda p: 1.0), "conv")
def _back_scale(g: Build) -> str:
    return _end(g, g.bn(conv(g, k=3, pads=1), name="bn"))


@LAYERS("Linear, output: the sign of p is left out", _sides(p=np.abs), "conv")
def _back_sign(g: Build) -> str:
    return _end(g, g.bn(conv(g, k=3, pads=1), "negative", name="bn"))


@LAYERS("Linear, output: q is left out", _sides(q=lambda q: q * 0.0), "conv")
def _back_shift(g: Build) -> str:
    return _end(g, g.bn(conv(g, k=3, pads=1), name="bn"))


@LAYERS("Linear, input: u is p, and not its inverse", _sides(u=lambda u: 1 / u), "conv")
def _forward_scale(g: Build) -> str:
    return _end(g, g.conv(g.bn(image(g), name="bn"), 5, k=3, name="conv"))


@LAYERS("Linear, input: v is left out", _sides(v=lambda v: v * 0.0), "conv")
def _forward_shift(g: Build) -> str:
    return _end(g, g.conv(g.bn(image(g), name="bn"), 5, k=3, name="conv"))


@LAYERS("Linear, input: v of the other sign", _sides(v=lambda v: -v), "conv")
def _forward_shift_sign(g: Build) -> str:
    return _end(g, g.conv(g.bn(image(g), name="bn"), 5, k=3, name="conv"))


@LAYERS("Linear: zeros beside the image are not looked at", altered(Linear, "shift", padded=""), "conv")
def _padding(g: Build) -> str:
    return _end(g, g.conv(g.bn(image(g), name="bn"), 5, k=3, pads=1, name="conv"))


@LAYERS(
    "Linear: windows that overlap unevenly are not looked at", altered(Linear, "shift", padded=""), "deconv"
)
def _uneven(g: Build) -> str:
    return _end(g, g.deconv(g.bn(image(g), name="bn"), 5, k=3, strides=[2, 2], name="deconv"))


def _reversed(role: Any, numbers: Any, where: Any, stack: int) -> Any:
    """The factors of the channels from the last one to the first."""
    return _against(role, numbers if isinstance(numbers, float) else np.flip(numbers, -1), where, stack)


_against = linear._against


@LAYERS(
    "Linear: the channels of its groups in another order",
    replaced(linear, "_against", _reversed),
    "conv",
)
def _grouped(g: Build) -> str:
    return _end(g, g.bn(conv(g, 6, k=3, group=2), name="bn"))


@LAYERS("Linear: the bias of a Gemm is not scaled by its beta", altered(Linear, beta=1.0), "gemm")
def _beta(g: Build) -> str:
    return _end(g, g.bn(g.gemm(g.input("x", (5, 6)), 4, c=(4,), beta=0.5, name="gemm"), name="bn"))


@LAYERS("Linear: what passes through a weight is not scaled by alpha", altered(Linear, alpha=1.0), "gemm")
def _alpha(g: Build) -> str:
    return _end(g, g.gemm(g.bn(g.input("x", (5, 6)), name="bn"), 4, c=(4,), alpha=0.5, name="gemm"))


@LAYERS(
    "Linear: a bias that is computed takes a scale", altered(Linear, "scale", bias_blocks_scale=False), "conv"
)
def _open_bias(g: Build) -> str:
    bias = g.op("Exp", g.input("b", (4,)), name="bias")
    y = g.op("Conv", image(g), g.weight((4, 4, 1, 1), 4), bias, name="conv")
    return _end(g, g.mul(y, name="mul"))


def _free_with_bias(spread: Any, node: Any, slot: int, f: Any) -> None:
    bias, node.role.bias = node.role.bias, None
    try:
        layers.linear_scale(spread, node, slot, f)
    finally:
        node.role.bias = bias


@LAYERS("Linear: a change along free axes passes a bias", ruled(Linear, _free_with_bias, "scale"), "gemm")
def _free(g: Build) -> str:
    y = g.gemm(g.matmul(g.input("x", (7, 6)), 5, left=True, name="rows"), 4, c=(4,), name="gemm")
    return _end(g, g.op("Mul", y, g.const(g.scales(5).reshape(5, 1), "scales"), name="scale"))


@LAYERS(
    "Linear: what is carried through a layer without bias is not multiplied by its weight",
    replaced(equation, "through_weight", lambda role, v, rank: np.full(role.outputs, np.mean(v))),
    "second",
)
def _carried(g: Build) -> str:
    y = g.op("Transpose", g.bn(g.input("x", (2, 6, 9)), name="bn"), perm=[0, 2, 1])
    return _end(g, g.matmul(g.matmul(y, 7, name="first"), 8, bias=True, name="second"))


@LAYERS(
    "Linear: what one layer of a stack takes in goes into another one",
    replaced(linear, "_stacked", lambda vectors: _stacked(vectors[::-1])),
    "one",
)
def _together(g: Build) -> str:
    y = g.bn(g.conv(image(g), 4, k=3, name="one"), name="n1")
    return _end(g, g.bn(g.conv(g.op("Tanh", y), 4, k=3, name="two"), name="n2"))


_stacked = linear._stacked


@LAYERS(
    "quantized: a negative factor, and the integers stay as they are",
    replaced(requantize, "negated", lambda stored, zero, *_: (stored, zero)),
    "conv",
    builder={"opset": 19},
)
def _quantized(g: Build) -> str:
    w = g.const(g.rng.integers(-127, 128, (5, 4, 3, 3)), "integers", dtype="int8")
    w = g.op("DequantizeLinear", w, g.const(g.rng.uniform(0.001, 0.003, 5), "step"), axis=0)
    return _end(g, g.bn(g.op("Conv", image(g), w, name="conv"), name="bn"))


# affine nodes that stay, and the numbers of those that vanish


def _affine(u: Any = lambda u: u, v: Any = lambda v: v) -> Any:
    return storing(Affine, "decode", lambda given: (u(given[0]), v(given[1])))


def _two_norms(g: Build) -> tuple[str, str]:
    y = conv(g, k=3)
    return _end(g, g.bn(y, name="bn")), g.op("Tanh", g.bn(y, name="other"), name="end2")


@LAYERS("Affine: a batch norm that stays does not take in u", _affine(u=lambda u: 1.0), "other")
def _stays_scale(g: Build) -> tuple[str, ...]:
    return _two_norms(g)


@LAYERS("Affine: a batch norm that stays does not take in v", _affine(v=lambda v: 0.0), "other")
def _stays_shift(g: Build) -> tuple[str, ...]:
    return _two_norms(g)


@LAYERS(
    "Affine: a shift passes a constant scale unchanged",
    ruled(Affine, lambda s, n, slot, d: s.want(other_side(n, slot, n.role.x), d, n), "shift"),
    "scale",
    options={"skip": ["scale"]},
)
def _through_scale(g: Build) -> str:
    return _end(g, g.add(g.mul(conv(g), name="scale"), name="shift"))


def _without_epsilon(gamma: Any, beta: Any, mean: Any, var: Any, eps: Any) -> Any:
    return _from_batch_norm(gamma, beta, mean, var, 0.0)


_from_batch_norm = role_builders.from_batch_norm


@LAYERS(
    "Affine: the epsilon of a batch norm is left out",
    replaced(batch_norms, "from_batch_norm", _without_epsilon),
    "bn",
)
def _epsilon(g: Build) -> str:
    return _end(g, g.bn(conv(g), name="bn", epsilon=0.3))


@LAYERS(
    "Sampled: q is left out",
    storing(Sampled, "encode", lambda given: (given[0], 0.0)),
    "deform",
    builder={"opset": 19},
)
def _sampled(g: Build) -> str:
    w, b = g.weight((4, 4, 3, 2), 24), g.const(g.normal((4,)), "bias")
    offset = g.op("Tanh", g.input("offset", (1, 12, 3, 3)))
    y = g.op("DeformConv", g.input("x", (1, 4, 5, 4)), w, offset, b, kernel_shape=[3, 2], name="deform")
    return _end(g, g.bn(y, name="bn"))


# recurrent layers


def _lstm(g: Build) -> str:
    x = g.op("Transpose", g.bn(g.input("x", (2, 3, 5)), name="bn"), perm=[2, 0, 1])
    w, r = g.weight((1, 8, 3), 3, "W"), g.weight((1, 8, 2), 2, "R")
    return g.ops("LSTM", x, w, r, g.const(g.normal((1, 16), 0.3), "B"), count=1, hidden_size=2, name="lstm")[
        0
    ]


def _recurrent(u: Any = lambda u: u, v: Any = lambda v: v) -> Any:
    return storing(Recurrent, "decode", lambda given: (u(given[0]), v(given[1])))


LAYERS("Recurrent: u is p, and not its inverse", _recurrent(u=lambda u: 1 / u), "lstm")(_lstm)
LAYERS("Recurrent: v is left out", _recurrent(v=lambda v: v * 0.0), "lstm")(_lstm)


# gates, norms, Softmax


@LAYERS(
    "Gate: the beta of HardSigmoid stays",
    storing(Gate, "decode", lambda given: (given[0], np.zeros(1))),
    "gate",
)
def _gate_beta(g: Build) -> str:
    y = g.op("Add", g.op("Mul", image(g), g.const(-0.6, "a")), g.const(0.2, "b"))
    return g.op("HardSigmoid", y, alpha=0.3, beta=0.4, name="gate")


@LAYERS("Gate: the alpha of Celu stays", stored(Gate, lambda state, node: iter(())), "celu")
def _gate_alpha(g: Build) -> str:
    y = g.op("Celu", conv(g), alpha=0.7, name="celu")
    return _end(g, g.op("Mul", y, g.const(0.4, "number"), name="scale"))


@LAYERS("Gate: Celu passes a negative scale", replaced(layers, "positive", lambda *_: None), "celu")
def _gate_sign(g: Build) -> str:
    y = g.op("Celu", conv(g), alpha=0.7, name="celu")
    return _end(g, g.op("Mul", y, g.const(-0.4, "number"), name="scale"))


def _instance(g: Build, y: str, **more: Any) -> str:
    scale, bias = g.const(g.scales(4), "scales"), g.const(g.normal((4,)), "biases")
    return g.op("InstanceNormalization", y, scale, bias, name="norm", **more)


@LAYERS("Normalize: its epsilon is not scaled", altered(Normalize, eps=0.0), "norm")
def _norm_epsilon(g: Build) -> str:
    return _end(g, _instance(g, g.op("Mul", image(g), g.const(0.02, "a"), name="scale"), epsilon=1e-3))


@LAYERS("Normalize: a negative scale passes", replaced(layers, "positive", lambda *_: None), "norm")
def _norm_sign(g: Build) -> str:
    return _end(g, _instance(g, g.op("Mul", image(g), g.const(-0.7, "a"), name="scale"), epsilon=1e-3))


@LAYERS(
    "Normalize: a shift passes one that takes no mean off",
    altered(Normalize, "shift", removes_mean=True),
    "norm",
    builder={"opset": 23},
)
def _norm_mean(g: Build) -> str:
    y = g.op("Add", g.input("x", (2, 5, 6)), g.const(0.7, "a"), name="shift")
    return _end(g, g.op("RMSNormalization", y, g.const(g.scales(6), "scales"), name="norm"))


@LAYERS(
    "Normalize: a shift that varies along what is normalized passes",
    altered(Normalize, "shift", over=()),
    "norm",
)
def _norm_over(g: Build) -> str:
    y = g.add(g.input("x", (2, 5, 6)), axis=2, name="shift")
    return _end(
        g, g.op("LayerNormalization", y, g.const(g.scales(6), "s"), g.const(g.normal((6,)), "b"), name="norm")
    )


@LAYERS(
    "Normalize: its own scale does not take in p",
    storing(Normalize, "encode", lambda given: (1.0, given[1])),
    "norm",
)
def _norm_scale(g: Build) -> str:
    return _end(g, g.bn(_instance(g, conv(g)), name="bn"))


@LAYERS(
    "SoftmaxInput: a shift that varies along its axis passes", altered(SoftmaxInput, "shift", axis=0), "end"
)
def _softmax(g: Build) -> str:
    return g.op("Softmax", g.add(g.input("x", (5, 6)), axis=1, name="shift"), axis=1, name="end")
