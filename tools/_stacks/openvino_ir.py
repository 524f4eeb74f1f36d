"""OpenVINO: `convert_model` of the exported file, of the folded one, and what it computes on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import openvino
from torch import Tensor, nn

import bnfold
from tools._peers.left import Left
from tools._stacks.measure import FLOAT, Made, exported, measure
from tools._stacks.timing import Run


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    return made(converted(module, x, fold))


def converted(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Any:
    """OpenVINO's model of the exported file, or of the folded one."""
    path = exported(module, x)
    if fold is not None:
        folded, _ = bnfold.fold_onnx(path, **fold)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "folded.onnx"
            onnx.save(folded, path)
            return openvino.convert_model(path)
    return openvino.convert_model(path)


def made(model: Any) -> Made:
    """A Multiply of the data by a stored tensor of one axis counts as per channel, whoever put it there."""
    norms = sum("BatchNorm" in node.get_type_name() for node in model.get_ops())
    return Made(Left(norms, per_channel(model)), started(model), lambda: started(model))


def started(model: Any) -> Run:
    """Compiled for the CPU, in memory of its own."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda x: compiled([x.numpy()])[0]


def per_channel(model: Any) -> int:
    """Multiplications by one number a channel: what OpenVINO's reader makes of a batch norm, with an Add."""
    count, stored = 0, set[str]()  # what is constant, or computed from constants alone
    for node in model.get_ordered_ops():
        read = [each.get_source_output().get_node() for each in node.inputs()]
        names = [each.get_friendly_name() for each in read]
        if node.get_type_name() == "Constant" or (read and stored.issuperset(names)):
            stored.add(node.get_friendly_name())
        elif node.get_type_name() == "Multiply":
            shapes = [each.get_output_shape(0) for each in read if each.get_friendly_name() in stored]
            count += any(sum(size > 1 for size in shape) == 1 for shape in shapes)
    return count


if __name__ == "__main__":
    measure(make, FLOAT, exported)
