"""What TensorRT's parser asks for: stored constants in the place of computed ones, and no sequences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnfold.passes.deploy import store_constants as constants
from tests.onnx_graph.build import Build
from tests.onnx_graph.look import difference, feeds, run
from tests.passes.deploy.test_rewrite import op_types, rewritten


def stored(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def check(model: onnx.ModelProto, expected: list[str], near: float = 0) -> onnx.ModelProto:
    result, _, _ = rewritten(model)
    assert op_types(result) == expected
    feed = feeds(model, 3)
    assert difference(run(model, feed), run(result, feed)) <= near
    return result


def test_axes_behind_a_reshape_of_a_constant() -> None:
    """As torch's exporter writes a global mean without its optimizer: TensorRT refuses that."""
    g = Build()
    axes = g.op("Reshape", g.const(np.array([2, 3]), "axes", "constant"), g.ints(-1))
    g.values[axes] = np.array([2, 3])  # for the builder's shape inference
    g.output(g.op("ReduceMean", g.input("x", (2, 3, 4, 5)), axes, keepdims=0))
    model = g.model()
    assert op_types(model) == ["Constant", "Reshape", "ReduceMean"]
    _, _, notes = rewritten(model)
    assert notes == ["computed constants were stored: 1"]
    result = check(model, ["ReduceMean"])
    assert list(stored(result).values()) == [[2]]


def test_a_chain_is_stored_once_at_its_end() -> None:
    g = Build()
    x = g.input("x", (2, 3, 4, 5))
    size = g.op("Shape", x, start=1, end=2)
    ones = g.op("Expand", g.op("CastLike", g.const([1.0], "one", "constant"), x), size)
    g.output(g.op("Mul", g.op("Reshape", ones, g.ints(1, 3, 1, 1)), x), g.op("Add", x, g.const(2.0)))
    result = check(g.model(), ["Mul", "Add"])
    assert sorted(stored(result).values()) == [[], [1, 3, 1, 1]]


def test_a_condition_stays_computed() -> None:
    g = Build()
    x = g.input("x", (2, 3))
    flat = g.op("Equal", g.op("Size", g.ints(4, 5)), g.op("Identity", g.const(2, dtype="int64")))
    then, other = g.body(), g.body()
    then.output(then.op("Neg", x))
    other.output(other.op("Abs", x))
    g.output(g.op("If", flat, then_branch=then.graph("t"), else_branch=other.graph("e")))
    result, _, _ = rewritten(g.model())
    assert op_types(result)[-2:] == ["Equal", "If"]


def test_a_body_reads_what_is_stored_outside() -> None:
    g = Build()
    x = g.input("x", (2, 3))
    shift = g.op("Mul", g.const([1.0, 2.0, 3.0], "a", "constant"), g.const(2.0, "b", "constant"))
    then, other = g.body(), g.body()
    then.output(then.op("Add", x, shift))
    other.output(other.op("Sub", x, shift))
    g.output(g.op("If", g.input("c", (), "bool"), then_branch=then.graph("t"), else_branch=other.graph("e")))
    result = check(g.model(), ["If"])
    assert list(stored(result).values()) == [[3]]


def test_an_output_keeps_its_node_and_name() -> None:
    g = Build()
    shift = g.op("Mul", g.const([1.0, 2.0], "a"), g.const(2.0, "b"), out="shift")
    g.output(shift, g.op("Add", g.input("x", (3, 2)), shift))
    model = g.model()
    result = check(model, ["Mul", "Add"])
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    assert result.graph.node[1].input[1] != "shift_out"


def test_quantized_weights_stay_quantized() -> None:
    g = Build()
    weight = g.const(np.arange(-8, 8).reshape(4, 4).astype(np.int8), "weight", dtype="int8")
    wide = g.op("DequantizeLinear", weight, g.const(0.5, "scale"), g.const(np.int8(1), "zero", dtype="int8"))
    g.output(g.op("MatMul", g.input("x", (2, 4)), g.op("Transpose", wide)))
    check(g.model(), ["DequantizeLinear", "Transpose", "MatMul"])


@pytest.mark.parametrize(("count", "kept"), [(1 << 18, False), ((1 << 18) + 1, True)])
def test_a_file_does_not_grow_much(count: int, kept: bool) -> None:
    assert constants.SMALL == 1 << 20
    g = Build()
    wide = g.op("Expand", g.const([1.0], "one"), g.ints(count))
    g.output(g.op("Add", g.input("x", (1,)), wide))
    check(g.model(), ["Expand", "Add"] if kept else ["Add"])


def test_a_large_weight_may_be_rearranged() -> None:
    g = Build()
    weight = g.const(np.arange(600_000.0).reshape(300, 2000) / 6e5, "weight")
    g.output(g.op("MatMul", g.input("x", (2, 2000)), g.op("Transpose", weight)))
    result = check(g.model(), ["MatMul"], near=2e-6)  # the order of a sum is the kernel's
    assert list(stored(result).values()) == [[2000, 300]]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [[2, 3, 1], 2])
def test_a_sequence_that_is_only_indexed_is_a_split(opset: int, sizes: object) -> None:
    g = Build(opset)
    lengths = g.const(np.asarray(sizes, np.int64), "sizes", "constant")
    parts = g.op("SplitToSequence", g.input("x", (3, 6, 2)), lengths, axis=1, name="split")
    first, last, again = (
        g.op("SequenceAt", parts, g.const(np.int64(index), "index", "constant")) for index in (0, -1, 0)
    )
    g.output(g.op("Concat", last, first, axis=1), g.op("Relu", again), first)
    result = check(g.model(), ["Split", "Concat", "Relu"])
    assert len(result.graph.node[0].output) == 3
    assert rewritten(g.model())[2][0] == "SplitToSequence replaced by Split: 1"


def test_a_sequence_that_others_read_stays() -> None:
    g = Build(18)
    lengths = g.const(np.array([2, 4]), "sizes", "constant")
    parts = g.op("SplitToSequence", g.input("x", (3, 6, 2)), lengths, axis=1, name="split")
    part = g.op("SequenceAt", parts, g.const(np.int64(0), "index", "constant"))
    g.output(part, g.op("SequenceLength", parts))
    check(g.model(), ["Constant", "SplitToSequence", "Constant", "SequenceAt", "SequenceLength"])
