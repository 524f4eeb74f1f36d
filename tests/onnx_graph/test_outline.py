"""Outlines of ONNX models: the names are those of the solver's view, and the edges are the model's."""

from __future__ import annotations

import onnx
import pytest

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.outline import snapshot
from bnfold.onnx_graph.read import read
from bnfold.report.drawing import OutlineNode
from tests.onnx_graph.build import Build

BODIES = """
<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
g (float[1, 4] x, bool b, float[4] w) => (float[1, 4] y)
<float[4] w = {1, 2, 3, 4}> {
    t = Mul (x, w)
    u = If (b) <
        then_branch = yes () => (float[1, 4] v) { v = Relu (t) },
        else_branch = no () => (float[1, 4] v) { s = Neg (t) v = Relu (s) }
    >
    y = own.twice (u)
}
<domain: "own", opset_import: ["" : 18]>
twice (a) => (z) { t = Add (a, a) z = Relu (t) }
"""


def test_bodies_and_functions() -> None:
    drawn = snapshot(onnx.parser.parse_model(BODIES)).outline()
    assert drawn.inputs == ("x", "b", "a#3")
    assert drawn.outputs == ("y",)
    assert drawn.nodes == (
        OutlineNode("Mul:t", "Mul", ("x", "w"), ("t",)),
        OutlineNode("If:u", "If", ("b", "v#1", "v#2"), ("u",)),
        OutlineNode("Relu:v", "Relu", ("t",), ("v#1",)),
        OutlineNode("Neg:s", "Neg", ("t",), ("s#2",)),
        OutlineNode("Relu:v:v", "Relu", ("s#2",), ("v#2",)),
        OutlineNode("own.twice:y", "own.twice", ("u",), ("y",)),
        OutlineNode("Add:t", "Add", ("a#3", "a#3"), ("t#3",)),
        OutlineNode("Relu:z", "Relu", ("t#3",), ("z#3",)),
    )


def test_names_are_those_of_the_reports() -> None:
    g = Build(seed=1)
    x = g.input("x", (1, 3, 6, 6))
    for _ in range(2):  # one name twice, and none at all
        x = g.op("Relu", g.bn(g.conv(x, 3, name="same"), name="same"), name="same")
    g.output(x)
    models = [onnx.parser.parse_model(BODIES), g.model()]
    for node in models[1].graph.node[:2]:
        node.name = ""
    for model in models:
        seen = {node.name for node in read(load(model)).nodes}
        assert seen
        assert seen <= {node.name for node in snapshot(model).outline().nodes}


@pytest.mark.parametrize("version", [3, 8])
def test_stored_values_are_no_inputs(version: int) -> None:
    g = Build()
    g.output(g.conv(g.input("x", (1, 3, 6, 6)), 3))
    model = g.model()
    model.ir_version = version
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    assert snapshot(model).outline().inputs == ("x",)


def test_names_that_are_no_text_are_shown_as_they_can() -> None:
    g = Build()
    g.output(g.op("Relu", g.input("x", (1, 3)), name="node_name"))
    raw = g.model().SerializeToString().replace(b"node_name", b"node\xff\xfeame")
    model = onnx.ModelProto.FromString(raw)
    assert [node.name for node in snapshot(model).outline().nodes] == ["node\\xff\\xfeame"]
