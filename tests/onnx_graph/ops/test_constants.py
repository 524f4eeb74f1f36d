"""Reductions and products of constants; tests/onnx_graph/test_read_constants.py has the other operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.read import analysed

X = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def computed(op: str, *inputs: Any, opset: int = 18, **attributes: Any) -> tuple[Any, Any]:
    """What is known of the output, and what onnx's evaluator makes of it."""
    names = [f"i{slot}" for slot in range(len(inputs))]
    stored = [
        numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, inputs, strict=True)
    ]
    node = helper.make_node(op, names, ["y"], **attributes)
    out = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(stored_type(inputs[0])), None)
    graph = helper.make_graph([node], "g", [], [out], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found = constant_of(analysed(load(proto)).scopes[0].values["y"])
    with np.errstate(all="ignore"):
        return None if found is None else found.load(), ReferenceEvaluator(proto).run(None, {})[0]


def stored_type(value: Any) -> np.dtype[Any]:
    return np.asarray(value).dtype


@pytest.mark.parametrize(
    ("opset", "inputs", "attributes"),
    [
        (18, (np.array([1, 3]),), {"axis": 1}),
        (18, (), {"axis": -1, "num_outputs": 2}),
        (13, (np.array([2, 1]),), {"axis": 0}),
        (11, (), {"axis": 2, "split": [4, 1]}),
    ],
)
def test_the_parts_of_a_split(opset: int, inputs: tuple[Any, ...], attributes: dict[str, Any]) -> None:
    stored = [numpy_helper.from_array(value, f"i{slot}") for slot, value in enumerate((X, *inputs))]
    node = helper.make_node("Split", [tensor.name for tensor in stored], ["a", "b"], **attributes)
    outs = [helper.make_tensor_value_info(name, 1, None) for name in "ab"]
    graph = helper.make_graph([node], "g", [], outs, stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    values = analysed(load(proto)).scopes[0].values
    for name, exact in zip("ab", ReferenceEvaluator(proto).run(None, {}), strict=True):
        found = constant_of(values[name])
        assert found is not None
        np.testing.assert_array_equal(found.load(), exact)
        assert found.shape == exact.shape


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str) -> None:
    x = np.abs(X) if name == "LogSum" else X
    for axes in ([0], [1, -1], [-2], [0, 1, 2]):
        for keep in (0, 1):
            ours, exact = computed(f"Reduce{name}", x, np.array(axes), keepdims=keep)
            assert ours.dtype == np.float32 and ours.shape == exact.shape
            np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)
    for ours, exact in (
        computed(f"Reduce{name}", x),
        computed(f"Reduce{name}", x.astype(np.float64), np.array([1])),
        computed(f"Reduce{name}", x, opset=11, axes=[2, 0]),
    ):
        assert ours.dtype == exact.dtype and ours.shape == exact.shape
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "exact"), [("L1", 9), ("Max", 4), ("Min", 2), ("Prod", 24), ("Sum", 9), ("SumSquare", 29)]
)
def test_reductions_of_integers(name: str, exact: int) -> None:
    ours, _ = computed(f"Reduce{name}", np.array([2, 3, 4]), np.array([0]))
    assert (ours.dtype, ours.tolist()) == (np.int64, [exact])


def test_means_of_integers_are_left() -> None:
    assert computed("ReduceMean", np.array([2, 3, 4]), np.array([0]))[0] is None


def test_a_sum_in_float16_is_rounded_once() -> None:
    ours, _ = computed("ReduceSum", np.full(4096, 0.1, np.float16), np.array([0]))
    assert ours.dtype == np.float16 and ours[0] == np.float16(4096 * float(np.float16(0.1)))


@pytest.mark.parametrize("name", ["Sum", "SumSquare", "Max"])
def test_a_reduction_over_no_axis_is_left(name: str) -> None:
    """Whether it squares then is a matter of the opset."""
    assert computed(f"Reduce{name}", X, np.zeros(0, np.int64), noop_with_empty_axes=1)[0] is None


def test_products() -> None:
    a, b, v = X[0], X[1].T, X[0, 0]
    for pair in ((a, b), (a, v), (v, b), (v, v), (a.astype(np.float64), b.astype(np.float64))):
        ours, exact = computed("MatMul", *pair)
        assert ours.dtype == exact.dtype and ours.shape == exact.shape
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)
    assert computed("MatMul", X, b)[0] is None  # more than matrices
    assert computed("MatMul", np.ones((2, 2), np.int32), np.ones((2, 2), np.int32))[0] is None
