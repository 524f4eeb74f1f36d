"""What a proof knows of a model whose inputs have one size, without running it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run import evaluators
from bnfold.proof.graph import Model
from bnfold.proof.known import KnownOfFile
from bnfold.proof.operator import Undecided
from tests.proof.test_decide import graph, node

NODES = [
    node("Shape", "x", "s"),
    node("Slice", "s zero two", "front"),
    node("Concat", "front rest", "sizes", axis=0),
    node("Reshape", "x sizes", "flat"),
    node("Reshape", "two one", "axes"),
    node("ReduceMean", "flat axes", "mean", keepdims=0),
    node("SplitToSequence", "x parts", "list", axis=1),
    node("SequenceAt", "list last", "part"),
    node("MatMul", "mean square", "product"),
    node("Neg", "product", "y"),
    node("Neg", "part", "z"),
]
STORED: dict[str, Any] = {
    "zero": np.int64([0]),
    "one": np.int64([1]),
    "two": np.int64([2]),
    "rest": np.int64([-1]),
    "parts": np.int64([2, 1]),
    "last": np.int64(-1),
    "square": np.ones((3, 3), np.float32),
}


def test_shapes_and_what_is_made_of_them_need_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "evaluate", lambda *_: pytest.fail("it was run"))
    known = KnownOfFile(Model(load(graph(NODES, STORED, opset=18))), None, 0)
    assert known.value("sizes").tolist() == [2, 3, -1]
    assert known.value("flat").shape == (2, 3, 64)
    assert known.value("mean").shape == (2, 3)  # along axes that are computed of constants
    assert known.value("part").shape == (2, 1, 8, 8)


def test_integers_that_are_made_of_data_are_not_known() -> None:
    nodes = [node("Cast", "x", "whole", to=7), node("Cast", "whole", "y", to=1)]
    known = KnownOfFile(Model(load(graph(nodes, {}))), None, 0)
    with pytest.raises(Undecided, match="made of data"):
        known.value("whole")


@pytest.mark.parametrize(
    "stated", [{"value_float": 0.1}, {"value_floats": [0.1, 2.0]}, {"value_int": 7}, {"value_ints": [7, -8]}]
)
def test_a_constant_that_states_numbers_is_what_they_are(stated: dict[str, Any]) -> None:
    nodes = [node("Constant", "", "c", **stated), node("Identity", "x", "y")]
    value = Model(load(graph(nodes, {}))).main.constant("c")
    assert value is not None
    want = np.array(*stated.values())
    assert value.dtype == (np.int64 if want.dtype.kind == "i" else np.float32)
    assert value.shape == want.shape
    assert np.array_equal(value, want.astype(value.dtype))
