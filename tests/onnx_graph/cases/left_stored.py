"""Cases that stay for what the parameters are and where: overridable, zero, tiny, in inner graphs."""

from __future__ import annotations

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import LeftAlone, image
from tests.onnx_graph.cases.reasons import REASONS as WHY

STORED = LeftAlone()

# parameters that are not constants


@STORED("a scale that is a graph input", "bn", "bn", WHY["constant"])
def _scale_input(g: Build) -> str:
    y, parameters = g.conv(image(g), 7, k=3), g.norm_parameters(7)
    parameters[0] = g.input("scale", (7,))
    return g.op("BatchNormalization", y, *parameters, name="bn")


@STORED("a weight that is a graph input", "bn", "conv", WHY["constant"])
def _weight_input(g: Build) -> str:
    y = g.op("Conv", image(g), g.input("w", (7, 6, 3, 3)), name="conv")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@STORED("a bias that is a graph input", "bn", "conv", WHY["constant"])
def _bias_input(g: Build) -> str:
    y = g.op("Conv", image(g), g.weight((7, 6, 3, 3), 54), g.input("b", (7,)), name="conv")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@STORED("parameters that the caller may override", "bn", "bn", WHY["override"], cure="--freeze-initializers")
def _parameters_override(g: Build) -> str:
    y, parameters = g.conv(image(g), 7, k=3), g.norm_parameters(7)
    g.expose(parameters[1])
    return g.op("BatchNormalization", y, *parameters, name="bn")


@STORED("a weight that the caller may override", "bn", "conv", WHY["override"], cure="--freeze-initializers")
def _weight_override(g: Build) -> str:
    w = g.weight((7, 6, 3, 3), 54)
    g.expose(w)
    y = g.op("Conv", image(g), w, g.const(g.normal((7,)), "bias"), name="conv")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@STORED("a bias that the caller may override", "bn", "conv", WHY["override"], cure="--freeze-initializers")
def _bias_override(g: Build) -> str:
    b = g.const(g.normal((7,)), "bias")
    g.expose(b)
    y = g.op("Conv", image(g), g.weight((7, 6, 3, 3), 54), b, name="conv")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@STORED(
    "a constant operand that the caller may override",
    "bn",
    "operand",
    WHY["input"],
    cure="--freeze-initializers",
)
def _constant_override(g: Build) -> str:
    c = g.const(g.normal((7, 1, 1)), "operand")
    g.expose(c)
    return g.op("Sigmoid", g.bn(g.op("Add", g.conv(image(g), 7, k=3), c), name="bn"))


# zero scales, quantization


