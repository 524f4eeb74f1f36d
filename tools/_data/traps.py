"""Small models whose batch norm or Mul looks as if a Conv could take it, and no Conv can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools._data.models import SEED

__all__ = ["TRAPS", "write"]

CHANNELS = 6  # and as many columns


def training_norm() -> onnx.ModelProto:
    """A batch norm by the statistics of the batch (training_mode=1), whose stored ones are not read."""
    norm = helper.make_node(
        "BatchNormalization",
        ["c", "scale", "shift", "mean", "variance"],
        ["n", "new_mean", "new_variance"],
        "norm",
        training_mode=1,
    )
    return _behind_a_conv(norm, dict.fromkeys(norm.input[1:], (CHANNELS,)))


def mul_of_columns() -> onnx.ModelProto:
    """A Mul along the last axis, which has as many places as there are channels."""
    return _behind_a_conv(
        helper.make_node("Mul", ["c", "scale"], ["n"], "mul"), {"scale": (1, 1, 1, CHANNELS)}
    )


def _behind_a_conv(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Conv, the node, Relu; its constants are positive."""
    rng = np.random.default_rng(SEED)
    stored = {name: rng.uniform(0.5, 2, shape) for name, shape in shapes.items()}
    stored["w"] = rng.standard_normal((CHANNELS, 3, 3, 3))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n, CHANNELS + more, CHANNELS + more])
        for name, n, more in (("x", 3, 2), ("y", CHANNELS, 0))
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        node,
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in stored.items()]
    graph = helper.make_graph(nodes, "trap", [x], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


TRAPS: dict[str, Callable[[], onnx.ModelProto]] = {
    "training_norm": training_norm,
    "mul_of_columns": mul_of_columns,
}


def write(name: str, path: Path) -> None:
    """The file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(TRAPS[name](), path)
