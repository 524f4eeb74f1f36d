"""Batch norms in training mode as files before opset 14 have them: with five outputs, or without is_test."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold import fold_onnx
from tests.onnx_graph.look import difference, run


def model(opset: int, outputs: tuple[str, ...], read: str = "") -> onnx.ModelProto:
    """x -> batch norm "bn" -> Relu; `read`: an output of it that the graph gives as well."""
    rng = np.random.default_rng(opset)
    stored = [numpy_helper.from_array(rng.uniform(0.5, 2, 4).astype(np.float32), name) for name in "gbmv"]
    data = [helper.make_tensor_value_info(name, 1, [3, 4, 5, 2]) for name in ("x", "y")]
    more = [helper.make_tensor_value_info(read, 1, [4])] if read else []
    early = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    nodes = [
        helper.make_node("BatchNormalization", ["x", *"gbmv"], ["n", *outputs], "bn", **early),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    graph = helper.make_graph(nodes, "g", data[:1], [*data[1:], *more], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


def expected(x: np.ndarray, proto: onnx.ModelProto) -> np.ndarray:
    """The Relu of the norm by the batch's own statistics, in float64."""
    gamma, beta = (
        numpy_helper.to_array(t).astype(np.float64).reshape(4, 1, 1) for t in proto.graph.initializer[:2]
    )
    x = x.astype(np.float64)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * gamma + beta, 0)


@pytest.mark.parametrize("options", [{"lower_batch_statistics": True}, {"target": "tensorrt"}])
@pytest.mark.parametrize("opset", [7, 9, 13])
def test_they_are_written_out(opset: int, options: dict[str, object]) -> None:
    made = model(opset, ("om", "ov", "sm", "sv"))
    result, report = fold_onnx(made, **options)
    assert report.verification is not None
    assert report.verification.ok
    assert "BatchNormalization" not in {node.op_type for node in result.graph.node}
    assert [entry.name for entry in report.rewritten] == ["bn"]
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype(np.float32)
    assert difference([expected(x, made)], [run(result, {"x": x})[0].astype(np.float64)]) < 1e-6


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (model(9, ("om", "ov", "sm", "sv"), "om"), "still in training mode, for its statistics are read"),
        (model(6, ("om", "ov", "sm", "sv")), "still in training mode, of an opset before 7: bn"),
    ],
)
def test_a_note_names_what_stays(made: onnx.ModelProto, said: str) -> None:
    result, report = fold_onnx(made, lower_batch_statistics=True, verify=False)
    assert [node.op_type for node in result.graph.node] == ["BatchNormalization", "Relu"]
    assert [note for note in report.notes if said in note]
