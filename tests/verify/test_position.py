"""Models whose one input or output has another name are compared by position."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.errors import UsageError
from bnfold.options import Check
from bnfold.verify.models import verify


def net(x: str, y: str, scale: float = 2.0, end: str = "Relu", inner: str = "h") -> onnx.ModelProto:
    """A Mul, and an operator behind it."""
    nodes = [helper.make_node("Mul", [x, "k"], [inner]), helper.make_node(end, [inner], [y])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in (x, y)]
    stored = [numpy_helper.from_array(np.float32(scale), "k")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("x", "y"), [("x", "z"), ("image", "y"), ("image", "z")])
def test_the_names_may_differ(x: str, y: str) -> None:
    found = verify(net("x", "y"), net(x, y))
    assert found.status == "passed"
    assert [error.name for error in found.outputs] == ["y"]
    told = [f"by position: the input 'x' is {x!r} in the other model"] if x != "x" else []
    told += [f"by position: the output 'y' is {y!r} in the other model"] if y != "y" else []
    assert found.notes == told
    assert verify(net("x", "y"), net(x, y, scale=2.1)).status == "failed"
    feed = {"x": np.ones((2, 8), np.float32)}  # by the names of the model to trust
    assert verify(net("x", "y"), net(x, y), Check(inputs=feed)).status == "passed"


def test_what_saturates_is_looked_behind_all_the_same() -> None:
    large = net("x", "y", 1e4, "Sigmoid"), net("x", "z", 1.3e4, "Sigmoid")
    found = verify(*large)
    assert found.status == "failed"
    assert "h (in front of y)" in [error.name for error in found.outputs]


def test_a_name_that_is_something_else_there_is_not_taken() -> None:
    with pytest.raises(UsageError, match="their outputs are y and z"):
        verify(net("x", "y"), net("x", "z", inner="y"))
