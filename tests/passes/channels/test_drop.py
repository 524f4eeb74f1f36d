"""Dead channels leave where they can, and stay with a reason; what becomes of the layers' parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.onnx_graph.file.loaded import load
from bnfold.passes.channels.drop import drop_dead_channels
from bnfold.report.channels import Dropped
from tests.passes.channels.drop_cases import LEAVE, STAY
from tests.passes.channels.dropping import Net, drop, lost


def built(make: Callable[[Net], str], **how: Any) -> tuple[onnx.ModelProto, Dropped]:
    g = Net(**how)
    g.output(make(g))
    return drop(g)


@pytest.mark.parametrize("how", ["initializer", "constant"])
@pytest.mark.parametrize("name", LEAVE)
def test_leaves(name: str, how: str) -> None:
    make, layers = LEAVE[name]
    _, dropped = built(make, how=how)
    assert lost(dropped) == layers
    assert dropped.channels == sum(count for count, _ in layers.values())
    assert dropped.parameters > 0


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    make, reason = STAY[name]
    _, dropped = built(make)
    assert lost(dropped) == {}
    assert (
        (reason in " ".join(f"{kept.blocked_by} {kept.reason}" for kept in dropped.kept))
        if reason
        else not dropped.kept
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["a filter of zeros, before an unpadded conv", "through a Concat"])
def test_other_types(name: str, dtype: str) -> None:
    make, layers = LEAVE[name]
    result, dropped = built(make, dtype=dtype, opset=22)
    assert lost(dropped) == layers
    assert {t.data_type for t in result.graph.initializer} == {
        {"float16": 10, "bfloat16": 16, "float64": 11}[dtype]
    }


def test_the_constant_is_in_the_bias() -> None:
    g = Net()
    g.output(g.layer(g.layer(g.image(), dead={0: 0.5, 2: -2.0}, name="a"), 5, 3, name="b"))
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in g.initializers}
    result, dropped = drop(g)
    new = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    taps = old["b_weight"].sum((2, 3))
    np.testing.assert_allclose(new["b_bias"], old["b_bias"] + taps @ [0.5, 0, -2, 0], rtol=1e-6)
    np.testing.assert_array_equal(new["b_weight"], old["b_weight"][:, [1, 3]].astype(np.float32))
    np.testing.assert_array_equal(new["a_bias"], old["a_bias"][[1, 3]].astype(np.float32))
    first, second = dropped.layers
    assert (first.outputs, first.inputs, first.parameters) == ((0, 2), (), 2 * 3 + 2)
    assert (second.outputs, second.inputs, second.parameters) == ((), (0, 2), 5 * 2 * 9)
    assert [tuple(moved) for moved in second.moved] == [(0, 0.5), (2, -2.0)]
    assert (first.multiplications, second.multiplications) == (2 * 3 * 36, 5 * 2 * 9 * 16)


def test_a_bias_that_would_overflow_stays_without_the_constant() -> None:
    g = Net(dtype="float16")
    w = np.full((2, 2, 1, 1), 0.5)
    w[0] = 60000.0
    y = g.op("Conv", g.layer(g.image(), 2, dead={1: 1e-3}, name="a"), g.const(w, "w"), name="ok")
    z = g.op("Conv", g.layer(g.image(), 2, dead={1: 4.0}, name="c"), g.const(w, "v"), name="large")
    g.inputs.pop()
    g.output(g.op("Tanh", y), g.op("Tanh", z))
    model = g.model()
    loaded = load(model)
    dropped = drop_dead_channels(loaded)
    assert lost(dropped) == {"a": (1, 0), "ok": (0, 1)}
    [kept] = dropped.kept
    assert (kept.name, kept.channels, kept.blocked_by) == ("c", (1,), "large")
    assert kept.reason == "its bias would overflow float16"


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 21])
def test_attributes_and_inputs_of_all_opsets(opset: int) -> None:
    """Sizes and bounds moved from attributes to inputs over the years."""
    g = Net(opset)
    y = g.layer(g.image(), 6, dead={1: 0.5, 4: -1.0}, name="a")
    if opset < 10:
        y = g.op("Slice", y, axes=[1, 2], starts=[1, 0], ends=[6, 9])
    else:
        y = g.op("Slice", y, g.integers(1, 0), g.integers(6, 9), g.integers(1, 2))
    if opset < 13:
        first, second = g.ops("Split", y, count=2, axis=1, split=[2, 3])
    else:
        first, second = g.ops("Split", y, g.integers(2, 3), count=2, axis=1)
    g.output(g.layer(first, 2, name="b"), g.layer(second, 2, name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (3, 0), "b": (0, 1), "c": (0, 1)}


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("c", [None, (), (5,), (1, 5), (2, 5), (2, 1)])
def test_gemm(c: tuple[int, ...] | None, transposed: int) -> None:
    g = Net()
    y = g.op("Flatten", g.op("GlobalAveragePool", g.layer(g.image(), dead={1: 0.5}, name="a")))
    y = g.gemm(y, 5, c, alpha=0.5, beta=2.0, transB=transposed, name="b")
    g.output(g.gemm(g.op("Clip", y, g.const(0.25), g.const(0.25)), 3, (3,), name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (1, 0), "b": (4, 1), "c": (0, 4)}


def test_gemm_that_does_not_look_at_c() -> None:
    g = Net()
    y = g.op("Flatten", g.op("GlobalAveragePool", g.layer(g.image(), dead={1: 0.0}, name="a")))
    y = g.op("Relu", g.gemm(y, 5, (5,), beta=0.0, name="b"))
    w = g.normal((5, 3))
    w[2] = 0
    g.output(g.op("Gemm", y, g.const(w, "w"), name="c"))
    _, dropped = drop(g)
    assert lost(dropped) == {"a": (1, 0), "b": (1, 1), "c": (0, 1)}
