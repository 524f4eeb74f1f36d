"""Integers behind a scale: rescaled exactly, for all readers or for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from bnfold.fold.edits import Rescale
from bnfold.fold.graph import Node
from bnfold.onnx_graph.requantize import rescaled
from tests.onnx_graph.test_read import RNG
from tests.onnx_graph.test_write import arrays, edited, image, opened, ops


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("zero", [None, 0, 3])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rescaled_integers_are_exact(kind: str, zero: int | None, axis: int | None):
    limits = np.iinfo(kind)
    stored = RNG.integers(limits.min, limits.max + 1, (4, 3)).astype(kind)
    stored[1, 1] = limits.min
    size = () if axis is None else (stored.shape[axis],)
    scale = RNG.uniform(0.5, 2, size).astype(np.float32)
    points = None if zero is None else np.full(size, zero, kind)
    along = 0 if axis is None else axis
    factor = np.array([2.0, -0.5, -4.0, 1.0])[: stored.shape[along]].reshape(
        (-1, 1) if along == 0 else (1, -1)
    )
    new, new_scale, new_points, at = rescaled(stored, scale, points, along, factor)
    assert at == along
    assert new is not None
    assert (new.dtype, new_scale.dtype) == (stored.dtype, np.float32)

    def value(integers: Any, scale: Any, points: Any) -> Any:
        shape = (-1, 1) if along == 0 else (1, -1)
        return (integers.astype(float) - (0 if points is None else points.astype(float).reshape(shape))) * (
            scale.astype(float).reshape(shape)
        )

    np.testing.assert_array_equal(value(new, new_scale, new_points), value(stored, scale, points) * factor)


def test_positive_factors_keep_the_integers():
    stored = RNG.integers(-128, 128, (4, 3)).astype(np.int8)
    new, scale, zero, _ = rescaled(stored, np.float32(0.5), None, 0, np.full((1, 1), 3.0))
    assert (new, scale, scale.shape, zero) == (None, 1.5, (), None)


DQ = """g (float[1,3,9,9] x) => (float[1,4,7,7] y, float[1,4,7,7] z) {
    w = DequantizeLinear <axis = 0> (i, s)
    c = Conv (x, w)
    y = Relu (c)
    d = Conv (x, w)
    z = Relu (d)
}"""
INTEGERS = RNG.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)


def rescale(node: Node, factor: Any) -> Rescale:
    constant = node.source.constant(1)
    return Rescale(node, 1, np.asarray(factor, float).reshape(-1, 1, 1, 1), constant)


def test_one_scale_for_all_readers():
    scale = RNG.uniform(1, 2, 4).astype(np.float32)
    loaded, nodes, graph = opened(DQ, i=INTEGERS, s=scale)
    factor = [2, -1, 1, 0.5]
    result = edited(loaded, graph, rescale(nodes["c"], factor), rescale(nodes["d"], factor))
    assert ops(result).count("DequantizeLinear") == 1
    np.testing.assert_array_equal(arrays(result)["s"], scale * np.abs(np.float32(factor)))
    np.testing.assert_array_equal(
        arrays(result)["i"], INTEGERS * np.sign(factor).astype(np.int8).reshape(4, 1, 1, 1)
    )


def test_one_scale_for_each_reader():
    scale = RNG.uniform(1, 2, 4).astype(np.float32)
    loaded, nodes, graph = opened(DQ, i=INTEGERS, s=scale)
    result = edited(loaded, graph, rescale(nodes["c"], [2, 1, 1, 0.5]), rescale(nodes["d"], [-1, 3, 1, 1]))
    found = {n.output[0]: n for n in result.graph.node}
    assert ops(result).count("DequantizeLinear") == 2
    for conv, factor in (("c", [2, 1, 1, 0.5]), ("d", [-1, 3, 1, 1])):
        source = found[found[conv].input[1]]
        value = arrays(result)[source.input[0]] * arrays(result)[source.input[1]].reshape(4, 1, 1, 1)
        wanted = INTEGERS * (scale * np.float32(factor)).reshape(4, 1, 1, 1)
        np.testing.assert_array_equal(value, wanted)
    onnx.checker.check_model(result, full_check=True)


def test_the_scale_behind_a_transpose():
    text = """g (float[1,4] x) => (float[1,5] y, float[1,5] z) {
        w = DequantizeLinear <axis = 0> (i, s)
        t = Transpose (w)
        y = MatMul (x, t)
        z = MatMul (x, t)
    }"""
    integers, scale = RNG.integers(-9, 9, (5, 4)).astype(np.int8), RNG.uniform(1, 2, 5).astype(np.float32)
    loaded, nodes, graph = opened(text, i=integers, s=scale, opset=19)
    factors = {"y": np.array([[1.0, 2, 4, 8, 0.5]]), "z": np.array([[1.0, -2, 1, 1, 1]])}
    edits = [Rescale(nodes[n], 1, f, nodes[n].source.constant(1)) for n, f in factors.items()]
    result = edited(loaded, graph, *edits)
    x = image(1, 4)
    outputs = ReferenceEvaluator(result).run(None, {"x": x})
    for output, factor in zip(outputs, factors.values(), strict=True):
        np.testing.assert_allclose(output, (x @ (integers * scale[:, None]).T) * factor, rtol=1e-5)


def test_one_number_becomes_one_for_each_channel():
    loaded, nodes, graph = opened(DQ.replace("<axis = 0> ", ""), i=INTEGERS, s=np.float32(0.5), opset=19)
    factor = [2, -1, 1, 0.5]
    result = edited(loaded, graph, rescale(nodes["c"], factor), rescale(nodes["d"], factor))
    dequantize = result.graph.node[0]
    assert [(a.name, a.i) for a in dequantize.attribute] == [("axis", 0)]
    (value, _) = ReferenceEvaluator(result).run(None, {"x": np.ones((1, 3, 9, 9), np.float32)})
    total = (INTEGERS * (np.float32(0.5) * np.float32(factor)).reshape(4, 1, 1, 1)).sum((1, 2, 3))
    np.testing.assert_allclose(value[0, :, 0, 0], np.maximum(total, 0), rtol=1e-5)
