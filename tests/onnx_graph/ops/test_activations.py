"""Roles of activations.py: elementwise functions of one tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.fold.roles import Clamp, Gate, Leaky, Map
from tests.onnx_graph.ops.fake_site import Runtime, X, f32, read, refused


def test_activations() -> None:
    assert read("Relu", X) == Map("positive", "Relu does not pass a shift")
    assert read("Abs", X) == Map("absolute", "Abs does not pass a shift")
    assert read("HardSigmoid", X).alpha == pytest.approx(0.2)
    assert read("HardSigmoid", X, alpha=0.25, beta=0.75) == Gate(0.25, 0.75)
    assert read("Celu", X, alpha=2.0) == Gate(2.0, None)
    for op in (
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "HardSwish",
        "Softplus",
        "Mish",
        "Exp",
        "Sqrt",
        "Gelu",
        "ThresholdedRelu",
    ):
        assert refused(read(op, X)) == f"{op} is not linear"
    assert "by its input" in refused(read("Reciprocal", X))
    assert "int32" in refused(read("Abs", Runtime(2, 3, dtype=TensorProto.INT32)))


def test_leaky() -> None:
    role = read("LeakyRelu", X, alpha=0.5)
    assert isinstance(role, Leaky)
    assert (role.slope.shape, role.slope.item(), role.constant, role.key) == (
        (1, 1, 1, 1),
        0.5,
        None,
        "alpha",
    )
    assert read("LeakyRelu", X).slope.item() == pytest.approx(0.01)
    slope = f32(4, 1, 1)
    role = read("PRelu", X, slope)
    assert isinstance(role, Leaky)
    assert role.key == 1
    assert role.constant is not None
    np.testing.assert_array_equal(role.slope, slope[None].astype(np.float64))
    assert read("PRelu", X, (4, 1, 1)) == Map("positive", "PRelu does not pass a shift")
    assert "opset 6" in refused(read("PRelu", X, f32(4), opset=6))
    assert isinstance(read("PRelu", X, f32(1), opset=6), Leaky)


def test_clip() -> None:
    def bounds(role: Any) -> tuple[Any, ...]:
        assert isinstance(role, Clamp), role
        return role.low, role.high, role.keys

    zero, six = np.zeros((), np.float32), np.asarray(6, np.float32)
    assert bounds(read("Clip", X, zero, six)) == (0, 6, (1, 2))
    assert bounds(read("Clip", X, None, six)) == (-math.inf, 6, (1, 2))
    assert bounds(read("Clip", X, zero)) == (0, math.inf, (1, 2))
    assert bounds(read("Clip", X, min=0.0, max=6.0, opset=10)) == (0, 6, ("min", "max"))
    assert bounds(read("Clip", X, min=0.0, max=float(np.finfo(np.float32).max), opset=6)) == (
        0,
        math.inf,
        ("min", "max"),
    )
    assert "not constant" in refused(read("Clip", X, (), six))
    assert "crossed" in refused(read("Clip", X, six, zero))
