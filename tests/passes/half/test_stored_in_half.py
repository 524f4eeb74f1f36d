"""A float32 model whose weights are stored in a half type, behind Casts, computes in float32 and converts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold.errors import UsageError
from tests.onnx_graph import look
from tests.onnx_graph.build import Array, Build

PLACES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def behind_a_cast(stored: str) -> object:
    def store(g: Build, name: str, array: Array) -> str:
        if array.ndim < 2:  # biases and parameters of norms stay as they are
            return g.const(array, name, "initializer")
        half = g.const(array, f"{name}_stored", "initializer", dtype=stored)
        return g.op("Cast", half, to=TensorProto.FLOAT)

    return store


def model(stored: str) -> onnx.ModelProto:
    g = Build(opset=22, seed=9, how=behind_a_cast(stored))  # type: ignore[arg-type]
    y = g.op("Relu", g.bn(g.conv(g.input("x", (2, 3, 9, 9)), 6, k=3)))
    g.output(g.conv(y, 4))
    return g.model()


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("precision", PLACES)
def test_it_converts(stored: str, precision: str) -> None:
    original = model(stored)
    half, report = bnfold.fold_onnx(original, precision=precision)
    assert report.precision is not None
    assert report.precision.status == "passed"
    assert not report.kept
    assert {tensor.data_type for tensor in half.graph.initializer} == {PLACES[precision]}
    assert [node.op_type for node in half.graph.node] == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    if precision == "fp16":  # onnxruntime has no convolution for the other one
        feed = look.feeds(original, 0)
        found = look.run(half, feed)
        assert found[0].dtype == np.float32
        assert look.difference(look.run(original, feed), found) < 1e-2


def test_one_that_computes_in_it_is_refused_still() -> None:
    g = Build(seed=9)
    y = g.op("Cast", g.conv(g.input("x", (2, 3, 9, 9)), 6), to=TensorProto.FLOAT16)
    g.output(g.op("Cast", g.op("Relu", y), to=TensorProto.FLOAT))
    with pytest.raises(UsageError, match="computes in float16 already"):
        bnfold.fold_onnx(g.model(), precision="fp16")
