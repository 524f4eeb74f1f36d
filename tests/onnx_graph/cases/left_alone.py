"""The table of cases that must stay: what may not be folded, or not entirely, with the reason to be given."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import Left, LeftAlone, image, rows, tokens
from tests.onnx_graph.cases.left_rules import RULES
from tests.onnx_graph.cases.left_stored import STORED
from tests.onnx_graph.cases.reasons import REASONS as WHY

MAIN = LeftAlone()

# shifts that are not seen: past Relu, in padding, in transposed convolutions


@MAIN("bn -> Relu -> conv", "bn", ("relu", "x"), (WHY["shift"], WHY["input"]))
def _relu(g: Build) -> str:
    return g.conv(g.op("Relu", g.bn(image(g), "positive", name="bn"), name="relu"), 7, k=3)


@MAIN("bn -> Relu -> conv, scales of both signs", "bn", ("relu", "x"), (WHY["shift"], WHY["input"]))
def _relu_mixed(g: Build) -> str:
    return g.conv(g.op("Relu", g.bn(image(g), name="bn"), name="relu"), 7, k=3)


@MAIN("conv -> Relu -> bn -> output", "bn", ("relu", "y"), (WHY["shift"], WHY["output"]))
def _relu_output(g: Build) -> str:
    y = g.op("Relu", g.conv(image(g), 8, k=3), name="relu")
    return g.op("BatchNormalization", y, *g.norm_parameters(8, "positive"), name="bn", epsilon=1e-3, out="y")


@MAIN("conv -> Clip -> bn -> output", "bn", ("clip", "y"), (WHY["output"],))
def _clip_output(g: Build) -> str:
    y = g.op("Clip", g.conv(image(g), 8, k=3), g.const(0.0, "low"), g.const(6.0, "high"), name="clip")
    return g.op("BatchNormalization", y, *g.norm_parameters(8, "positive"), name="bn", out="y")


@MAIN("conv -> SiLU -> bn -> output", "bn", ("silu", "y"), (WHY["shift"], WHY["output"]))
def _silu_output(g: Build) -> str:
    y = g.conv(image(g), 8, k=3)
    y = g.op("Mul", y, g.op("Sigmoid", y, name="sigmoid"), name="silu")
    return g.op("BatchNormalization", y, *g.norm_parameters(8), name="bn", out="y")


@MAIN("bn -> padded conv", "bn", ("conv", "x"), (WHY["padding"], WHY["input"]), cure="pad with a value")
def _padded(g: Build) -> str:
    return g.conv(g.bn(image(g), name="bn"), 7, k=3, pads=1, name="conv")


@MAIN("bn -> SAME conv", "bn", "conv", WHY["padding"])
def _same(g: Build) -> str:
    return g.conv(g.bn(image(g), name="bn"), 7, k=3, auto_pad="SAME_LOWER", name="conv")


@MAIN("bn -> conv padded on one side only", "bn", "conv", WHY["padding"])
def _one_side(g: Build) -> str:
    w = g.weight((7, 6, 2, 2), 24)
    return g.op("Conv", g.bn(image(g), name="bn"), w, name="conv", pads=[0, 0, 1, 0])


@MAIN("bn -> 1x1 conv with pads", "bn", "conv", WHY["padding"])
def _point_padded(g: Build) -> str:
    return g.conv(g.bn(image(g), name="bn"), 7, pads=1, name="conv")


@MAIN("Mul -> Add -> padded conv: the scale moves", "add", ("conv", "x"), WHY["padding"], folds=("mul",))
def _padded_scale(g: Build) -> str:
    y = g.add(g.mul(image(g), name="mul"), name="add")
    return g.conv(y, 7, k=3, pads=1, name="conv")


@MAIN("Add -> Mul -> padded conv: the scale moves", "add", ("conv", "x"), WHY["padding"], folds=("mul",))
def _padded_scale_after(g: Build) -> str:
    y = g.mul(g.add(image(g), name="add"), name="mul")
    return g.conv(y, 7, k=3, pads=1, name="conv")


@MAIN("bn -> ConvTranspose", "bn", ("conv", "x"), (WHY["shift"], WHY["input"]), cure="none")
def _transposed(g: Build) -> str:
    """There is nothing that could be padded."""
    x = g.bn(image(g), name="bn")
    w = g.weight((6, 4, 4, 4), 24)
    return g.op("ConvTranspose", x, w, strides=[2, 2], pads=[1, 1, 1, 1], name="conv")


@MAIN("bn -> constant Pad -> conv", "bn", ("pad", "x"), (WHY["padding"], WHY["input"]), cure="pad")
def _pad(g: Build) -> str:
    y = g.op("Pad", g.bn(image(g), name="bn"), g.ints(0, 0, 1, 1, 0, 0, 1, 1, name="pads"), name="pad")
    return g.conv(y, 7, k=3)


@MAIN("bn -> AveragePool that counts its padding -> conv", "bn", ("pool", "x"), WHY["padding"])
def _counted(g: Build) -> str:
    y = g.bn(image(g), name="bn")
    y = g.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, name="pool")
    return g.conv(y, 7, k=3)


@MAIN("conv -> AveragePool that counts its padding -> bn -> output", "bn", "pool", WHY["padding"])
def _counted_back(g: Build) -> str:
    y = g.conv(image(g), 7, k=3)
    y = g.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, name="pool")
    return g.bn(y, name="bn")


@MAIN("conv -> SiLU -> scale", "mul", "sigmoid", WHY["closed"])
def _silu_scale(g: Build) -> str:
    y = g.conv(image(g), 8, k=3)
    y = g.op("Mul", y, g.op("Sigmoid", y, name="sigmoid"), name="silu")
    return g.op("Tanh", g.mul(y, name="mul"))


DECONVS: dict[str, dict[str, Any]] = {
    "k2s2": {"k": 2, "strides": [2, 2]},
    "k3s1": {"k": 3},
    "k4s2p1": {"k": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "k1s2": {"k": 1, "strides": [2, 2]},
    "k1s2 with output_padding": {"k": 1, "strides": [2, 2], "output_padding": [1, 1]},
}


def _deconv(g: Build, **attrs: Any) -> str:
    return g.deconv(g.bn(image(g), name="bn"), 5, name="deconv", **attrs)


for _name, _attrs in DECONVS.items():
    _why = WHY["shift"], WHY["input"]
    MAIN(f"bn -> ConvTranspose {_name}", "bn", ("deconv", "x"), _why)(partial(_deconv, **_attrs))


@MAIN("Mul -> Add -> ConvTranspose: the scale moves", "add", "deconv", WHY["shift"], folds=("mul",))
def _deconv_scale(g: Build) -> str:
    y = g.add(g.mul(image(g), name="mul"), name="add")
    return g.deconv(y, 6, k=2, strides=[2, 2], group=2, name="deconv")


# other readers


@MAIN("the conv's output is a graph output too", "bn", "conv_y", WHY["output"])
def _output(g: Build) -> tuple[str, ...]:
    w = g.weight((7, 6, 3, 3), 54)
    y = g.op("Conv", image(g), w, name="conv", out="conv_y")
    return y, g.op("Sigmoid", g.bn(y, name="bn"))


@MAIN("the conv's output has a reader that cannot carry", "bn", "softplus", WHY["closed"])
def _reader(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    return g.op("Sigmoid", g.bn(y, name="bn")), g.op("Softplus", y, name="softplus")


@MAIN("the conv's output has a reader that passes no shift", "bn", "relu", WHY["shift"])
def _relu_reader(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    return g.op("Sigmoid", g.bn(y, name="bn")), g.conv(g.op("Relu", y, name="relu"), 5)


@MAIN("Concat with a graph input", "bn", "x", WHY["input"])
def _concat_input(g: Build) -> str:
    x = image(g)
    return g.op("Sigmoid", g.bn(g.op("Concat", g.conv(x, 5), x, axis=1), name="bn"))


@MAIN("Concat of a graph input and of a padded conv that reads it", "bn", "x", WHY["input"], cure="none")
def _concat_padded(g: Build) -> str:
    """What the conv's padding says is not the obstacle."""
    x = image(g)
    return g.op("Sigmoid", g.bn(g.op("Concat", g.conv(x, 5, k=3, pads=1), x, axis=1), name="bn"))


