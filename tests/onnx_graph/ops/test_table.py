"""The table of operators itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.fold.roles import Closed, Map
from bnfold.onnx_graph.ops.operator import Operator
from bnfold.onnx_graph.ops.table import OPERATORS, record_of, role_of
from tests.onnx_graph.ops.fake_site import FakeSite, Runtime, X, f32, ints, read, refused


def test_closed_operators_say_why() -> None:
    assert refused(read("LRN", X, size=3)) == "divides by its neighbouring channels"
    assert refused(read("QuantizeLinear", X, f32(1), np.zeros(1, np.int8))) == "rounds to integers"
    assert refused(read("ArgMax", X)) == "ArgMax is not linear"
    assert refused(read("Conv", X, f32(8, 4, 3, 3), domain="somebody.else")) == "Conv is not linear"
    assert isinstance(read("Relu", X, domain="ai.onnx", y=X), Map)
    assert "rank" in refused(read("Relu", Runtime("?"), y=X))


def test_an_operator_is_added_by_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(read("Ramp", X, domain="my.own")) == "Ramp is not linear"
    record = Operator(role=lambda site: Map("positive", f"{site.name} bends at zero"))
    monkeypatch.setitem(OPERATORS, "my.own.Ramp", record)
    assert read("Ramp", X, domain="my.own", y=X) == Map("positive", "node bends at zero")


def test_unseen_slots() -> None:
    assert [record_of(op).unseen for op in ("Shape", "CastLike", "EyeLike", "Relu")] == [(0,), (1,), (0,), ()]


def test_constants_beside_tensors_become_tensors() -> None:
    """What the solver may ask for a change must be a tensor to it; a parameter must not be."""
    table = ((4, 1, 1), (1, 4, 8, 6))
    for op, inputs, slots in [
        ("Max", (X, f32(*table[0])), {0, 1}),
        ("Concat", (X, f32(2, 1, 8, 6)), {0, 1}),
        ("Add", (table[0], f32(*table[1])), {0, 1}),
        ("Add", (X, f32(*table[0])), {0}),
        ("Conv", (X, f32(8, 4, 1, 1), f32(8)), {0}),
        ("PRelu", (X, f32(4, 1, 1)), {0}),
        ("Gather", (f32(9, 4), ints(1, 2)), {0}),
    ]:
        options: Any = {"axis": 1} if op == "Concat" else {}
        site = FakeSite(op, *inputs, **options)
        assert not isinstance(role_of(site), Closed)  # type: ignore[arg-type]
        assert site.operands == slots, op


def test_an_attribute_that_comes_from_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSite, "refers", True)
    assert "its function" in refused(read("LeakyRelu", X))
