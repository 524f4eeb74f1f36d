"""The command line as the tests run it, models for it, and what it may leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.cli.app import main

__all__ = ["contents", "model", "operators", "outputs", "refused", "run"]


def model(
    channels: int = 6, relu_between: bool = False, bn_name: str = "bn", seed: int = 0
) -> onnx.ModelProto:
    """A conv -> [relu ->] batch norm, on an input x of [N, 3, 8, 8]."""
    rng = np.random.default_rng(seed)
    values = {
        "w": rng.normal(size=(channels, 3, 3, 3)),
        "scale": rng.normal(size=channels),
        "shift": rng.normal(size=channels),
        "mean": rng.normal(size=channels),
        "var": rng.uniform(0.5, 2, size=channels),
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3])]
    last = "c"
    if relu_between:
        nodes.append(helper.make_node("Relu", ["c"], ["r"], name="relu"))
        last = "r"
    nodes.append(
        helper.make_node("BatchNormalization", [last, "scale", "shift", "mean", "var"], ["y"], name=bn_name)
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, 6, 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


def outputs(path: str, x: np.ndarray[Any, Any], name: str = "x") -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    [y] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {name: x})
    return np.asarray(y)


def operators(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, status: int, *arguments: str) -> str:
    """Run what must fail: that status, one line on stderr, every file as it was. Give the line."""
    before = contents(folder)
    assert run(*arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("bnfold: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert contents(folder) == before
    return err
