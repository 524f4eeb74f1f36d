"""For each rule of the table of operators, the neighbour case that must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.onnx_graph.build import Build
from tests.onnx_graph.cases.case import LeftAlone, image, rows, tokens
from tests.onnx_graph.cases.reasons import REASONS as WHY

RULES = LeftAlone()


def _end(g: Build, t: str, **options: Any) -> str:
    """bn -> Sigmoid: all that can be done must be done backward."""
    return g.op("Sigmoid", g.bn(t, name="bn", **options))


# linear layers


@RULES("two MatMuls without bias would need an Add each", "bn", ("x", "sigmoid"), WHY["closed"])
def _two_adds(g: Build) -> tuple[str, ...]:
    y = g.op("Transpose", g.bn(g.input("x", (2, 6, 9)), name="bn"), perm=[0, 2, 1])
    left, right = g.matmul(y, 7, name="left"), g.matmul(y, 5, name="right")
    return g.op("Sigmoid", left), g.op("Sigmoid", right)


@RULES("MatMul with a batch of weights passes no shift", "add", "matmul", WHY["shift"], folds=("mul",))
def _batched(g: Build) -> str:
    x = g.input("x", (2, 3, 5, 6))
    y = g.add(g.mul(x, axis=3, name="mul"), axis=3, name="add")
    return g.op("Sigmoid", g.op("MatMul", y, g.weight((3, 6, 7), 6), name="matmul"))


@RULES(
    "Einsum takes no shift along an axis that its weight has not",
    "add",
    "einsum",
    "along the axes of its weight, not along [1]",
    folds=("mul",),
)
def _heads(g: Build) -> str:
    y = g.op("Einsum", tokens(g), g.weight((6, 2, 3), 6), equation="btc,chd->bthd", name="einsum")
    return g.op("Sigmoid", g.add(g.mul(y, axis=3, name="mul"), axis=1, name="add"))


@RULES("MatMul by a vector", "bn", "matmul", "vector")
def _vector(g: Build) -> str:
    return _end(g, g.op("Unsqueeze", g.op("MatMul", tokens(g), g.weight((6,), 6), name="matmul"), g.ints(2)))


@RULES("a quantized weight with its steps along the other axis", "bn", "conv", "input channels (axis 1)")
def _quantized(g: Build) -> str:
    w = g.const(g.rng.integers(-127, 128, (7, 6, 3, 3)), "integers", dtype="int8")
    w = g.op("DequantizeLinear", w, g.const(g.rng.uniform(0.001, 0.003, 6), "step"), axis=1)
    return _end(g, g.op("Conv", image(g), w, name="conv"))


@RULES(
    "a quantized ConvTranspose with its steps along its inputs, as modelopt writes them",
    "bn",
    "deconv",
    "its scale runs along its input channels (axis 0), not along its output channels",
    cure="quantize",
)
def _quantized_transposed(g: Build) -> str:
    w = g.const(g.rng.integers(-127, 128, (6, 7, 3, 3)), "integers", dtype="int8")
    w = g.op("DequantizeLinear", w, g.const(g.rng.uniform(0.001, 0.003, 6), "step"), axis=0)
    return _end(g, g.op("ConvTranspose", image(g), w, name="deconv"))


@RULES(
    "a quantized weight with one step, before opset 13", "bn", "conv", WHY["quantized"], builder={"opset": 11}
)
def _quantized_old(g: Build) -> str:
    w = g.const(g.rng.integers(-127, 128, (7, 6, 3, 3)), "integers", dtype="int8")
    w = g.op("DequantizeLinear", w, g.const(0.002, "step"))
    return _end(g, g.op("Conv", image(g), w, name="conv"))


# maps


@RULES("LeakyRelu passes no shift", "bn", "leaky", WHY["shift"])
def _leaky(g: Build) -> str:
    return _end(g, g.op("LeakyRelu", g.conv(image(g), 7), name="leaky"), signs="positive")


@RULES("LeakyRelu has one slope for all channels", "mul", "leaky", WHY["negative"])
def _leaky_mixed(g: Build) -> str:
    y = g.op("LeakyRelu", g.conv(image(g), 7), name="leaky")
    return g.op("Sigmoid", g.mul(y, "mixed", name="mul"))


@RULES("PRelu with a slope of 0 passes no negative scale", "mul", "prelu", WHY["negative"])
def _prelu_zero(g: Build) -> str:
    y = g.op("PRelu", g.conv(image(g), 7), g.const(np.zeros((7, 1, 1)), "slope"), name="prelu")
    return g.op("Sigmoid", g.mul(y, "mixed", name="mul"))


@RULES("Abs passes no shift", "bn", "abs", WHY["shift"])
def _abs(g: Build) -> str:
    return _end(g, g.op("Abs", g.conv(image(g), 7), name="abs"), signs="positive")


@RULES("Abs makes no negative scale", "mul", "abs", WHY["negative"])
def _abs_negative(g: Build) -> str:
    return g.op("Sigmoid", g.mul(g.op("Abs", g.conv(image(g), 7), name="abs"), name="mul"))


@RULES("Clip takes one scale for all channels", "mul", "clip", WHY["varies"])
def _clip(g: Build) -> str:
    y = g.op("Clip", g.conv(image(g), 7), g.const(-0.5), g.const(1.0), name="clip")
    return g.op("Sigmoid", g.mul(y, "positive", name="mul"))


@RULES("HardSigmoid takes one scale for all channels", "bn", "gate", WHY["varies"])
def _hard_sigmoid(g: Build) -> str:
    return g.op("HardSigmoid", g.bn(image(g), name="bn"), name="gate")


@RULES("HardSigmoid is closed behind", "bn", "gate", WHY["shift"])
def _hard_sigmoid_back(g: Build) -> str:
    return _end(g, g.op("HardSigmoid", g.conv(image(g), 7), name="gate"))


@RULES("Celu passes no shift", "add", "celu", WHY["shift"])
def _celu(g: Build) -> str:
    y = g.op("Celu", g.conv(image(g), 7), alpha=0.5, name="celu")
    return g.op("Sigmoid", g.add(y, name="add"))


@RULES("Max passes no negative scale", "bn", "max", WHY["negative"])
def _max(g: Build) -> str:
    x = image(g)
    return _end(g, g.op("Max", g.conv(x, 7), g.conv(x, 7), name="max"))


def _cropped(g: Build, axes: str, axis: int) -> str:
    """conv -> Slice to a computed end -> bn."""
    y = g.conv(g.input("x", ("N", 6, 9, 11)), 7, k=3)
    end = g.op("Slice", g.op("Shape", y), g.ints(axis, name="at"), g.ints(axis + 1, name="until"))
    y = g.op("Slice", y, g.ints(0, name="start"), end, axes, name="crop")
    return g.op("Sigmoid", g.op("BatchNormalization", y, *g.norm_parameters(7), name="bn"))


@RULES("Slice to a computed end of the channels", "bn", "crop", WHY["axis"])
def _crop_channels(g: Build) -> str:
    return _cropped(g, g.ints(1, name="axes"), 1)


@RULES("Slice along a computed axis", "bn", "crop", WHY["constant"])
def _crop_anywhere(g: Build) -> str:
    return _cropped(g, g.input("along", (1,), "int64"), 1)


@RULES("scales along the axis of the blocks", "bn", ("gemm", "x"), WHY["quantized"], builder={"opset": 21})
def _across_blocks(g: Build) -> str:
    """The inputs of one block share a step."""
    integers = g.const(g.rng.integers(-7, 8, (8, 7)), "integers", dtype="int8")
    steps = g.const(g.rng.uniform(0.02, 0.06, (2, 7)), "steps")
    w = g.op("DequantizeLinear", integers, steps, axis=0, block_size=4)
    x = g.bn(g.input("x", (5, 8)), name="bn")
    return g.op("Gemm", x, w, g.const(g.normal((7,)), "bias"), name="gemm")


@RULES("entries taken along the channels", "bn", "gather", WHY["axis"])
def _gathered_channels(g: Build) -> str:
    places = g.const(g.rng.integers(0, 7, (2, 7, 9, 11)), "places")
    y = g.op("GatherElements", g.conv(image(g), 7), places, axis=1, name="gather")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@RULES("entries put into others than zeros", "bn", "scatter", "stored zeros")
def _scattered(g: Build) -> str:
    places = g.const(g.rng.integers(0, 9, (2, 7, 9, 11)), "places")
    base = g.const(g.normal((2, 7, 9, 11)), "base")
    y = g.op("ScatterElements", base, places, g.conv(image(g), 7), axis=2, name="scatter")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@RULES("sums up to each entry: a shift", "bn", "sums", WHY["shift"])
def _summed_up(g: Build) -> str:
    y = g.op("CumSum", g.conv(image(g), 7), g.const(np.array(3), "along"), name="sums")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@RULES("TopK whose indices are used", "bn", "top", "indices")
def _top_indices(g: Build) -> tuple[str, ...]:
    y, places = g.ops("TopK", g.conv(image(g), 7), g.ints(3), count=2, axis=3, name="top")
    return g.op("Sigmoid", g.bn(y, "positive", name="bn")), g.op("Cast", places, to=1)


@RULES("bn -> DeformConv", "bn", ("deform", "tanh"), "reads", builder={"opset": 19})
def _deformed(g: Build) -> str:
    """A shift would be seen at the border only in part, and offsets choose what is seen."""
    x = g.bn(g.op("Tanh", image(g), name="tanh"), name="bn")
    offset = g.op("Tanh", g.input("offset", (2, 18, 7, 9)))
    return g.op("DeformConv", x, g.weight((4, 6, 3, 3), 54), offset, name="deform")


@RULES("DeformConv whose bias is known at run time", "bn", "deform", WHY["constant"], builder={"opset": 19})
def _deformed_bias(g: Build) -> str:
    offset = g.op("Tanh", g.input("offset", (2, 18, 7, 9)))
    bias = g.input("b", (4,))
    y = g.op("DeformConv", image(g), g.weight((4, 6, 3, 3), 54), offset, bias, name="deform")
    return g.op("Sigmoid", g.bn(y, name="bn"))


@RULES("Where with a graph input", "bn", "x", WHY["input"])
def _where(g: Build) -> str:
    x = image(g)
    mask = g.op("Greater", g.op("Slice", x, g.ints(0), g.ints(1), g.ints(1)), g.const(0.0))
    return _end(g, g.op("Where", mask, g.conv(x, 6), x))


# windows and reductions


@RULES("MaxPool whose indices are used", "bn", "pool", "indices")
def _indices(g: Build) -> tuple[str, ...]:
    y, indices = g.ops("MaxPool", g.conv(image(g), 7), count=2, kernel_shape=[2, 2], name="pool")
    return _end(g, y, signs="positive"), indices


@RULES("a scale along an axis that GlobalAveragePool reduces", "mul", "pool", WHY["varies"])
def _pooled_axis(g: Build) -> str:
    y = g.mul(image(g), axis=2, name="mul")
    return g.conv(g.op("GlobalAveragePool", y, name="pool"), 7)


@RULES("ReduceMean over the channels", "bn", "mean", WHY["varies"])
def _mean(g: Build) -> str:
    y = g.bn(image(g), name="bn")
    return g.conv(g.op("ReduceMean", y, g.ints(1), name="mean"), 7)


@RULES("ReduceMax of both signs", "bn", "maximum", WHY["negative"])
def _reduce_max(g: Build) -> str:
    return _end(g, g.op("ReduceMax", g.conv(image(g), 7), g.ints(2, 3), name="maximum"))


@RULES("ReduceL2 passes no shift", "bn", "norm", WHY["shift"])
def _reduce_l2(g: Build) -> str:
    return _end(g, g.op("ReduceL2", g.conv(image(g), 7), g.ints(2, 3), name="norm"), signs="positive")


@RULES("ReduceSum of a number of entries that is not known", "add", "total", "not known")
def _reduce_sum(g: Build) -> str:
    y = g.add(g.input("x", (2, 6, "H", "W")), name="add")
    return g.conv(g.op("ReduceSum", y, g.ints(2, 3), name="total"), 7)


@RULES("Resize that looks outside the image", "bn", "resize", "outside the image")
def _resize(g: Build) -> str:
    y, box = g.conv(image(g), 7), g.const(np.array([0, 0, -0.3, 0, 1, 1, 1.2, 1.0]), "box")
    factors = g.const(np.array([1.0, 1.0, 2.0, 2.0]), "factors")
    mode = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    return _end(g, g.op("Resize", y, box, factors, name="resize", **mode))


@RULES("GridSample with zero padding", "bn", "sample", WHY["padding"])
def _grid_sample(g: Build) -> str:
    y = g.op("GridSample", g.conv(image(g), 7), g.input("grid", (2, 5, 4, 2)), name="sample")
    return _end(g, y)


# joins and products


@RULES("an operand that is broadcast along the channels", "bn", "sum", "broadcast")
def _broadcast(g: Build) -> str:
    x = image(g)
    return _end(g, g.op("Add", g.conv(x, 7), g.conv(x, 1), name="sum"))


@RULES("a product passes no shift", "bn", "product", WHY["shift"])
def _product(g: Build) -> str:
    x = image(g)
    return _end(g, g.op("Mul", g.conv(x, 7), g.conv(x, 7), name="product"))


@RULES("a product of two tensors at run time passes no shift", "bn", "scores", WHY["shift"])
def _scores(g: Build) -> str:
    x = tokens(g)
    k = g.op("Transpose", g.matmul(x, 8), perm=[0, 2, 1])
    q = g.op("Tanh", g.matmul(x, 8))
    return g.op("Softmax", g.op("MatMul", q, g.bn(g.op("Tanh", k), name="bn"), name="scores"))


@RULES("a constant operand of Concat that the caller may override", "bn", "frame", WHY["input"])
def _concat(g: Build) -> str:
    frame = g.const(g.normal((2, 3, 9, 11)), "frame")
    g.expose(frame)
    return _end(g, g.op("Concat", g.conv(image(g), 5), frame, axis=1))


# moves


@RULES("Reshape that mixes channels and rows", "bn", "conv", WHY["axis"])
def _reshape(g: Build) -> str:
    y = g.conv(image(g), 4, name="conv")
    return _end(g, g.op("Reshape", y, g.ints(2, 9, 4, 11)))


@RULES("Reshape of sizes that are not known", "bn", "reshape", "not known")
def _reshape_unknown(g: Build) -> str:
    y = g.op("Transpose", g.conv(g.input("x", (2, 6, "H", 11)), 4), perm=[0, 2, 1, 3])
    return _end(g, g.op("Reshape", y, g.ints(2, 4, -1), name="reshape"))


@RULES("Expand along the channels", "bn", "expand", WHY["varies"])
def _expand(g: Build) -> str:
    return _end(g, g.op("Expand", g.conv(image(g), 1), g.ints(2, 7, 9, 11), name="expand"))


@RULES("bn -> DepthToSpace: channels of a block differ", "bn", "shuffle", WHY["varies"])
def _depth_to_space(g: Build) -> str:
    y = g.bn(g.input("x", (2, 8, 5, 3)), name="bn")
    return g.conv(g.op("DepthToSpace", y, blocksize=2, name="shuffle"), 7)


@RULES("SpaceToDepth -> bn: channels of a block differ", "bn", "shuffle", WHY["varies"])
def _space_to_depth(g: Build) -> str:
    y = g.op("SpaceToDepth", g.conv(g.input("x", (2, 6, 4, 6)), 3), blocksize=2, name="shuffle")
    return _end(g, y)


@RULES("Tile -> bn: copies of a channel differ", "bn", "tile", "repetitions")
def _tile(g: Build) -> str:
    return _end(g, g.op("Tile", g.conv(image(g), 4), g.ints(1, 2, 1, 1), name="tile"))


@RULES("Gather with indices of run time", "bn", "gather", WHY["varies"])
def _gather(g: Build) -> str:
    return _end(g, g.op("Gather", g.conv(image(g), 7), g.input("i", (4,), "int64"), axis=1, name="gather"))


@RULES("Dropout that may drop", "bn", "dropout", "random")
def _dropout(g: Build) -> str:
    y = g.op("Dropout", g.conv(image(g), 7), g.const(0.0), g.const(np.array(True)), name="dropout")
    return _end(g, y)


@RULES("Cast to integers", "bn", "back", "int32")
def _cast(g: Build) -> str:
    y = g.op("Cast", g.conv(image(g), 7), to=6)
    return _end(g, g.op("Cast", y, to=1, name="back"))


# norms and recurrent layers


@RULES("bn -> InstanceNormalization: scales differ", "bn", "norm", WHY["varies"])
def _instance_norm(g: Build) -> str:
    y = g.bn(image(g), name="bn")
    return g.op("InstanceNormalization", y, g.const(g.scales(6)), g.const(g.normal((6,))), name="norm")


@RULES("LayerNormalization -> bn over the tokens", "bn", "norm", "axes")
def _layer_norm(g: Build) -> str:
    y = g.op("LayerNormalization", tokens(g), g.const(g.scales(6)), g.const(g.normal((6,))), name="norm")
    return _end(g, y)


@RULES("bn -> LayerNormalization: scales differ", "bn", "norm", WHY["varies"])
def _layer_norm_forward(g: Build) -> str:
    y = g.bn(rows(g), name="bn")
    return g.op("LayerNormalization", y, g.const(g.scales(6)), g.const(g.normal((6,))), name="norm")


@RULES("LSTM -> bn", "bn", "lstm", "closed")
def _lstm(g: Build) -> str:
    w, r = g.weight((1, 16, 6), 6), g.weight((1, 16, 4), 4)
    y = g.ops("LSTM", g.input("x", (9, 2, 6)), w, r, count=1, hidden_size=4, name="lstm")[0]
    return _end(g, g.op("Transpose", g.op("Squeeze", y, g.ints(1)), perm=[1, 2, 0]))


@RULES("spatial=0 with parameters for each position", "bn", "bn", "spatial", builder={"opset": 7}, runs=False)
def _spatial(g: Build) -> str:
    y = g.conv(g.input("x", (2, 6, 3, 2)), 4)
    parameters = [g.const(v) for v in (g.normal((4, 3, 2)), g.normal((4, 3, 2)), g.normal((4, 3, 2)))]
    var = g.const(g.rng.uniform(0.3, 3, (4, 3, 2)))
    return g.op("Sigmoid", g.op("BatchNormalization", y, *parameters, var, name="bn", spatial=0))