@MAIN("Concat with a tensor that cannot carry", "bn", "tanh", WHY["closed"])
def _concat_closed(g: Build) -> str:
    x = image(g)
    y = g.op("Concat", g.conv(x, 5), g.op("Tanh", x, name="tanh"), axis=1)
    return g.op("Sigmoid", g.bn(y, name="bn"))


@MAIN("conv + graph input -> bn", "bn", "x", WHY["input"])
def _add_input(g: Build) -> str:
    x = image(g)
    return g.op("Sigmoid", g.bn(g.op("Add", g.conv(x, 6, k=3, pads=1), x), name="bn"))


# negative scales


@MAIN("conv -> MaxPool -> bn with negative scales", "bn", "pool", WHY["negative"], cure="positive")
def _max_pool(g: Build) -> str:
    y = g.op("MaxPool", g.conv(image(g), 7, k=3), kernel_shape=[2, 2], name="pool")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@MAIN("bn with negative scales -> MaxPool -> conv", "bn", ("pool", "x"), WHY["negative"])
def _max_pool_forward(g: Build) -> str:
    y = g.op("MaxPool", g.bn(image(g), name="bn"), kernel_shape=[2, 2], name="pool")
    return g.conv(y, 7)


@MAIN("conv -> Relu -> negative scale", "mul", "relu", WHY["negative"], cure="positive")
def _negative_relu(g: Build) -> str:
    y = g.op("Relu", g.conv(image(g), 8, k=3), name="relu")
    return g.op("Sigmoid", g.mul(y, "mixed", name="mul"))


