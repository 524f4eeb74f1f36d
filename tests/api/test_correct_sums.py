"""`bnfold.correct` where layers end in sums: what skips them has an error of the mean, and no bias."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.onnx_graph.run.part import part
from tests.api.qdq import images, quantize, signal
from tests.onnx_graph.build import Array, Build

X = {"x": images(60, seed=1)}
FRESH = images(300, seed=3)
BLOCKS = 4


def residual(branches: int = 1, twice: bool = False) -> onnx.ModelProto:
    """Blocks of one sum each, the identity and convolutions; twice: the last convolution is read again."""
    g = Build(seed=4, opset=21)
    y = g.op("Relu", g.conv(g.input("x", ("N", 3, 8, 8)), 12, 3, pads=1, name="first"))
    for block in range(BLOCKS):
        total, made = y, y
        for branch in range(branches):
            made = g.conv(y, 12, 3, pads=1, name=f"conv{block}{'ab'[branch]}")
            total = g.op("Add", made, total)
        y = g.op("Relu", total, name=f"relu{block}")
    y = g.op("Flatten", g.op("GlobalAveragePool", g.op("Add", y, made) if twice else y))
    g.output(g.gemm(y, 5, c=(5,), name="last"))
    return g.model()


def sums(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    """The mean of each channel of tensors, on fresh images."""
    found = evaluate(part(load(model), names), {"x": images(200, seed=2)})[0]
    return {name: np.asarray(found[name], np.float64).mean((0, 2, 3)) for name in names}


@pytest.mark.parametrize(("branches", "weights"), [(1, "int8"), (2, "int8"), (2, "int4")])
def test_the_mean_of_each_sum_is_right(branches: int, weights: str) -> None:
    exact = residual(branches)
    model = quantize(exact, weights, "uint8", True)
    result, report = bnfold.correct(model, exact, X, verify=False)
    hosts = [layer.node for layer in report.layers if "of the sum" in layer.note]
    assert hosts == [f"conv{block}{'ab'[branches - 1]}" for block in range(BLOCKS)]
    # onnxruntime's quantizer drops the Relu, and gives the sum its name
    own = [node.output[0] for node in exact.graph.node if node.op_type == "Relu"][1:]
    made = {node.output[0]: node for node in exact.graph.node}
    before = [made[name].input[0] for name in own]
    there = sums(exact, before)
    errors = []
    for quantized in (model, result):
        here = sums(quantized, own)
        pairs = zip(own, before, strict=True)
        errors.append([float(np.abs(here[a] - there[b]).mean() / np.abs(there[b]).mean()) for a, b in pairs])
    assert max(errors[1]) < 0.25 * max(errors[0])
    assert signal(exact, result, FRESH) > signal(exact, model, FRESH) + 0.3


def test_a_layer_that_others_read_keeps_its_own_mean() -> None:
    exact = residual(twice=True)
    _, report = bnfold.correct(quantize(exact, "int8", "uint8", True), exact, X, verify=False)
    hosts = [layer.node for layer in report.layers if "of the sum" in layer.note]
    assert hosts == [f"conv{block}a" for block in range(BLOCKS - 1)]


def test_a_short_way_into_a_sum_waits_for_the_long_one() -> None:
    """The sum's error is known only when all layers before it are corrected."""
    g = Build(seed=4, opset=21)
    x = g.input("x", ("N", 3, 8, 8))
    y = x
    for name in ("one", "two", "three"):
        y = g.op("Relu", g.conv(y, 12, 3, pads=1, name=name))
    y = g.op("Add", g.conv(x, 12, 1, name="short"), y, name="sum")
    g.output(g.op("Relu", g.conv(y, 4, 1, name="last")))
    exact = g.model()
    model = quantize(exact, "int8", "uint8", False)
    _, report = bnfold.correct(model, exact, X, verify=False)
    assert [layer.node for layer in report.layers if "of the sum" in layer.note] == ["short"]
    error = [layer.mean_after for layer in report.layers if layer.node == "short"]
    assert error[0] < 2e-4
