"""Roles of elementwise.py: arithmetic, choices."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.fold.graph import Role
from bnfold.fold.roles import Affine, Product, Same, Sum
from tests.onnx_graph.ops.fake_site import RNG, Runtime, X, f32, ints, read, refused


@pytest.mark.parametrize(
    ("op", "left", "kind", "form"),
    [
        ("Add", True, "shift", "x+c"), ("Add", False, "shift", "x+c"),
        ("Sub", True, "shift", "c-x"), ("Sub", False, "shift", "x-c"),
        ("Mul", True, "scale", "x*c"), ("Mul", False, "scale", "x*c"),
        ("Div", False, "scale", "x/c"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (1,), (6,), (4, 1, 1), (1, 4, 1, 1), (2, 4, 8, 6)])
def test_arithmetic_with_a_constant(
    op: str, left: bool, kind: str, form: str, shape: tuple[int, ...]
) -> None:
    c = np.asarray(f32(*shape) + 5, np.float32)
    inputs = (c, X) if left else (X, c)
    role = read(op, *inputs)
    assert isinstance(role, Affine)
    assert (role.kind, role.form, role.x) == (kind, form, int(left))
    slot, constant = role.constants["value"]
    assert slot == int(not left)
    assert constant.shape == shape
    assert role.scale.ndim == role.shift.ndim == 4
    x = RNG.standard_normal(X)
    value = c.astype(np.float64)
    a, b = (value, x) if left else (x, value)
    wanted = {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a / b}[op]
    np.testing.assert_allclose(role.scale * x + role.shift, wanted, rtol=1e-12)


def test_arithmetic_that_is_refused() -> None:
    assert "by its input" in refused(read("Div", f32(4, 1, 1), X))
    assert "by zero" in refused(read("Div", X, np.zeros((), np.float32)))
    assert "not finite" in refused(read("Mul", X, np.full((1,), np.nan, np.float32)))
    assert "not finite" in refused(read("Add", X, np.full((1,), np.inf, np.float32)))
    assert "int64" in refused(read("Mul", Runtime(2, 3, dtype=TensorProto.INT64), ints(2)))
    assert "rank" in refused(read("Mul", Runtime("?"), f32(4), y=(2, 4)))
    assert "opset 6" in refused(read("Mul", X, f32(4), opset=6, broadcast=1, axis=1))
    assert "elements" in refused(read("Add", (1025, 1024), np.zeros((1025, 1024), np.float32)))
    assert isinstance(read("Add", (1024, 1024), np.zeros((1024, 1024), np.float32)), Affine)


@pytest.mark.parametrize(("op", "role"), [("Add", Sum((1.0, 1.0))), ("Mul", Product((1, 1)))])
def test_a_constant_that_enlarges_is_a_tensor(op: str, role: Role) -> None:
    assert read(op, (4, 1, 6), f32(2, 4, 8, 6)) == role
    assert read(op, (2, 1, 8, 6), f32(4, 1, 1)) == role
    assert read(op, (2, "C", 8, 6), f32(4, 1, 1)) == role  # C may be 1


def test_arithmetic_between_tensors() -> None:
    assert read("Add", X, X) == Sum((1.0, 1.0))
    assert read("Sub", X, (6,)) == Sum((1.0, -1.0))
    assert read("Mul", X, X) == Product((1, 1))
    assert read("Div", X, X) == Product((1, -1))
    assert read("Sum", X, X, (6,)) == Sum((1.0, 1.0, 1.0))
    assert read("Mean", X, X, X, X) == Sum((0.25,) * 4)
    assert read("Neg", X) == Sum((-1.0,))
    assert "rank" in refused(read("Add", X, Runtime("?"), y=X))
    for op in ("Pow", "Mod"):
        assert refused(read(op, X, f32(1))) == f"{op} is not linear"


def test_choices() -> None:
    assert read("Max", X, X, f32(4, 1, 1)) == Same((0, 1, 2))
    assert read("Min", X, f32(1)) == Same((0, 1))
    assert read("Max", X, np.zeros((), np.float32)) == Same((0, 1))
    assert read("Where", Runtime(8, 6, dtype=TensorProto.BOOL), X, f32(1)) == Same((1, 2), sign="any")
    whole = Runtime(2, dtype=TensorProto.INT64)
    assert "int64" in refused(read("Where", Runtime(2, dtype=TensorProto.BOOL), whole, whole))
    assert read("Trilu", (3, 5, 5)).flat == (1, 2)
