"""An artificial network whose batch norms have seen next to no variance."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["small_variance"]


def small_variance(variance: float, epsilon: float, layers: int = 8, pre: bool = False) -> onnx.ModelProto:
    """Conv -> batch norm -> Relu (`pre`: batch norm -> Relu -> conv -> Tanh), all of this variance."""
    rng, channels, inputs, x = np.random.default_rng(0), 32, 3, "x"
    nodes, tensors = [], []
    for i in range(layers):
        if pre:
            inputs = channels if i else 3
        count = inputs if pre else channels
        size = np.sqrt(2 * variance / (inputs * 9))
        values = {
            "w": rng.standard_normal((channels, inputs, 3, 3)) * size,
            "gamma": rng.uniform(0.5, 1.5, count),
            "beta": rng.normal(0, 0.3, count),
            "mean": rng.normal(0, 0.3, count) * np.sqrt(variance),
            "var": variance * rng.uniform(0.5, 1.5, count),
        }
        tensors += [numpy_helper.from_array(v.astype(np.float32), f"{k}{i}") for k, v in values.items()]
        parameters = [f"{key}{i}" for key in ("gamma", "beta", "mean", "var")]
        if pre:
            nodes += [
                helper.make_node(
                    "BatchNormalization", [x, *parameters], [f"n{i}"], f"bn{i}", epsilon=epsilon
                ),
                helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
                helper.make_node("Conv", [f"r{i}", f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4),
            ]
            nodes.append(helper.make_node("Tanh", [f"c{i}"], [f"t{i}"], f"tanh{i}"))
            x = f"t{i}"
        else:
            nodes += [
                helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4),
                helper.make_node(
                    "BatchNormalization", [f"c{i}", *parameters], [f"n{i}"], f"bn{i}", epsilon=epsilon
                ),
                helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
            ]
            x = f"r{i}"
            inputs = channels
    nodes.append(helper.make_node("Identity", [x], ["y"], "last"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 16, 16])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
