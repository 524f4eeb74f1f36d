"""Each situation in which a dead channel leaves, and beside it one in which it must stay, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.passes.channels.drop import drop_dead_channels
from bnfold.report.channels import Dropped
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.channels.dropping import Net, drop

PADDED = "sees zero padding beside a constant that is not zero"
LIVE = "is not constant where this reads it"

Lost = dict[str, tuple[int, int]]  # layer: output and input channels that it lost
Case = tuple[Callable[[Net], str], Lost]


def lost(dropped: Dropped) -> Lost:
    counts = {layer.name: (len(layer.outputs), len(layer.inputs)) for layer in dropped.layers}
    return {name: count for name, count in counts.items() if count != (0, 0)}


def relu(g: Net, x: str) -> str:
    return g.op("Relu", x)


def six(g: Net, x: str) -> str:
    return g.op("Clip", x, g.const(0.0, "low"), g.const(6.0, "high"))


DEAD = {1: -0.5, 3: -0.25}  # zero behind a Relu
LEAVE: dict[str, Case] = {}
STAY: dict[str, tuple[Callable[[Net], str], str]] = {}


def leaves(name: str, **layers: tuple[int, int]) -> Callable[[Callable[[Net], str]], Callable[[Net], str]]:
    def add(make: Callable[[Net], str]) -> Callable[[Net], str]:
        LEAVE[name] = make, layers
        return make

    return add


def stays(name: str, reason: str) -> Callable[[Callable[[Net], str]], Callable[[Net], str]]:
    def add(make: Callable[[Net], str]) -> Callable[[Net], str]:
        STAY[name] = make, reason
        return make

    return add


# constants, and what stands between the layers


@leaves("a filter of zeros, before an unpadded conv", a=(2, 0), b=(0, 2))
def _constant(g: Net) -> str:
    return g.layer(g.layer(g.image(), dead={0: 0.7, 2: -0.3}, name="a"), 5, 3, name="b")


@stays("a filter of zeros, before a padded conv", PADDED)
def _padded(g: Net) -> str:
    return g.layer(g.layer(g.image(), dead={0: 0.7, 2: -0.3}, name="a"), 5, 3, pads=[1] * 4, name="b")


@leaves("zero behind a Relu, before a padded conv", a=(2, 0), b=(0, 2))
def _relu_padded(g: Net) -> str:
    return g.layer(relu(g, g.layer(g.image(), dead=DEAD, name="a")), 5, 3, pads=[1] * 4, name="b")


@leaves("a bounded channel that is never positive", a=(1, 0), b=(0, 1))
def _never_positive(g: Net) -> str:
    x = six(g, g.image())
    w = g.const(np.array([[1.0, 1, 1], [1, 1, -1], [-1, 2, 0]]).reshape(3, 3, 1, 1), "w")
    y = g.op("Conv", x, w, g.const(np.array([0.0, -12.0, 0.0]), "c"), name="a")
    return g.layer(relu(g, y), name="b")


@stays("a channel without bounds", "")
def _unbounded(g: Net) -> str:
    w = g.const(np.array([[1.0, 1, 1], [1, 1, -1]]).reshape(2, 3, 1, 1), "w")
    y = g.op("Conv", g.image(), w, g.const(np.array([0.0, -1e6]), "c"), name="a")
    return g.layer(relu(g, y), name="b")


@leaves("a channel that a Clip saturates", a=(1, 0), b=(0, 1))
def _saturated(g: Net) -> str:
    w = g.const(np.array([[1.0, 1, 1], [1, 1, -1]]).reshape(2, 3, 1, 1), "w")
    y = g.op("Conv", six(g, g.image()), w, g.const(np.array([0.0, 12.0]), "c"), name="a")
    return g.layer(six(g, y), name="b")


@leaves("through SiLU, PRelu, pooling and a batch norm that stays", a=(2, 0), b=(0, 2))
def _chain(g: Net) -> str:
    y = g.layer(g.image(), dead=DEAD, name="a")
    y = g.op("Mul", y, g.op("Sigmoid", y))
    y = g.op("PRelu", y, g.const(g.normal((4, 1, 1)), "slope"))
    y = g.bn(g.op("MaxPool", y, kernel_shape=[2, 2]))
    y = g.op("AveragePool", g.per_channel("Mul", y, g.normal((4,))), kernel_shape=[2, 2], pads=[1] * 4)
    return g.layer(g.op("Resize", y, "", g.const(np.array([1, 1, 2.0, 2]))), name="b")


@stays("through an average that counts padding", "averagepool sees padding beside it")
def _counted(g: Net) -> str:
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    how = {"pads": [1] * 4, "count_include_pad": 1}
    return g.layer(g.op("AveragePool", y, kernel_shape=[2, 2], **how), name="b")


@leaves("a scale of zero in a batch norm that stays", a=(1, 0), b=(0, 1))
def _zero_scale(g: Net) -> str:
    y = g.bn(relu(g, g.layer(g.image(), name="a")), scale=np.array([1, 0, 2.0, -1]))
    return g.layer(y, name="b")


@stays("through entries that indices of every channel choose", "its indices run along the channels")
def _chosen(g: Net) -> str:
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    places = g.const(np.zeros([int(size or 0) for size in g.shape(y)], np.int64), "places")
    return g.layer(g.op("GatherElements", y, places, axis=2), name="b")


@stays("across channels", "LRN")
def _lrn(g: Net) -> str:
    y = g.layer(g.image(), dead=DEAD, name="a")
    return g.layer(g.op("LRN", y, size=3, name="LRN"), name="b")


# depthwise and grouped convs


@leaves("zero through a padded depthwise conv", a=(2, 0), d=(2, 2), b=(0, 2))
def _depthwise(g: Net) -> str:
    y = relu(g, g.layer(g.image(), dead=DEAD, name="a"))
    return g.layer(relu(g, g.layer(y, 4, 3, group=4, pads=[1] * 4, name="d")), name="b")


@stays("another constant through a padded depthwise conv", f"d {PADDED}")
def _depthwise_padded(g: Net) -> str:
    y = relu(g, g.layer(g.image(), dead={1: 0.5}, name="a"))
    return g.layer(relu(g, g.layer(y, 4, 3, group=4, pads=[1] * 4, name="d")), name="b")


@leaves("a depthwise filter of zeros, with the channel that it read", a=(1, 0), d=(1, 1), b=(0, 1))
def _depthwise_filter(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.layer(g.layer(y, 4, 3, group=4, dead={2: 0.4}, pads=[1] * 4, name="d"), name="b")


@leaves("both outputs of a channel", a=(1, 0), d=(2, 1), b=(0, 2))
def _multiplier(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.layer(g.layer(y, 8, 3, group=4, dead={2: 0.4, 3: 0.1}, name="d"), name="b")


@stays("one of two outputs of a channel", LIVE)
def _half_multiplier(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.layer(g.layer(y, 8, 3, group=4, dead={2: 0.4}, name="d"), name="b")


@leaves("a whole group", a=(2, 0), d=(3, 2), b=(0, 3))
def _group(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.layer(g.layer(y, 6, group=2, dead={3: 0.4, 4: 0.1, 5: 0.2}, name="d"), name="b")


@stays("a part of a group", LIVE)
def _half_group(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.layer(g.layer(y, 6, group=2, dead={3: 0.4, 5: 0.2}, name="d"), name="b")


@leaves("a whole group of a transposed conv", a=(2, 0), d=(2, 2), b=(0, 2))
def _transposed_group(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    w = g.normal((4, 2, 2, 2))
    w[:2] = 0
    y = g.op("ConvTranspose", y, g.const(w, "w"), g.const(g.normal((4,)), "c"), group=2, name="d")
    return g.layer(y, name="b")


@leaves("zero into a transposed conv", a=(2, 0), b=(0, 2))
def _transposed(g: Net) -> str:
    return g.deconv(relu(g, g.layer(g.image(), dead=DEAD, name="a")), 5, 2, strides=[2, 2], name="b")


@stays("another constant into a transposed conv", PADDED)
def _transposed_constant(g: Net) -> str:
    return g.deconv(g.layer(g.image(), dead={1: 0.5}, name="a"), 5, 3, name="b")


# joins


@leaves("through a Concat", a=(1, 0), c=(1, 0), b=(0, 2))
def _concat(g: Net) -> str:
    x = g.image()
    y = g.op("Concat", g.layer(x, dead={1: 0.5}, name="a"), g.layer(x, 2, dead={0: 0.2}, name="c"), axis=1)
    return g.layer(y, name="b")


@leaves("the constant of a Concat", b=(0, 2))
def _concat_constant(g: Net) -> str:
    constant = np.broadcast_to(np.array([0.5, 1, -2]).reshape(3, 1, 1), (2, 3, 6, 6)) + np.zeros((2, 3, 6, 6))
    constant[0, 0, 0, 0] = 3
    return g.layer(g.op("Concat", g.layer(g.image(), name="a"), g.const(constant, "c"), axis=1), name="b")


@stays("a depthwise conv of a graph input", "reads x, whose channels stay")
def _concat_input(g: Net) -> str:
    x = g.image()
    return g.layer(g.op("Concat", x, g.layer(x, 3, dead={0: 0.1}, group=3, name="a"), axis=1), name="b")


@leaves("constant in all operands of a sum", a=(1, 0), c=(1, 0), b=(0, 1))
def _sum(g: Net) -> str:
    x = g.image()
    y = g.op("Add", g.layer(x, dead={1: 0.5}, name="a"), g.layer(x, dead={1: -2, 2: 1}, name="c"))
    return g.layer(y, name="b")


@stays("constant in one operand of a sum", "add joins it with what is not constant")
def _half_sum(g: Net) -> str:
    x = g.image()
    y = g.op("Add", g.layer(x, dead={1: 0.5}, name="a"), g.layer(x, name="c"))
    return g.layer(y, name="b")


@stays("a sum with a graph input", "is joined with x")
def _sum_input(g: Net) -> str:
    x = g.image(4)
    y = relu(g, g.op("Sub", g.op("Abs", g.layer(x, dead={1: 0.5}, name="a")), x))
    return g.layer(y, name="b")


def excited(g: Net, dead: dict[int, float]) -> str:
    y = relu(g, g.layer(g.image(), dead=dead, name="a"))
    gate = relu(g, g.layer(g.op("GlobalAveragePool", y), 3, name="down"))
    return g.layer(g.op("Mul", y, g.op("Sigmoid", g.layer(gate, 4, name="up"))), name="b")


@leaves("a squeeze-and-excitation block", a=(2, 0), down=(0, 2), up=(2, 0), b=(0, 2))
def _excited(g: Net) -> str:
    return excited(g, DEAD)


@stays("a constant times a gate", "mul joins it with what is not constant")
def _excited_constant(g: Net) -> str:
    return excited(g, {1: 0.5})


# rearranged data


@leaves("through Split, Slice and Gather, past 3 and 5", a=(4, 0), b=(0, 1), c=(0, 3))
def _parts(g: Net) -> str:
    y = g.layer(g.image(), 6, dead={1: 0.5, 4: -1.0}, name="a")
    first, second = g.ops("Split", y, g.integers(2, 4), count=2, axis=1)
    first = g.op("Slice", first, g.integers(0), g.integers(2), g.integers(1))
    second = g.op("Gather", g.op("Concat", second, first, axis=1), g.integers(4, 2, 5, 0, -1), axis=1)
    return g.op("Add", g.layer(first, 2, name="b"), g.layer(second, 2, name="c"))


@leaves("through Split into equal parts", a=(1, 0), b=(0, 1))
def _equal_parts(g: Net) -> str:
    y = g.layer(g.image(), 6, dead={1: 0.5}, name="a")
    first, second = g.ops("Split", y, count=2, axis=1, num_outputs=2)
    return g.op("Add", g.layer(first, 2, name="b"), g.layer(second, 2, name="c"))


@leaves("past a Slice that takes other channels", a=(2, 0))
def _unsliced(g: Net) -> str:
    y = g.layer(g.image(), 6, name="a")
    return g.layer(g.op("Slice", y, g.integers(1), g.integers(5), g.integers(1)), 2, name="b")


@stays("a Slice of every other channel", "not in a row")
def _every_other(g: Net) -> str:
    y = g.layer(g.image(), 6, dead={1: 0.5, 4: 1.0}, name="a")
    return g.layer(g.op("Slice", y, g.integers(0), g.integers(6), g.integers(1), g.integers(2)), 2, name="b")


@leaves("through Flatten into a Gemm", a=(2, 0), b=(0, 72))
def _flatten(g: Net) -> str:
    y = g.op("Flatten", g.layer(g.image(), dead={0: 0.7, 2: -0.3}, name="a"))
    return g.gemm(y, 5, (5,), alpha=0.5, beta=2.0, name="b")


@leaves("through Reshape and Transpose into a MatMul with an Add behind", a=(1, 0), b=(0, 1))
def _tokens(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(2, 4, 36))
    return g.matmul(g.op("Transpose", y, perm=[0, 2, 1]), 5, bias=True, name="b")


@leaves("into a MatMul without an Add", a=(1, 0), b=(0, 1))
def _matmul(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(0, 4, -1))
    return g.op("Tanh", g.matmul(g.op("Transpose", y, perm=[0, 2, 1]), 5, name="b"))


@leaves("into a MatMul without an Add, which loses outputs as well", a=(1, 0), b=(2, 1), c=(0, 2))
def _matmul_both(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(0, 4, -1))
    w = g.normal((4, 5))
    w[:, [1, 3]] = 0
    w[2, 3] = 2
    y = g.op("MatMul", g.op("Transpose", y, perm=[0, 2, 1]), g.const(w, "w"), name="b")
    return g.matmul(g.op("Tanh", g.op("Reshape", y, g.integers(2, 6, 6, 5))), 3, name="c")


@leaves("into a MatMul from the left", a=(1, 0), b=(0, 1))
def _left(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(0, 0, -1))
    return g.op("Tanh", g.matmul(y, 5, left=True, name="b"))


@stays("a channel shuffle", "does not keep channels apart")
def _shuffle(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(2, 2, 2, 6, 6))
    y = g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3, 4]), g.integers(2, 4, 6, 6))
    return g.layer(y, name="b")


@stays("channels that become pixels", "mixes channels")
def _pixels(g: Net) -> str:
    return g.layer(
        g.op("DepthToSpace", g.layer(g.image(), 8, dead={2: 0.3}, name="a"), blocksize=2), name="b"
    )


@leaves("pixels that become channels", a=(1, 0), b=(0, 4))
def _blocks(g: Net) -> str:
    return g.layer(g.op("SpaceToDepth", g.layer(g.image(), dead={2: 0.3}, name="a"), blocksize=2), name="b")


@stays("a graph output", "is a graph output")
def _output(g: Net) -> str:
    return g.layer(g.image(), dead={2: 0.3}, name="a")


@stays("a recurrent layer", "no rule")
def _recurrent(g: Net) -> str:
    y = g.op("Reshape", g.layer(g.image(), dead={2: -0.3}, name="a"), g.integers(2, 4, 36))
    y = g.op("Transpose", y, perm=[2, 0, 1])
    w, r = g.weight((1, 9, 4), 4), g.weight((1, 9, 3), 3)
    return g.ops("GRU", y, w, r, count=1, hidden_size=3)[0]


def shown(g: Net, start: int) -> str:
    """A scale computed from an entry of the shape."""
    y = g.layer(g.image(), dead={2: -0.3}, name="a")
    size = g.op("Gather", g.op("Shape", y), g.integers(start), name="size")
    return g.layer(g.op("Mul", y, g.op("Cast", size, to=1)), name="b")


@stays("their number is asked for", "their number is computed with")
def _counted_channels(g: Net) -> str:
    return shown(g, 1)


@leaves("another size is asked for", a=(1, 0), b=(0, 1))
def _counted_rows(g: Net) -> str:
    return shown(g, 2)


# what nobody reads


@leaves("a channel without weights in any reader", a=(1, 0), b=(0, 1), c=(0, 1))
def _unread(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.op(
        "Add", g.layer(y, unread=(2,), name="b"), g.layer(y, 4, 3, unread=(2, 3), pads=[1] * 4, name="c")
    )


@stays("a channel without weights in one of two readers", "")
def _half_unread(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    return g.op("Add", g.layer(y, unread=(2,), name="b"), g.layer(y, name="c"))


@leaves("a channel that only an unread channel reads", a=(1, 0), b=(1, 1), c=(0, 1))
def _unread_chain(g: Net) -> str:
    y = relu(g, g.layer(g.image(), name="a"))
    w = g.normal((4, 4, 1, 1))
    w[[0, 1, 3], 2] = 0
    y = g.op("Conv", y, g.const(w, "w"), name="b")
    return g.layer(relu(g, y), unread=(2,), name="c")


@leaves("all but one of a tensor", a=(3, 0), b=(0, 3))
def _last(g: Net) -> str:
    return g.layer(g.layer(g.image(), dead=dict.fromkeys(range(4), 0.5), name="a"), name="b")


@leaves("normalized by itself", a=(1, 0), b=(0, 1))
def _instance_norm(g: Net) -> str:
    scale = np.array([1.0, 2.0, 0.0, 1.0])
    y = g.layer(g.image(), name="a")
    y = g.op("InstanceNormalization", y, g.const(scale, "scale"), g.const(g.normal((4,)), "shift"))
    return g.layer(y, name="b")


def built(make: Callable[[Net], str], **how: Any) -> tuple[onnx.ModelProto, Dropped]:
    g = Net(**how)
    g.output(make(g))
    return drop(g)


@pytest.mark.parametrize("how", ["initializer", "constant"])
@pytest.mark.parametrize("name", LEAVE)
def test_leaves(name: str, how: str) -> None:
    make, layers = LEAVE[name]
    _, dropped = built(make, how=how)
    assert lost(dropped) == layers
    assert dropped.channels == sum(count for count, _ in layers.values())
    assert dropped.parameters > 0


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    make, reason = STAY[name]
    _, dropped = built(make)
    assert lost(dropped) == {}
    assert (
        (reason in " ".join(f"{kept.blocked_by} {kept.reason}" for kept in dropped.kept))
        if reason
        else not dropped.kept
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["a filter of zeros, before an unpadded conv", "through a Concat"])
def test_other_types(name: str, dtype: str) -> None:
    make, layers = LEAVE[name]
    result, dropped = built(make, dtype=dtype, opset=22)
    assert lost(dropped) == layers
    assert {t.data_type for t in result.graph.initializer} == {
        {"float16": 10, "bfloat16": 16, "float64": 11}[dtype]
    }


def test_the_constant_is_in_the_bias() -> None:
    g = Net()
    g.output(g.layer(g.layer(g.image(), dead={0: 0.5, 2: -2.0}, name="a"), 5, 3, name="b"))
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in g.initializers}
    result, dropped = drop(g)
    new = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    taps = old["b_weight"].sum((2, 3))
    np.testing.assert_allclose(new["b_bias"], old["b_bias"] + taps @ [0.5, 0, -2, 0], rtol=1e-6)
    np.testing.assert_array_equal(new["b_weight"], old["b_weight"][:, [1, 3]].astype(np.float32))
    np.testing.assert_array_equal(new["a_bias"], old["a_bias"][[1, 3]].astype(np.float32))
    first, second = dropped.layers
    assert (first.outputs, first.inputs, first.parameters) == ((0, 2), (), 2 * 3 + 2)
    assert (second.outputs, second.inputs, second.parameters) == ((), (0, 2), 5 * 2 * 9)
    assert [tuple(moved) for moved in second.moved] == [(0, 0.5), (2, -2.0)]
    assert (first.multiplications, second.multiplications) == (2 * 3 * 36, 5 * 2 * 9 * 16)


def test_a_bias_that_would_overflow_stays_without_the_constant() -> None:
    g = Net(dtype="float16")
    w = np.full((2, 2, 1, 1), 0.5)
    w[0] = 60000.0
    y = g.op("Conv", g.layer(g.image(), 2, dead={1: 1e-3}, name="a"), g.const(w, "w"), name="ok")
    z = g.op("Conv", g.layer(g.image(), 2, dead={1: 4.0}, name="c"), g.const(w, "v"), name="large")
    g.inputs.pop()
    g.output(g.op("Tanh", y), g.op("Tanh", z))
    model = g.model()
    loaded = load(model)
    dropped = drop_dead_channels(loaded)
    assert lost(dropped) == {"a": (1, 0), "ok": (0, 1)}
    [kept] = dropped.kept
    assert (kept.name, kept.channels, kept.blocked_by) == ("c", (1,), "large")
    assert kept.reason == "its bias would overflow float16"


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_attributes_and_inputs_of_all_opsets(opset: int) -> None:
    """Sizes and bounds moved from attributes to inputs over the years."""
    g = Net(opset)
    y = g.layer(g.image(), 6, dead={1: 0.5, 4: -1.0}, name="a")
    if opset < 10:
        y = g.op("Slice", y, axes=[1, 2], starts=[1, 0], ends=[6, 9])
    else:
        y = g.op("Slice", y, g.integers(1, 0), g.integers(6, 9), g.integers(1, 2))
    if opset < 13:
        first, second = g.ops("Split", y, count=2, axis=1, split=[2, 3])
    else:
        first, second = g.ops("Split", y, g.integers(2, 3), count=2, axis=1)
    g.output(g.layer(first, 2, name="b"), g.layer(second, 2, name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (3, 0), "b": (0, 1), "c": (0, 1)}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c", [None, (), (5,), (1, 5), (2, 5), (2, 1)])
def test_gemm(c: tuple[int, ...] | None, transposed: int) -> None:
    g = Net()
    y = g.op("Flatten", g.op("GlobalAveragePool", g.layer(g.image(), dead={1: 0.5}, name="a")))
    y = g.gemm(y, 5, c, alpha=0.5, beta=2.0, transB=transposed, name="b")
    g.output(g.gemm(g.op("Clip", y, g.const(0.25), g.const(0.25)), 3, (3,), name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (1, 0), "b": (4, 1), "c": (0, 4)}


def test_gemm_that_does_not_look_at_c() -> None:
    g = Net()
    y = g.op("Flatten", g.op("GlobalAveragePool", g.layer(g.image(), dead={1: 0.0}, name="a")))
    y = g.op("Relu", g.gemm(y, 5, (5,), beta=0.0, name="b"))
    w = g.normal((5, 3))
    w[2] = 0
    g.output(g.op("Gemm", y, g.const(w, "w"), name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (1, 0), "b": (1, 1), "c": (0, 1)}


# values that are not ours to change


def refused(g: Net, model: onnx.ModelProto | None = None) -> str:
    model = model or g.model()
    loaded = load(model)
    dropped = drop_dead_channels(loaded)
    assert dropped.layers == []
    assert loaded.to_proto().SerializeToString() == model.SerializeToString()
    return " ".join(f"{kept.blocked_by} {kept.reason}" for kept in dropped.kept)


def test_a_weight_of_two_layers_stays() -> None:
    g = Net()
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    w = g.weight((4, 4, 1, 1), 4, "shared")
    g.output(g.op("Add", g.op("Conv", y, w, name="b"), g.op("Conv", g.op("Tanh", y), w, name="c")))
    assert "shared is shared with other nodes" in refused(g)


def test_a_weight_that_the_caller_may_override_is_not_known() -> None:
    g = Net()
    g.output(g.layer(g.layer(g.image(), dead={1: 0.5}, name="a"), name="b"))
    g.expose("b_weight")
    assert "its weight is not constant" in refused(g)


def test_captured_by_a_body() -> None:
    g = Net()
    y = g.layer(g.image(), dead={1: 0.5}, name="a")
    yes, no = g.body(), g.body()
    yes.output(yes.op("Tanh", y))
    no.output(no.op("Sigmoid", y))
    flag = g.input("flag", (), "bool")
    g.output(g.op("If", flag, then_branch=yes.graph("yes"), else_branch=no.graph("no"), name="if"))
    assert "captured by if" in refused(g)


def test_inside_a_body_it_leaves() -> None:
    g = Net()
    x = g.image()
    yes, no = g.body(), g.body()
    yes.output(yes.layer(yes.layer(x, dead={1: 0.5}, name="a"), name="b"))
    no.output(no.layer(x, name="c"))
    flag = g.input("flag", (), "bool")
    g.output(g.op("If", flag, then_branch=yes.graph("yes"), else_branch=no.graph("no"), name="if"))
    model = g.model()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (1, 0), "b": (0, 1)}
    onnx.checker.check_model(loaded.to_proto(), full_check=True)


def test_a_conv_that_takes_channels_as_its_bias() -> None:
    g = Net()
    x = g.image()
    bias = g.op(
        "Squeeze",
        g.op("ReduceMean", g.layer(x, dead={1: 0.5}, name="a"), g.integers(0, 2, 3)),
        g.integers(0, 2, 3),
    )
    g.output(g.op("Conv", x, g.weight((4, 3, 1, 1), 3), bias, name="b"))
    assert "takes them as a parameter" in refused(g)


def two_with_one_bias() -> onnx.ModelProto:
    """Two first layers, of which one has a dead channel, with the same bias."""
    g = Net()
    x, bias = g.image(), g.const(np.array([0.5, 1, 2, 3]), "bias")
    w = g.normal((4, 3, 1, 1))
    w[0] = 0
    a, c = g.op("Conv", x, g.const(w, "w"), bias, name="a"), g.op("Conv", x, g.weight((4, 3, 1, 1), 3), bias)
    g.output(g.op("Add", g.layer(a, name="b"), g.layer(c, name="d")))
    return g.model()


def test_a_vector_of_two_layers_is_copied() -> None:
    model = two_with_one_bias()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (1, 0), "b": (0, 1)}
    result = loaded.to_proto()
    sizes = {t.name: list(t.dims) for t in result.graph.initializer}
    assert (sizes["bias"], sizes["bias_bnfold"]) == ([4], [3])
    assert difference(run(model, feeds(model, 0)), run(result, feeds(result, 0))) < 1e-6


def test_unless_that_is_not_wanted() -> None:
    dropped = drop_dead_channels(load(two_with_one_bias()), shared="skip")
    assert dropped.layers == []
    assert dropped.kept[0].reason == "bias has several users"
    with pytest.raises(UsageError, match="the stored value 'bias' is shared by a, conv"):
        drop_dead_channels(load(two_with_one_bias()), shared="error")


def test_initializers_that_are_inputs_too() -> None:
    """As before IR 4, where nobody could override them."""
    g = Net(opset=9, ir=3)
    y = g.op("Relu", g.layer(g.image(), dead=DEAD, name="a"))
    g.output(g.layer(y, 5, 3, pads=[1] * 4, name="b"))
    g.expose(*(t.name for t in g.initializers))
    model = g.model()
    loaded = load(model)
    assert lost(drop_dead_channels(loaded)) == {"a": (2, 0), "b": (0, 2)}
    result = loaded.to_proto()
    onnx.checker.check_model(result, full_check=True)
    stated = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.graph.input}
    for tensor in result.graph.initializer:
        assert stated[tensor.name] == list(tensor.dims)
    assert difference(run(model, feeds(model, 0)), run(result, feeds(result, 0))) < 1e-6


def test_inside_a_function_it_stays() -> None:
    g = Net()
    x = g.image()
    inner = Net(how="constant", parent=g)
    y = inner.input("t", (2, 3, 6, 6))
    inner.output(inner.layer(inner.layer(y, dead={1: 0.5}, name="a"), name="b"))
    inner.inputs.clear()
    inner.function("Two", ["t"])
    g.output(*g.ops("Two", x, count=1, domain="test"))
    refused(g)
