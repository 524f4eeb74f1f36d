"""OpenVINO: `convert_model` of the exported file, of the folded one, and what it computes on the CPU."""

from __future__ import annotations

from typing import Any

import onnx
import openvino
from torch import Tensor, nn

import bnfold
from tools._peers.left import Left
from tools._stacks.measure import FLOAT, Made, exported, measure


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """A Multiply or Add with a stored tensor of one axis counts as per channel, whoever put it there."""
    path = exported(module, x)
    if fold is not None:
        folded, _ = bnfold.fold_onnx(path, **fold)
        path = path.with_name("folded.onnx")
        onnx.save(folded, path)
    model = openvino.convert_model(path)
    norms = sum("BatchNorm" in node.get_type_name() for node in model.get_ops())
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return Made(Left(norms, per_channel(model)), lambda x: compiled([x.numpy()])[0])


def per_channel(model: Any) -> int:
    """Multiplications by one number a channel: what OpenVINO's reader makes of a batch norm, with an Add."""
    count = 0
    for node in model.get_ops():
        if node.get_type_name() == "Multiply":
            shapes = [
                source.get_node().get_output_shape(0)
                for source in (each.get_source_output() for each in node.inputs())
                if source.get_node().get_type_name() == "Constant"
            ]
            count += any(sum(size > 1 for size in shape) == 1 for shape in shapes)
    return count


if __name__ == "__main__":
    measure(make, FLOAT, exported)
