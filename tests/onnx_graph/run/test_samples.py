"""Samples in turn, and the part of a model that some of its tensors need."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.run.evaluators import evaluate
from bnfold.onnx_graph.run.inputs import Input
from bnfold.onnx_graph.run.part import part
from bnfold.onnx_graph.run.samples import Samples
from tests.onnx_graph.build import Build

F32 = np.dtype(np.float32)


def taken(
    inputs: dict[str, tuple[Any, ...]], given: dict[str, Any], at_once: int
) -> list[dict[str, list[Any]]]:
    samples = Samples([Input(name, F32, dims) for name, dims in inputs.items()], given)
    feeds = samples.feeds(range(samples.count), at_once)
    return [{name: array.tolist() for name, array in feed.items()} for _, feed in feeds]


def test_an_open_axis_takes_several_at_once() -> None:
    x, y = np.arange(5, dtype=F32), np.arange(5, dtype=F32) + 10
    given = {"x": x[:, None], "y": y}
    feeds = taken({"x": ("N", 1), "y": (None,)}, given, 2)
    assert feeds == [
        {"x": [[0], [1]], "y": [10, 11]},
        {"x": [[2], [3]], "y": [12, 13]},
        {"x": [[4]], "y": [14]},
    ]


def test_a_fixed_axis_takes_its_own_number() -> None:
    feeds = taken({"x": (2,), "table": (3,), "one": ()}, {"x": range(4), "table": [7, 8, 9], "one": 5}, 8)
    whole = {"table": [7, 8, 9], "one": 5}
    assert feeds == [{"x": [0, 1], **whole}, {"x": [2, 3], **whole}]
    assert taken({"x": (2,)}, {"x": [1, 2]}, 8) == [{"x": [1, 2]}]


@pytest.mark.parametrize(
    ("inputs", "given", "said"),
    [
        (
            {"x": (2,)},
            {"x": [1, 2, 3]},
            "'x' takes 2 samples at a time, and 3 were given; give a multiple of 2",
        ),
        ({"x": ("N",), "y": ("M",)}, {"x": [1, 2], "y": [1]}, "different numbers of samples: x 2, y 1"),
        ({"x": ("N", 2)}, {"x": np.zeros((4, 3))}, "axis 1 is 3 instead of 2"),
        ({"x": ("N",)}, {"x": []}, "there are no samples"),
        ({"x": (0,)}, {"x": [1.0]}, "takes 0 samples at a time"),
    ],
)
def test_what_does_not_fit(inputs: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        taken(inputs, given, 1)


def test_a_part_has_what_its_tensors_need() -> None:
    g = Build(seed=1)
    x = g.input("x", (2, 3, 6, 6))
    a = g.conv(x, 4, 3, name="a")
    b = g.op("Relu", a)
    g.output(g.conv(b, 5, 3, name="b"))
    model = g.model()
    whole = load(model)
    small = part(whole, [a])
    assert [node.name for node in small.proto.graph.node] == ["a"]
    assert {tensor.name for tensor in small.proto.graph.initializer} == {"a_weight", "a_bias"}
    assert whole.proto == load(model).proto
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(F32)}
    both, _ = evaluate(part(whole, [a, b]), feed)
    np.testing.assert_array_equal(evaluate(small, feed)[0][a], both[a])
    np.testing.assert_array_equal(np.maximum(both[a], 0), both[b])


def test_a_part_keeps_what_bodies_capture() -> None:
    body = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x, bool c) => (float[N] z) {
            a = Abs (x)
            b = Neg (x)
            y = If (c) <
                then_branch = t () => (float[N] t) { t = Exp (a) },
                else_branch = e () => (float[N] a) {}
            >
            z = Add (y, b)
        }""")
    small = part(load(body), ["y"])
    assert [node.op_type for node in small.proto.graph.node] == ["Abs", "If"]
    outputs, _ = evaluate(small, {"x": np.array([-1.0, 2], F32), "c": np.array(True)})
    np.testing.assert_allclose(outputs["y"], np.exp([1, 2]), rtol=1e-6)
