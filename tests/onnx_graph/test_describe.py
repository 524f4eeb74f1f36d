"""What is in a model, in numbers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from bnfold.api.fold_onnx import fold_loaded
from bnfold.onnx_graph.describe import Sketch
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check, Fold
from bnfold.report.summary import Summary
from tests.onnx_graph.build import Build


def summary(model: onnx.ModelProto, options: Fold | None = None) -> Summary:
    sketch = Sketch()
    folded, _ = fold_loaded(load(model), options or Fold(), Check(False), sketch=sketch)
    found = sketch.summary(folded, [])
    assert found is not None
    return found


def test_multiplications_of_each_kind_of_layer() -> None:
    """Each by hand: weights times the positions at which they are used."""
    g = Build(seed=0)
    x = g.input("x", ("N", 4, 8, 8))
    x = g.op("Conv", x, g.const(np.ones((6, 2, 3, 3))), group=2)  # 6 x 6 positions
    x = g.op("ConvTranspose", x, g.const(np.ones((6, 5, 2, 2))), strides=[2, 2])  # of its input: 6 x 6
    x = g.op("ReduceMean", x, g.ints(2, 3), keepdims=0)
    x = g.op("Gemm", x, g.const(np.ones((5, 7))))  # one
    x = g.op("MatMul", x, g.const(np.ones((3, 7, 2))))  # three matrices, each at one
    g.output(x)
    work = 36 * 6 * 2 * 9 + 36 * 6 * 5 * 4 + 5 * 7 + 3 * 7 * 2
    found = summary(g.model())
    assert (found.before.multiplications, found.after.multiplications) == (work, work)
    assert found.before.parameters == 6 * 2 * 9 + 6 * 5 * 4 + 5 * 7 + 3 * 7 * 2 + 2


def test_the_layers_are_known_by_other_names_afterwards() -> None:
    """Without a batch norm behind it the layer makes what that made; of two branches one node is left."""
    g = Build(seed=1)
    x = g.input("x", (1, 4, 8, 8))
    wide = g.conv(x, 4, 3, pads=1, name="wide")
    narrow = g.conv(x, 4, 1, name="narrow")
    stored = [g.const(np.full(4, value)) for value in (2.0, 0.5, 0.25, 1.5)]
    g.output(g.op("BatchNormalization", g.op("Add", wide, narrow), *stored))
    found = summary(g.model())
    assert found.before.operators == {"Conv": 2, "Add": 1, "BatchNormalization": 1}
    assert found.after.operators == {"Conv": 1}
    assert found.before.multiplications == 64 * 4 * 4 * (9 + 1)
    assert found.after.multiplications == 64 * 4 * 4 * 9


def test_dropped_channels_are_counted() -> None:
    g = Build(seed=2)
    first = g.const(np.ones((4, 4, 1, 1)))
    x = g.op("Conv", g.input("x", (1, 4, 8, 8)), first)
    x = g.op("Mul", x, g.const(np.array([1.0, 0, 2, 0]).reshape(4, 1, 1)))
    g.output(g.op("Conv", g.op("Relu", x), g.const(np.ones((3, 4, 1, 1)))))
    found = summary(g.model(), Fold(drop_dead_channels=True))
    assert found.before.multiplications == 64 * (16 + 12)
    assert found.after.multiplications == 64 * (8 + 6)


def test_what_is_not_known_is_not_told() -> None:
    g = Build(seed=3)
    layer = g.body()
    layer.output(layer.op("Conv", g.input("x", (1, 2, 8)), g.const(np.ones((2, 2, 1)), "w")))
    layer.function("Layer", ["x", "w"])
    g.output(g.op("Layer", "x", "w", domain="test"))
    found = summary(g.model()).before
    assert (found.operators, found.multiplications) == ({"test.Layer": 1}, None)


def test_inputs_and_outputs_as_the_command_line_takes_them() -> None:
    g = Build(seed=4)
    ids = g.input("ids", ("batch", 128), "int64")
    g.expose(g.const(np.ones(3), "stored"))
    g.output(g.op("Cast", ids, to=TensorProto.BOOL))
    found = summary(g.model()).before
    assert found.inputs == ["ids:batch,128:int64"]
    assert [entry.rsplit(":", 1)[-1] for entry in found.outputs] == ["bool"]


def test_bodies_are_counted_with_what_they_hold() -> None:
    g = Build(seed=5)
    x = g.input("x", (1, 2, 4, 4))
    body = helper.make_graph(
        [helper.make_node("Relu", [x], ["y"], "inner")],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
    )
    g.output(g.op("If", g.const(np.array(True), "yes"), then_branch=body, else_branch=body))
    assert summary(g.model()).before.operators["Relu"] == 2


def test_only_what_is_the_same_is_told_once() -> None:
    g = Build(seed=6)
    x = g.input("x", (1, 2, 4, 4))
    g.output(g.op("Relu", x))
    lines = list(summary(g.model()).lines())
    assert lines[0] == "opset 18"
    assert lines[1] == "inputs x:1,2,4,4:float32"
    changed = summary(g.model())
    changed.after.opset = 20
    assert next(changed.lines()) == "opset 18 -> 20"