@MAIN("negative scale -> Relu -> conv", "mul", "relu", WHY["negative"])
def _negative_forward(g: Build) -> str:
    return g.conv(g.op("Relu", g.mul(image(g), name="mul"), name="relu"), 7)


@MAIN("conv -> Relu -> bn -> Add(conv) with negative scales", "bn", "relu", WHY["negative"])
def _negative_sideways(g: Build) -> str:
    x = image(g)
    y = g.bn(g.op("Relu", g.conv(x, 8), name="relu"), name="bn")
    return g.op("Sigmoid", g.op("Add", y, g.conv(x, 8)))


# batch statistics


@MAIN("training_mode=1", "bn", "bn", WHY["statistics"], builder={"opset": 15}, evaluator="reference")
def _training(g: Build) -> str:
    y, parameters = g.conv(image(g), 7, k=3), g.norm_parameters(7)
    node = g.ops("BatchNormalization", y, *parameters, count=3, name="bn", training_mode=1)
    return node[0]


@MAIN("opset 6 without is_test", "bn", "bn", WHY["statistics"], builder={"opset": 6}, runs=False)
def _opset6(g: Build) -> str:
    return g.bn(g.conv(image(g), 7, k=3), name="bn")


@MAIN("opset 9 with the outputs of training", "bn", "bn", WHY["statistics"], builder={"opset": 9}, runs=False)
def _training_outputs(g: Build) -> str:
    y, parameters = g.conv(image(g), 7, k=3), g.norm_parameters(7)
    return g.ops("BatchNormalization", y, *parameters, count=5, name="bn")[0]


@MAIN("mean and variance computed in the graph", "bn", "bn", WHY["constant"])
def _computed_statistics(g: Build) -> str:
    y = g.conv(image(g), 7, k=3)
    axes = g.ints(0, 2, 3, name="axes")
    mean = g.op("ReduceMean", y, axes, keepdims=0)
    var = g.op("ReduceMean", g.op("Abs", y), axes, keepdims=0)
    gamma, beta = g.const(g.scales(7), "gamma"), g.const(g.normal((7,)), "beta")
    return g.op("BatchNormalization", y, gamma, beta, mean, var, name="bn")


def _written_statistics(g: Build) -> str:
    y, axes = g.conv(image(g), 7, k=3), g.ints(0, 2, 3, name="axes")
    centred = g.op("Sub", y, g.op("ReduceMean", y, axes))
    var = g.op("ReduceMean", g.op("Mul", centred, centred), axes)
    normal = g.op(
        "Div", centred, g.op("Sqrt", g.op("Add", var, g.const(1e-3, "eps")), name="sqrt"), name="div"
    )
    return g.op("Sigmoid", g.add(g.mul(normal, name="gamma"), name="beta"))


MAIN("written out over the batch's own statistics: scale", "gamma", "sqrt", WHY["closed"])(
    _written_statistics
)
MAIN("written out over the batch's own statistics: shift", "beta", "div", WHY["shift"])(_written_statistics)


# the wrong axis


@MAIN("conv 1d -> Transpose -> bn over the positions", "bn", "conv", WHY["axis"])
def _positions(g: Build) -> str:
    y = g.conv(g.input("x", (2, 6, 13)), 7, k=3, name="conv")
    return g.op("Sigmoid", g.bn(g.op("Transpose", y, perm=[0, 2, 1]), name="bn"))


@MAIN("MatMul -> bn over the tokens", "bn", "x", WHY["input"])
def _tokens(g: Build) -> str:
    return g.op("Sigmoid", g.bn(g.matmul(tokens(g), 7), name="bn"))


@MAIN(
    "MatMul with Add -> bn over the tokens, as many as features",
    "bn",
    ("x", "sigmoid"),
    (WHY["input"], WHY["closed"]),
)
def _tokens_square(g: Build) -> str:
    return g.op("Sigmoid", g.bn(g.matmul(tokens(g), 7, bias=True), name="bn"))


@MAIN("conv -> scale along the last axis, as wide as there are channels", "mul", "conv", WHY["axis"])
def _width(g: Build) -> str:
    y = g.conv(image(g), 9, k=3, name="conv")
    return g.op("Sigmoid", g.op("Mul", y, g.const(g.scales(9), "scale"), name="mul"))


@MAIN("Gemm -> Transpose -> bn over the rows", "bn", "gemm", WHY["axis"])
def _gemm_rows(g: Build) -> str:
    y = g.op("Transpose", g.gemm(rows(g), 7, c=(7,), name="gemm"), perm=[1, 0])
    return g.op("Sigmoid", g.bn(y, name="bn"))


LEFT: list[Left] = [*MAIN, *STORED, *RULES]
