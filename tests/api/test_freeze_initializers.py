"""Initializers that are graph inputs, as mxnet and older exporters write them: constants on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli.app import main
from tests.onnx_graph import look
from tests.onnx_graph.build import Build


def listed(ir: int = 6) -> onnx.ModelProto:
    """Conv -> batch norm -> Add of a constant -> Relu, every stored value an input as well."""
    g = Build(seed=5, ir=ir)
    y = g.bn(g.conv(g.input("x", ("N", 3, 9, 9)), 5, k=3))
    g.output(g.op("Relu", g.op("Add", y, g.const(g.normal((5, 1, 1)), "more"))))
    g.expose(*(tensor.name for tensor in g.initializers))
    return g.model()


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"target": "tensorrt"}, {"verify": False}])
def test_they_are_inputs_no_longer_and_fold(options: dict[str, object]) -> None:
    model = listed()
    before, feed = model.SerializeToString(), look.feeds(model, 0)
    kept, report = bnfold.fold_onnx(model)
    assert [entry.outcome for entry in report.entries] == ["kept"]
    assert all("--freeze-initializers" in entry.cure for entry in report.entries)
    assert [value.name for value in kept.graph.input] == [value.name for value in model.graph.input]

    folded, report = bnfold.fold_onnx(model, freeze_initializers=True, **options)
    assert model.SerializeToString() == before
    assert [value.name for value in folded.graph.input] == ["x"]
    assert "Conv" in {node.op_type for node in folded.graph.node}
    assert not {"BatchNormalization", "Add"} & {node.op_type for node in folded.graph.node}
    assert report.notes[0].startswith("inputs no longer: ")
    assert report.verification is None or report.verification.ok
    close = 5e-3 if "precision" in options else 1e-5
    x = {"x": feed["x"]}
    assert look.difference(look.run(model, x), look.run(folded, x)) < close


def test_the_caller_of_a_loop_still_gives_its_state() -> None:
    g = Build(seed=6)
    x, body = g.input("x", (2, 3, 4, 4)), g.body()
    body.input("step", (), "int64")
    body.input("go_on", (), "bool")
    state = body.input("state", (2, 3, 4, 4))
    body.output(body.op("Identity", "go_on"), body.op("Tanh", state))
    y = g.op("Loop", g.const(np.array(3)), g.const(np.array(True)), g.bn(g.conv(x, 3)), body=body.graph("b"))
    g.output(y)
    g.expose(*(tensor.name for tensor in g.initializers))
    folded, _ = bnfold.fold_onnx(g.model(), freeze_initializers=True)
    assert [value.name for value in folded.graph.input] == ["x"]
    loop = next(node for node in folded.graph.node if node.op_type == "Loop")
    assert [value.name for value in loop.attribute[0].g.input] == ["step", "go_on", "state"]


def test_where_nothing_is_stored_or_everything_is_constant_already() -> None:
    old = listed(ir=3)  # before IR 4 every initializer has to be an input, and none can be overridden
    folded, report = bnfold.fold_onnx(old, freeze_initializers=True)
    assert report.notes[0] == "no input has a stored value"
    assert {tensor.name for tensor in folded.graph.initializer} <= {v.name for v in folded.graph.input}
    assert not report.kept


def test_the_command_line_and_equalization(tmp_path: Path) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(listed(), source)
    assert main(["fold", str(source), str(out), "--freeze-initializers"]) == 0
    assert [value.name for value in onnx.load(out).graph.input] == ["x"]
    balanced, report = bnfold.equalize_onnx(source, freeze_initializers=True)
    assert [value.name for value in balanced.graph.input] == ["x"]
    assert report.fold is not None
    assert not report.fold.kept