@STORED("a zero scale backward past another reader", "bn", ("other", "sigmoid"), (WHY["zero"], WHY["closed"]))
def _zero(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    return g.op("Sigmoid", g.bn(y, "zero", name="bn"), name="sigmoid"), g.conv(y, 5, k=3, name="other")


@STORED("a zero scale backward past another batch norm", "bn", "behind", WHY["closed"], folds=("other",))
def _zero_norm(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    return g.op("Sigmoid", g.bn(y, "zero", name="bn")), g.op("Sigmoid", g.bn(y, name="other"), name="behind")


@STORED("forward into QuantizeLinear", "bn", ("quantize", "x"), (WHY["input"],))
def _quantize(g: Build) -> str:
    step, zero = g.const(0.05, "step"), g.const(np.array(3, np.int8), "zero", dtype="int8")
    integers = g.op("QuantizeLinear", g.bn(image(g), name="bn"), step, zero, name="quantize")
    return g.conv(g.op("DequantizeLinear", integers, step, zero), 7, k=3)


# what would lose precision or range


@STORED("a shift that drowns another reader's signal", "bn", "other", WHY["shift"])
def _drowned(g: Build) -> tuple[str, ...]:
    y = g.conv(image(g), 7, k=3)
    parameters = g.norm_parameters(7, scale=1e-6)
    bn = g.op("BatchNormalization", y, *parameters, name="bn")
    return g.op("Sigmoid", bn), g.conv(y, 5, k=3, name="other")


@STORED(
    "float16: a conv's weights would be too small for their type",
    "bn",
    "conv",
    WHY["range"],
    builder={"dtype": "float16"},
    tolerance=5e-3,
)
def _half_range(g: Build) -> str:
    y = g.op("BatchNormalization", image(g), *g.norm_parameters(6, scale=1e-4), name="bn")
    return g.conv(y, 7, k=3, name="conv")


@STORED("float16: a weight would overflow", "bn", "conv", "channel", builder={"dtype": "float16"}, gain=1e-3)
def _half_overflow(g: Build) -> str:
    w = g.const(g.normal((7, 6, 3, 3), 3000.0), "weight")
    y = g.op("Conv", image(g), w, g.const(np.zeros(7), "bias"), name="conv")
    gamma, beta, mean = (
        g.const(np.full(7, 0.05), "gamma"),
        g.const(np.zeros(7), "beta"),
        g.const(np.zeros(7), "mean"),
    )
    return g.op(
        "BatchNormalization", y, gamma, beta, mean, g.const(np.full(7, 1e-6), "var"), name="bn", epsilon=1e-8
    )


@STORED("weights too small to be scaled: the product stays, and the Add goes", "mul", "conv", folds=("add",))
def _small_channel(g: Build) -> str:
    w = g.normal((7, 6, 3, 3))
    w[2] = 7e-38
    y = g.op("Conv", image(g), g.const(w, "weight"), name="conv")
    y = g.op("Add", y, g.const(g.normal((7, 1, 1)), "bias"), name="add")
    return g.op(
        "Sigmoid", g.op("Mul", y, g.const(np.linspace(0.05, 0.15, 7).reshape(7, 1, 1), "k"), name="mul")
    )


# inner graphs


@STORED(
    "conv outside, batch norm inside the branches of If", ("then_bn", "else_bn"), "conv_out", WHY["captured"]
)
def _captured(g: Build) -> str:
    y, branches = g.conv(image(g), 7, k=3, name="conv"), {}
    for name in ("then", "else"):
        body = g.body()
        body.output(body.bn(y, name=f"{name}_bn"))
        branches[f"{name}_branch"] = body.graph(name)
    return g.op("If", g.input("cond", (), "bool"), **branches)


@STORED("a conv whose output a branch of If captures", "bn", "conv_out", WHY["captured"])
def _captured_reader(g: Build) -> tuple[str, ...]:
    y, branches = g.conv(image(g), 7, k=3, name="conv"), {}
    for name in ("then", "else"):
        body = g.body()
        body.output(body.op("Identity" if name == "then" else "Neg", y))
        branches[f"{name}_branch"] = body.graph(name)
    chosen = g.op("If", g.input("cond", (), "bool"), **branches)
    return g.op("Sigmoid", g.bn(y, name="bn")), chosen


@STORED("conv outside, batch norm inside the body of Loop", "bn", "conv_out", WHY["captured"])
def _captured_loop(g: Build) -> str:
    x, body = image(g), g.body()
    y = g.conv(x, 6, name="conv")
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", (2, 6, 9, 11))
    inner = body.op("Tanh", body.bn(y, name="bn"))
    body.output(body.op("Identity", "go_on"), body.op("Add", inner, state))
    return g.op("Loop", g.const(np.array(3)), g.const(np.array(True)), x, body=body.graph("body"))


@STORED("batch norm on the state of a Loop", "bn", "state", WHY["edge"])
def _loop(g: Build) -> str:
    x, body = image(g), g.body()
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", (2, 6, 9, 11))
    body.output(body.op("Identity", "go_on"), body.op("Tanh", body.bn(state, name="bn")))
    return g.op("Loop", g.const(np.array(3)), g.const(np.array(True)), x, body=body.graph("body"))


@STORED("batch norm at the entry of a function that is called twice", "bn", "t", WHY["edge"])
def _function(g: Build) -> str:
    x, body = image(g), g.body()
    body.how = "constant"
    body.types["t"] = g.type_of(x)
    body.output(body.op("Tanh", body.bn("t", name="bn")))
    body.function("Block", ["t"])
    y = g.op("Block", g.conv(x, 6), domain="test", out="first")
    return g.op("Block", y, domain="test", out="y")


@STORED("a function that is given the parameters", "bn", "bn", WHY["constant"], cure="inline the functions")
def _function_parameters(g: Build) -> str:
    y, body, parameters = g.conv(image(g), 7), g.body(), g.norm_parameters(7)
    body.how = "constant"
    names = ["t", "gamma", "beta", "mean", "var"]
    for name, given in zip(names, (y, *parameters), strict=True):
        body.types[name] = g.type_of(given)
    body.output(body.op("BatchNormalization", *names, name="bn"))
    body.function("Norm", names)
    return g.op("Sigmoid", g.op("Norm", y, *parameters, domain="test"))


@STORED("conv -> a function of another domain -> bn", "bn", "custom", WHY["closed"], runs=False)
def _custom(g: Build) -> str:
    y = g.conv(image(g), 7, k=3)
    g.function_types["Secret"] = [g.type_of(y)]
    y = g.op("Secret", y, domain="test", name="custom")
    g.note(y)
    return g.op("Sigmoid", g.bn(y, name="bn"))
