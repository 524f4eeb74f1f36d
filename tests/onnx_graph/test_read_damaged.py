"""Damaged models are refused by name, or closed where they are damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.fold.roles import Closed, Linear, Sum
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import read
from tests.onnx_graph.reading import CONV, W, graph_of, model, node, norm


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[1] x) => (float y) { y = Add (x, nowhere) }", ["Add:y", "nowhere"]),
        ("g (float[1] x) => (float y) { a = Relu (x) }", ["output 'y'"]),
        ("g (float[1] x) => (float a) { a = Relu (x)  a = Exp (x) }", ["'a'", "twice", "Exp"]),
        ("g (float[1] x) => (float b) { a = Add (x, b)  b = Relu (a) }", ["circle"]),
        ("g (float[1] x) => (float x) { }", ["no nodes"]),
        (
            """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
            g (float[1] x) => (float y) { y = my.A (x) }
            <domain: "my", opset_import: ["" : 18, "my" : 1]> A (x) => (y) { y = my.B (x) }
            <domain: "my", opset_import: ["" : 18, "my" : 1]> B (x) => (y) { y = my.A (x) }""",
            ["A -> B -> A"],
        ),
        (
            """<ir_version: 10, opset_import: ["my" : 1]>
            g (float[1] x) => (float y) { y = Relu (x) }""",
            ["the model uses Relu", "opset_import"],
        ),
        (
            """<ir_version: 10, opset_import: ["" : 18, "ai.onnx" : 0]>
            g (float[1] x) => (float y) { y = Relu (x) }""",
            ["the model uses Relu", "opset_import"],
        ),
        (
            """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
            g (float[1] x) => (float y) { y = my.A (x) }
            <domain: "my", opset_import: ["my" : 1]> A (x) => (y) { y = Relu (x) }""",
            ["the function 'A' uses Relu", "opset_import"],
        ),
    ],
)
def test_damaged_models(text: str, words: list[str]):
    with pytest.raises(ModelError) as error:
        graph_of(text)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": [1, -1, 1, 1]}, ["BatchNormalization:n", "channel 1"]),
        ({"v": [1, 1, np.nan, 1]}, ["BatchNormalization:n", "channel 2"]),
        ({"v": [np.inf, 1, 1, 1]}, ["BatchNormalization:n", "channel 0"]),
        ({"m": [0, 0, 0]}, ["BatchNormalization:n", "[3]"]),
        ({name: np.ones(5) for name in "gbmv"}, ["BatchNormalization:n", "5", "4"]),
        ({"w": np.ones((4, 2, 3, 3))}, ["Conv:c", "2", "3"]),
    ],
)
def test_values_that_cannot_be(change: dict[str, Any], words: list[str]):
    values = {"w": W, **norm()} | {name: np.asarray(value, np.float32) for name, value in change.items()}
    with pytest.raises(ModelError) as error:
        graph_of(CONV.replace("float[2,4,7,9] y", "float y"), **values)
    assert all(word in str(error.value) for word in words), error.value


def test_attributes_of_the_wrong_length_close_a_node():
    proto = model("g (float[1,3,9,9] x) => (float[1,4,7,7] y) { y = Conv <strides = [1]> (x, w) }", w=W)
    assert isinstance(node(read(load(proto)), "Conv").role, (Closed, Linear))


def test_inputs_that_are_left_out_at_the_end_are_none():
    """An Add with a third one, without a name, adds two."""
    proto = model("g (float[2,4,7,7] x) => (float[2,4,7,7] y) { a = Relu (x)  y = Add (x, a) }")
    proto.graph.node[1].input.append("")
    add = node(read(load(proto)), "Add")
    assert len(add.inputs) == 2
    assert isinstance(add.role, Sum)
