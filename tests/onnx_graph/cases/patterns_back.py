"""Batch norms that go backward, into what computes their input."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Patterns, image, rows, tokens

BACK = Patterns()

# conv 1d, 2d, 3d; dense, grouped, depthwise; with and without bias

SPACES: dict[int, tuple[int, ...]] = {1: (2, 6, 13), 2: (2, 6, 9, 11), 3: (2, 6, 5, 7, 6)}
WIRING: dict[str, tuple[int, int]] = {"dense": (1, 7), "grouped": (2, 10), "depthwise": (6, 12)}


def _conv(g: Build, dims: int, kind: str, bias: bool) -> str:
    group, outputs = WIRING[kind]
    return g.bn(g.conv(g.input("x", SPACES[dims]), outputs, k=3, group=group, bias=bias, pads=1))


for _dims in SPACES:
    for _kind in WIRING:
        for _bias in (True, False):
            _name = f"conv{_dims}d {_kind} {'with' if _bias else 'without'} bias"
            BACK.add(_name, partial(_conv, dims=_dims, kind=_kind, bias=_bias))


@BACK("conv with stride and SAME padding")
def _same(g: Build) -> str:
    return g.bn(g.conv(image(g), 7, k=3, auto_pad="SAME_UPPER", strides=[2, 3]))


@BACK("conv with dilation and uneven kernel")
def _dilated(g: Build) -> str:
    w = g.weight((7, 6, 3, 2), 36)
    return g.bn(g.op("Conv", image(g), w, dilations=[2, 3], pads=[1, 0, 2, 1]))


@BACK("conv -> bn with a zero scale")
def _zero(g: Build) -> str:
    return g.bn(g.conv(image(g), 7, k=3), "zero")


# transposed convolutions: weight (in, out / groups, ...)

DECONVS: dict[str, dict[str, Any]] = {
    "dense": {"outputs": 5},
    "without bias": {"outputs": 5, "bias": False},
    "grouped": {"outputs": 10, "group": 2},
    "grouped without bias": {"outputs": 10, "group": 2, "bias": False},
    "depthwise": {"outputs": 6, "group": 6},
    "depthwise, two inputs a group": {"outputs": 3, "group": 3},
    "depthwise, two outputs a group": {"outputs": 12, "group": 6},
    "with pads and output_padding": {
        "outputs": 6,
        "group": 3,
        "pads": [1, 1, 1, 1],
        "output_padding": [1, 1],
    },
}


def _deconv(g: Build, dims: int = 2, **attrs: Any) -> str:
    return g.bn(g.deconv(g.input("x", SPACES[dims]), k=3, strides=[2] * dims, **attrs))


for _name, _attrs in DECONVS.items():
    BACK.add(f"ConvTranspose {_name}", partial(_deconv, **_attrs))
BACK.add("ConvTranspose 1d grouped", partial(_deconv, dims=1, outputs=4, group=2))
BACK.add("ConvTranspose 3d grouped", partial(_deconv, dims=3, outputs=4, group=2))

# Gemm

GEMMS: dict[str, dict[str, Any]] = {
    "plain": {"c": (7,)},
    "alpha and beta": {"c": (7,), "alpha": 0.5, "beta": 2.0},
    "transA": {"c": (7,), "transA": 1},
    "transB": {"c": (7,), "transB": 1},
    "transA and transB, alpha and beta": {"c": (7,), "transA": 1, "transB": 1, "alpha": -1.5, "beta": 0.25},
    "without C": {"c": None},
    "without C, with alpha and beta": {"c": None, "alpha": 0.5, "beta": 3.0},
    "scalar C": {"c": (), "beta": 2.0},
    "C of shape (1)": {"c": (1,)},
    "C of shape (1, N)": {"c": (1, 7), "beta": 0.5},
    "C of shape (M, 1)": {"c": (5, 1), "beta": 2.0},
    "C of shape (M, N)": {"c": (5, 7)},
    "beta = 0": {"c": (7,), "beta": 0.0},
}


def _gemm(g: Build, **attrs: Any) -> str:
    x = g.input("x", (6, 5)) if attrs.get("transA") else rows(g)
    return g.bn(g.gemm(x, 7, **attrs))


for _name, _attrs in GEMMS.items():
    BACK.add(f"Gemm {_name}", partial(_gemm, **_attrs))


@BACK("Gemm beta = 0 with a C of NaN")
def _nan(g: Build) -> str:
    w, c = g.weight((6, 7), 6), g.const(np.full(7, np.nan), "unused")
    return g.bn(g.op("Gemm", rows(g), w, c, beta=0.0))


@BACK("Gemm with the weight on the left")
def _left_gemm(g: Build) -> str:
    x = g.input("x", (6, 5))
    y = g.op("Gemm", g.weight((7, 6), 6), x, g.const(g.normal((7, 1)), "bias"), alpha=0.5)
    return g.bn(g.op("Transpose", y, perm=[1, 0]))


@BACK("Gemm with the weight on the left, transA and transB, without C")
def _left_gemm_transposed(g: Build) -> str:
    y = g.op("Gemm", g.weight((6, 7), 6), rows(g), transA=1, transB=1)
    return g.bn(g.op("Transpose", y, perm=[1, 0]))


# MatMul. One of a matrix becomes a Gemm; beyond that an Add behind it holds the bias.


@BACK("MatMul")
def _matmul(g: Build) -> str:
    return g.bn(g.matmul(rows(g), 7))


@BACK("MatMul of named batch size")
def _matmul_named(g: Build) -> str:
    return g.bn(g.matmul(g.input("x", ("N", 6)), 7))


@BACK("MatMul with Add", note="one Gemm holds all three")
def _matmul_add(g: Build) -> str:
    return g.bn(g.matmul(rows(g), 7, bias=True))


@BACK("MatMul with Add, bias on the left", note="one Gemm holds all three")
def _matmul_add_left(g: Build) -> str:
    bias = g.const(g.normal((7,)), "bias")
    return g.bn(g.op("Add", bias, g.matmul(rows(g), 7)))


@BACK("MatMul with the weight on the left", left=1, note="an Add stands in for the bias")
def _matmul_left(g: Build) -> str:
    return g.bn(g.matmul(g.input("x", (2, 6, 9)), 7, left=True))


@BACK("MatMul with the weight on the left and Add", left=1, note="the Add stays, with another constant")
def _matmul_left_add(g: Build) -> str:
    return g.bn(g.matmul(g.input("x", (2, 6, 9)), 7, left=True, bias=True))


@BACK("MatMul with the weight on the left, scale only")
def _matmul_left_scale(g: Build) -> str:
    return g.bn(g.matmul(g.input("x", (2, 6, 9)), 7, left=True), shift=False)


def _to_channels(g: Build, t: str) -> str:
    return g.op("Transpose", t, perm=[0, 2, 1])


@BACK("MatMul 3-D -> Transpose -> bn", left=1, note="an Add stands in for the bias")
def _matmul_transpose(g: Build) -> str:
    return _to_channels(g, g.bn(_to_channels(g, g.matmul(tokens(g), 7))))


@BACK("MatMul 3-D with Add -> Transpose -> bn", left=1, note="the Add stays, with another constant")
def _matmul_add_transpose(g: Build) -> str:
    return _to_channels(g, g.bn(_to_channels(g, g.matmul(tokens(g), 8, bias=True))))


@BACK("MatMul 3-D -> Reshape -> bn", left=1, note="an Add stands in for the bias")
def _matmul_reshape(g: Build) -> str:
    y = g.op("Reshape", g.matmul(tokens(g), 8), g.ints(-1, 8))
    return g.op("Reshape", g.bn(y), g.ints(2, 7, 8))


@BACK(
    "MatMul 3-D of named sizes -> Reshape -> bn",
    left=1,
    note="as LeViT is exported; an Add stands in for the bias",
)
def _matmul_reshape_named(g: Build) -> str:
    y = g.op("Reshape", g.matmul(g.input("x", ("N", 7, 6)), 9), g.ints(-1, 9))
    return g.op("Reshape", g.bn(y), g.ints(-1, 7, 9))


@BACK("MatMul 3-D with Add -> Flatten -> bn", left=1, note="the Add stays, with another constant")
def _matmul_flatten(g: Build) -> str:
    return g.bn(g.op("Flatten", g.matmul(tokens(g), 8, bias=True), axis=2))


@BACK("MatMul 4-D, scale only along the last axis")
def _matmul_last(g: Build) -> str:
    return g.mul(g.matmul(g.input("x", (2, 3, 5, 6)), 7), axis=3)


# sharing


@BACK("one weight, two convs, two batch norms")
def _shared_weight(g: Build) -> tuple[str, ...]:
    w = g.weight((7, 6, 3, 3), 54)
    return tuple(g.bn(g.conv(image(g, name=name), 7, w=w)) for name in ("x0", "x1"))


@BACK("one weight, a conv with batch norm and a conv without")
def _shared_weight_once(g: Build) -> tuple[str, ...]:
    w = g.weight((7, 6, 3, 3), 54)
    return g.bn(g.conv(image(g, name="x0"), 7, w=w, bias=False)), g.conv(
        image(g, name="x1"), 7, w=w, bias=False
    )


@BACK("one bias, two convs, two batch norms")
def _shared_bias(g: Build) -> tuple[str, ...]:
    x, b = image(g), g.const(g.normal((7,)), "bias")
    return tuple(g.bn(g.op("Conv", x, g.weight((7, 6, 1, 1), 6), b)) for _ in range(2))


@BACK("one conv read by two batch norms", left=1, norms=1, note="the other one absorbs")
def _two_norms(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    return g.op("Tanh", g.bn(y)), g.op("Sigmoid", g.bn(y))


@BACK("one conv read by two batch norms with the same parameters")
def _two_same_norms(g: Build) -> tuple[str, ...]:
    y, parameters = g.conv(image(g), 7, k=3), g.norm_parameters(7)
    return g.op("Tanh", g.bn(y, parameters=parameters)), g.op("Sigmoid", g.bn(y, parameters=parameters))


@BACK("shared batch norm parameters")
def _shared_norm(g: Build) -> tuple[str, ...]:
    x, parameters = image(g), g.norm_parameters(7)
    return tuple(g.bn(g.conv(x, 7, k=3), parameters=parameters) for _ in range(2))


@BACK("batch norm parameters shared with one that stays", left=1, norms=1)
def _shared_with_stay(g: Build) -> tuple[str, ...]:
    x, parameters = image(g), g.norm_parameters(7, "positive")
    stays = g.bn(g.op("Relu", g.conv(x, 7)), parameters=parameters)
    return g.bn(g.conv(x, 7, k=3), parameters=parameters), stays


@BACK("one value as scale of the batch norm and bias of the conv")
def _two_roles(g: Build) -> str:
    scale, bias, mean, var = g.norm_parameters(7)
    return g.op(
        "BatchNormalization", g.op("Conv", image(g), g.weight((7, 6, 1, 1), 6), scale), scale, bias, mean, var
    )


def _standardized(g: Build, outputs: int, **attrs: int) -> str:
    stored, own = g.const(g.normal((1, 7, 54)), "rows"), g.norm_parameters(7, name="own", scale=0.2)
    rows = g.ops("BatchNormalization", stored, *own, count=outputs, **attrs)[0]
    return g.bn(g.conv(image(g), 7, k=3, w=g.op("Reshape", rows, g.ints(7, 6, 3, 3))))


@BACK("a weight behind a batch norm -> conv -> bn")
def _standardized_weight(g: Build) -> str:
    return _standardized(g, 1)


@BACK("a weight behind a batch norm of its own statistics -> conv -> bn")
def _standardized_by_itself(g: Build) -> str:
    return _standardized(g, 3, training_mode=1)


# runs of affine nodes


@BACK("conv -> Add(bias) -> bn")
def _add_bias(g: Build) -> str:
    return g.bn(g.add(g.conv(image(g), 7, k=3, bias=False)))


@BACK("conv with bias -> Add(bias, y) -> bn")
def _add_bias_left(g: Build) -> str:
    return g.bn(g.per_channel("Add", g.conv(image(g), 7, k=3), g.normal((7,)), left=True, full=True))


@BACK("bn -> bn")
def _bn_bn(g: Build) -> str:
    return g.bn(g.bn(g.conv(image(g), 7, k=3)))


_SOME_ZERO = np.array([1.5, 0.0, -0.7, 0.4, 2.0, 0.6, -1.2])


@BACK("conv -> two norms with a zero scale in one channel", left=1, norms=1)
def _zero_beside_zero(g: Build) -> tuple[str, str]:
    """One goes, and the other has no use for what is lost."""
    y = g.conv(image(g), 7, k=3)
    return g.op("Sigmoid", g.bn(y, scale=_SOME_ZERO)), g.op(
        "Tanh", g.bn(y, scale=_SOME_ZERO[::-1] ** 2 * _SOME_ZERO)
    )


@BACK("convs side by side -> norms with a zero scale, one of all", left=1, norms=1)
def _zeros_beside_zero(g: Build) -> tuple[str, ...]:
    """The norm of all would stand in the way of two others."""
    x = image(g)
    parts = [g.conv(x, 3, k=3), g.conv(x, 4, k=3)]
    every = g.bn(g.op("Concat", *parts, axis=1), scale=_SOME_ZERO)
    own = g.bn(parts[0], scale=_SOME_ZERO[:3] * 0.3), g.bn(parts[1], scale=_SOME_ZERO[3:] * 0.3)
    return tuple(g.op("Sigmoid", y) for y in (every, *own))


@BACK("bn -> bn with a zero scale in front")
def _bn_bn_zero(g: Build) -> str:
    return g.bn(g.bn(g.conv(image(g), 7, k=3), "zero"))


@BACK("bn -> bn that cannot go further", left=1, norms=1, note="two become one")
def _bn_bn_input(g: Build) -> str:
    return g.op("Sigmoid", g.bn(g.bn(image(g))))


@BACK("bn -> layer scale")
def _layer_scale(g: Build) -> str:
    x = image(g)
    return g.op("Add", x, g.mul(g.bn(g.conv(x, 6, k=3, pads=1)), "mixed"))


@BACK("bn -> one number")
def _number(g: Build) -> str:
    return g.op("Mul", g.const(-0.37, "number"), g.bn(g.conv(image(g), 7, k=3)))


# batch norm written out

WRITTEN: dict[str, tuple[str, ...]] = {
    "Sub, Div, Mul, Add": ("Sub", "Div", "Mul", "Add"),
    "Sub, Mul, Mul, Add": ("Sub", "Mul", "Mul", "Add"),
    "Sub, Mul, Add": ("Sub", "Mul", "Add"),
    "Mul, Add": ("Mul", "Add"),
    "Mul, Sub": ("Mul", "Sub"),
    "Add, Mul": ("Add", "Mul"),
    "Div, Add": ("Div", "Add"),
    "Mul, Sub, Div, Add": ("Mul", "Sub", "Div", "Add"),
    "Mul": ("Mul",),
    "Sub": ("Sub",),
}
FORMS: dict[str, dict[str, Any]] = {"(C,1,1)": {}, "full rank": {"full": True}}


def _written(g: Build, kinds: tuple[str, ...], left: bool, **form: Any) -> str:
    y = g.conv(image(g), 7, k=3, bias=len(kinds) % 2 == 0)
    for kind in kinds:
        values = g.scales(7) if kind in ("Mul", "Div") else g.normal((7,), 0.7)
        y = g.per_channel(kind, y, values, left=left and kind != "Div", **form)
    return y


for _name, _kinds in WRITTEN.items():
    for _form, _options in FORMS.items():
        for _side in (False, True):
            _label = f"written out as {_name}, {_form}, constants on the {'left' if _side else 'right'}"
            BACK.add(_label, partial(_written, kinds=_kinds, left=_side, **_options))


@BACK("written out with the deviation computed from the variance")
def _written_computed(g: Build) -> str:
    y = g.conv(image(g), 7, k=3)
    var, mean = g.const(g.rng.uniform(0.3, 3, (7, 1, 1)), "var"), g.const(g.normal((7, 1, 1)), "mean")
    std = g.op("Sqrt", g.op("Add", var, g.const(1e-3, "eps")))
    centred = g.op("Div", g.op("Sub", y, mean), std)
    return g.op(
        "Add", g.op("Mul", centred, g.const(g.scales(7).reshape(7, 1, 1), "gamma")), g.const(0.3, "beta")
    )


@BACK("written out behind a transpose, along the last axis")
def _written_last(g: Build) -> str:
    y = g.op("Transpose", g.conv(image(g), 7, k=3), perm=[0, 2, 3, 1])
    return g.add(g.mul(y, axis=3), axis=3)


@BACK("written out behind Gemm, with numbers")
def _written_gemm(g: Build) -> str:
    y = g.op("Div", g.op("Sub", g.gemm(rows(g), 7, c=(7,)), g.const(0.4, "mean")), g.const(1.7, "std"))
    return g.op("Sub", g.const(g.normal((7,)), "beta"), y)


# DeformConv absorbs what it gives


def _deformed(g: Build, group: int, bias: bool, mask: bool) -> str:
    x = image(g)
    w = g.weight((8, 6 // group, 3, 2), 36)
    inputs = [x, w, g.op("Tanh", g.input("offset", (2, 12, 7, 10)))]
    if bias or mask:
        inputs.append(g.const(g.normal((8,)), "bias") if bias else "")
    if mask:
        inputs.append(g.op("Sigmoid", g.input("mask", (2, 6, 7, 10))))
    return g.op("Sigmoid", g.bn(g.op("DeformConv", *inputs, group=group, kernel_shape=[3, 2])))


for _group, _bias, _mask in ((1, True, True), (1, False, True), (2, False, False), (2, True, False)):
    BACK.add(
        f"DeformConv of {_group} groups{', bias' * _bias}{', mask' * _mask}",
        partial(_deformed, group=_group, bias=_bias, mask=_mask),
        builder={"opset": 19},
    )
