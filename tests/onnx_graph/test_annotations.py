"""Quantization annotations of tensors whose values a change of the model changes are dropped, with a note."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
import pytest

import bnfold
from tests.onnx_graph.build import Build

DROPPED = "quantization annotations dropped"


def annotate(graph: onnx.GraphProto, names: Collection[str]) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "step"))
    for name in names:
        entry = graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="step")


def through_a_relu(g: Build) -> onnx.ModelProto:
    """The scale goes back through the Relu, the shift into the next layer."""
    y = g.op("Relu", g.conv(g.input("x", (2, 3, 7, 7)), 4, name="conv"), name="relu")
    g.output(g.op("Sigmoid", g.conv(g.bn(y, "positive", name="bn"), 5, name="next"), name="end"))
    return g.model()


def left(model: onnx.ModelProto) -> list[str]:
    return [entry.tensor_name for entry in model.graph.quantization_annotation]


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"check": "run"}])
def test_annotations_of_other_values_are_dropped(options: dict[str, object]) -> None:
    model = through_a_relu(Build(seed=3))
    names = ["x", "conv_weight", "conv_out", "relu_out", "bn_out", "next_weight", "next_bias", "end_out"]
    annotate(model.graph, names)
    folded, report = bnfold.fold_onnx(model, **options)  # type: ignore[call-overload]
    assert len(report.folded) == 1
    stale = {"conv_weight", "conv_out", "relu_out", "bn_out", "next_bias"}
    assert left(folded) == [name for name in names if name not in stale]
    assert sum(DROPPED in note for note in report.notes) == 1
    onnx.checker.check_model(folded, full_check=True)


def test_nothing_is_said_where_nothing_is_dropped() -> None:
    model = through_a_relu(Build(seed=3))
    for names in ([], ["x", "end_out"]):
        annotate(model.graph, names)
        folded, report = bnfold.fold_onnx(model)
        assert left(folded) == names
        assert not any(DROPPED in note for note in report.notes)
        del model.graph.initializer[-1]


def equalized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    result, report = bnfold.equalize_onnx(model)
    return result, report.notes


def in_half(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    result, report = bnfold.fold_onnx(model, precision="fp16")
    assert report.precision is not None
    assert report.precision.rescaled
    return result, report.notes


@pytest.mark.parametrize(("change", "last"), [(equalized, 64.0), (in_half, 1e5)])
def test_tensors_that_are_carried_at_other_sizes(
    change: Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[str]]], last: float
) -> None:
    g = Build(seed=4)
    w = g.const(g.normal((4, 3, 3, 3)) * np.array([1, 1, 8, last]).reshape(4, 1, 1, 1), "uneven")
    y = g.op("Relu", g.op("Conv", g.input("x", (2, 3, 7, 7)), w, name="conv"), name="relu")
    v = g.const(g.normal((5, 4, 3, 3)) * np.array([1, 1, 1 / 8, 1 / last]).reshape(1, 4, 1, 1), "back")
    g.output(g.op("Sigmoid", g.op("Conv", y, v, name="next"), name="end"))
    model = g.model()
    annotate(model.graph, ["x", "uneven", "relu_out", "back", "end_out"])
    changed, notes = change(model)
    assert left(changed) == ["x", "end_out"]
    assert sum(DROPPED in note for note in notes) == 1


def test_a_body() -> None:
    g = Build(seed=5)
    x, flag, branches = g.input("x", (2, 3, 7, 7)), g.input("flag", (), "bool"), {}
    for name in ("then", "else"):
        body = g.body()
        y = body.bn(body.conv(x, 4, name=f"{name}_conv"), name=f"{name}_bn")
        body.output(body.op("Relu", y, name=f"{name}_end"))
        branches[f"{name}_branch"] = body.graph(name)
    g.output(g.op("If", flag, **branches))
    model = g.model()
    bodies = [entry.g for entry in model.graph.node[0].attribute]
    for graph in bodies:
        annotate(graph, [name for node in graph.node for name in node.output])
    folded, report = bnfold.fold_onnx(model)
    assert len(report.folded) == 2
    for entry in folded.graph.node[0].attribute:
        assert [a.tensor_name for a in entry.g.quantization_annotation] == [entry.g.output[0].name]
    assert sum(DROPPED in note for note in report.notes) == 1
