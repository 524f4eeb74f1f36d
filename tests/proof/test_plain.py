"""Operators that numpy computes give what onnx's own evaluator gives."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from bnfold.proof.plain import plain
from tests.proof.test_decide import node

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("Shape", {}, [X]),
    ("Shape", {"start": 1}, [X]),
    ("Shape", {"start": -2, "end": -1}, [X]),
    ("Shape", {"start": 2, "end": 9}, [X]),
    ("Expand", {}, [np.float32(3), np.int64([2, 2])]),
    ("Expand", {}, [X[:, :1], np.int64([3, 1])]),
    ("Expand", {}, [X[0], np.int64([2, 1, 1, 1])]),
    ("Reshape", {}, [X, np.int64([0, -1])]),
    ("Reshape", {}, [X, np.int64([4, 0, 2])]),
    ("Reshape", {}, [np.float32([5]), np.int64([])]),
    ("Concat", {"axis": 0}, [X, X]),
    ("Concat", {"axis": -1}, [X, X[..., :1]]),
    ("Gather", {}, [X, np.int64([[1, 0], [0, -1]])]),
    ("Gather", {"axis": -1}, [X, np.int64(2)]),
    ("Gather", {}, [np.int64([5, 7]), np.int64(1)]),
    ("CastLike", {}, [X, np.float32(0)]),
    ("Identity", {}, [X]),
    ("Reshape", {"allowzero": 1}, [X, np.int64([6, -1])]),
    ("GatherND", {}, [X, np.int64([[1, 0], [0, -1]])]),
    ("GatherND", {}, [X, np.int64([[[1], [0]]])]),
    ("GatherND", {}, [X[0, 0], np.int64([2])]),
    ("Slice", {}, [X, np.int64([1, 0]), np.int64([9, -1]), np.int64([-1, 1])]),
    ("Slice", {}, [X, np.int64([-1]), np.int64([-99]), np.int64([2]), np.int64([-2])]),
    ("DequantizeLinear", {}, [np.int8([[3, -4]]), np.float32(0.5)]),
    ("DequantizeLinear", {}, [np.uint8([[3, 4]]), np.float32([2, 0.5]), np.uint8([7, 8])]),
    ("DequantizeLinear", {"axis": 0}, [np.int8([[3], [4]]), np.float32([2, 0.5]), np.int8([7, 8])]),
    ("Transpose", {}, [X]),
    ("Transpose", {"perm": [1, 2, 0]}, [X]),
    ("Unsqueeze", {}, [X, np.int64([0, -1])]),
    ("Add", {}, [X, X[:, :1] - 1]),
    ("Sub", {}, [X[0], X]),
    ("Mul", {}, [X + 1, np.float32([np.inf])]),
    ("MatMul", {}, [X, X[0].T]),
    ("MatMul", {}, [X, X[0, 0]]),
    ("Gemm", {"alpha": 0.5, "transB": 1}, [X[0], X[1]]),
    ("Gemm", {"beta": 2.0, "transA": 1}, [X[0], X[1], X[0, 0]]),
    ("Max", {}, [X, np.float32(7), -X]),
    ("Max", {}, [np.int64([1, 2]), np.int64(0)]),
    ("Cast", {"to": 1}, [np.int64([1 << 24, -3])]),
    ("Cast", {"to": 7}, [np.bool_([True, False])]),
    ("ReduceMean", {}, [X, np.int64([0, -1])]),
    ("ReduceMean", {"keepdims": 0}, [X, np.int64([1])]),
    ("GlobalAveragePool", {}, [X[None]]),
    ("Relu", {}, [np.float32([-1, -0.0, 2, np.nan, np.inf])]),
]


@pytest.mark.parametrize(("op", "attributes", "values"), CASES)
def test_it_is_what_onnx_makes_of_it(op: str, attributes: dict[str, Any], values: list[Any]) -> None:
    names = [f"x{i}" for i in range(len(values))]
    evaluator = ReferenceEvaluator(node(op, " ".join(names), "y", **attributes))
    (want,) = evaluator.run(None, dict(zip(names, values, strict=True)))
    found = plain(op, attributes, values)
    assert found is not None
    assert found.dtype == want.dtype
    assert found.shape == want.shape
    assert np.array_equal(found, want, equal_nan=True)


@pytest.mark.parametrize(
    ("op", "attributes", "values"),
    [
        ("Reshape", {"allowzero": 1}, [X, np.int64([0, 3])]),
        ("Reshape", {}, [X, np.int64([5, 5])]),
        ("Reshape", {}, [X]),  # of opset 4, whose sizes are an attribute
        ("Gather", {}, [X, np.int64([2])]),  # out of range
        ("Concat", {}, [X, X]),
        ("Concat", {"axis": 0}, [X, X.astype(np.float64)]),
        ("CastLike", {}, [X, np.int64(0)]),
        ("Identity", {}, [[X, X]]),
        ("Identity", {}, [None]),
        ("Softmax", {}, [X]),
        ("GatherND", {"batch_dims": 1}, [X, np.int64([[0], [1]])]),
        ("GatherND", {}, [X, np.int64([[2]])]),
        ("Slice", {}, [X, np.int64([0]), np.int64([1])]),  # of axes that are not told
        ("Unsqueeze", {"axes": [0]}, [X]),  # of opset 12
        ("Add", {"broadcast": 1}, [X, X[0]]),  # of opset 6
        ("Add", {}, [np.int64(1), np.int64(2)]),
        ("MatMul", {}, [X, X]),
        ("Gemm", {}, [np.int64([[1]]), np.int64([[1]])]),
        ("Max", {}, [X, np.int64(1)]),
        ("Cast", {"to": 7}, [X]),
        ("ReduceMean", {}, [X]),
        ("DequantizeLinear", {}, [X.astype(ml_dtypes.float8_e4m3fn), np.float32(1)]),
    ],
)
def test_all_else_is_left_to_it(op: str, attributes: dict[str, Any], values: list[Any]) -> None:
    assert plain(op, attributes, values) is None
