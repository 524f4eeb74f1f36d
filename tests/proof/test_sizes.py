"""Which sizes say as much as the true ones, and which do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bnfold.certificate import Image
from bnfold.onnx_graph.file.loaded import load
from bnfold.proof.graph import Model
from bnfold.proof.sizes import smaller
from tests.proof.test_decide import graph, node

X = [1, 6, 30, 14]
INDEX: dict[str, Any] = {f"i{value}": np.int64([value]) for value in (0, 1, 2, 4)}
SLICE = node("Slice", "x i0 i4 i1", "y")  # along the channels


def sizes(nodes: list[onnx.NodeProto], stored: dict[str, Any], kind: int = TensorProto.FLOAT) -> Any:
    """What becomes of the shape of x; None where only the true one will do."""
    scope = Model(load(graph(nodes, stored, X, kind))).main
    zero = np.broadcast_to(np.zeros((), np.int64 if kind == TensorProto.INT64 else np.float32), X)
    shrunk = smaller([(scope, scope.nodes)] * 2, ["x"], [Image("y"), Image("x")], lambda _: zero)
    return None if shrunk is None else shrunk("x").shape


@pytest.mark.parametrize(
    ("nodes", "stored", "found"),
    [
        ([node("Relu", "x", "y")], {}, (1, 4, 4, 4)),
        ([node("Mul", "x s", "y")], {"s": np.ones((6, 1, 1), np.float32)}, (1, 6, 4, 4)),
        ([SLICE], INDEX, (1, 6, 4, 4)),
        ([node("Slice", "x i0 i4 i2", "y")], INDEX, (1, 4, 30, 4)),
        ([node("Concat", "x x", "y", axis=-1)], {}, (1, 4, 4, 14)),
        ([node("MaxPool", "x", "y", kernel_shape=[2, 2])], {}, (1, 6, 14, 14)),
        ([node("Softmax", "x", "y", axis=1)], {}, None),
        ([node("Slice", "x i0 i4", "y")], INDEX, None),  # it does not state where
    ],
    ids=lambda value: value[0].op_type if isinstance(value, list) else "",
)
def test_a_few_places_are_enough_where_none_is_another_one(
    nodes: list[onnx.NodeProto], stored: dict[str, Any], found: Any
) -> None:
    assert sizes(nodes, stored) == found


def test_integers_are_taken_as_they_are() -> None:
    assert sizes([SLICE], INDEX, TensorProto.INT64) is None
