"""The shapes that the solver gets to see: those of onnx, stated ones first."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model.scopes import build
from bnfold.onnx_graph.ops.table import OPERATORS
from bnfold.onnx_graph.read import read
from tests.onnx_graph.reading import graph_of, model, tensor

SHAPES = [
    ("Conv", [(2, 4, 9, 11), (6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [(2, 4, 9), (6, 4, 3)], {"dilations": [2]}),
    ("Conv", [("n", 4, 9, 9), (6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [(1, 4, 9, 9), (6, 4, 4, 4)], {"auto_pad": "VALID"}),
    ("MaxPool", [(2, 4, 9, 11)], {"kernel_shape": [2, 3], "strides": [2, 2]}),
    ("MaxPool", [(2, 4, 9, 9)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [(2, 4, 9, 11)], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 0]}),
    ("GlobalAveragePool", [(2, 4, 9, 11)], {}),
    ("Add", [(2, 1, 9), (4, 1)], {}),
    ("Mul", [("n", 4, 9), (1, 1)], {}),
    ("Concat", [(2, 4, 9), (2, 3, 9)], {"axis": -2}),
    ("Flatten", [(2, 4, 9)], {"axis": 2}),
    ("Flatten", [("n", 4, 9)], {}),
    ("Gemm", [(2, 4), (5, 4)], {"transB": 1}),
    ("Gemm", [(4, 2), (4, 5)], {"transA": 1}),
    ("MatMul", [(7, 1, 2, 4), (3, 4, 5)], {}),
    ("Transpose", [(2, 4, 9)], {"perm": [2, 0, 1]}),
    ("Relu", [("n", 4, "h", 9)], {}),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), SHAPES)
def test_our_shapes_are_those_of_onnx(op: str, shapes: list[Any], attributes: Any):
    inputs = [helper.make_tensor_value_info(f"i{n}", 1, shape) for n, shape in enumerate(shapes)]
    entry = helper.make_node(op, [i.name for i in inputs], ["y"], **attributes)
    last = helper.make_node("Relu", ["y"], ["z"])
    output = helper.make_tensor_value_info("z", 1, None)
    graph = helper.make_graph([entry, last], "g", inputs, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (info,) = onnx.shape_inference.infer_shapes(proto).graph.value_info
    wanted = tuple(d.dim_value or d.dim_param or None for d in info.type.tensor_type.shape.dim)
    _, scopes = build(load(proto), "duplicate")
    rule = OPERATORS[op].shape
    assert rule is not None
    assert rule(scopes[0].sites[0]) == wanted


def test_operators_without_a_rule_are_inferred_by_onnx():
    text = """g (float[1,3,8,8] x) => (float y) {
        s = SpaceToDepth <blocksize = 2> (x)
        r = Relu (s)
        c = Conv (r, w)
        y = Relu (c)
    }"""
    graph = graph_of(text, w=np.zeros((2, 12, 1, 1), np.float32))
    assert tensor(graph, "r").shape == (1, 12, 4, 4)
    assert tensor(graph, "c").shape == (1, 2, 4, 4)


def test_what_is_of_unknown_rank_stays():
    text = """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
    g (float[1] x) => (float y) { s = my.Op (x)  y = Relu (s) }"""
    assert tensor(graph_of(text), "s").fixed == "unknown rank"


def test_stated_shapes_come_first():
    proto = model("g (float[n,3,8,8] x) => (float y) { s = Relu (x)  y = Relu (s) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("s", 1, ["n", 3, None, "w"]))
    graph = read(load(proto))
    assert tensor(graph, "s").shape == ("n", 3, 8, "w")
