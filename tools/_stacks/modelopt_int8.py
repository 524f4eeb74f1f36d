"""modelopt's int8, a scale for each output channel: the ONNX file of the quantized module."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from tools._data.models import import_timm
from tools._peers.left import inspect, left
from tools._stacks.measure import FLOAT, Made, exported, measure

CALIBRATION = 4  # images
import_timm()  # with it, torchvision is as modelopt's own imports need it


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    """Folded as a module, whose branches stay apart; then quantized."""
    import modelopt.torch.quantization as mtq

    if fold is not None:
        module, _ = bnfold.fold_module(module, x)
    torch.manual_seed(1)
    images = [torch.randn_like(x) for _ in range(CALIBRATION)]
    quantized = mtq.quantize(module, mtq.INT8_DEFAULT_CFG, lambda net: [net(image) for image in images])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.onnx"
        how: dict[str, Any] = {"dynamo": False, "opset_version": 17, "do_constant_folding": False}
        torch.onnx.export(quantized, (x,), path, **how)
        return Made(left(path, inspect(exported(module, x))[1]), quantized)


if __name__ == "__main__":
    measure(make, FLOAT, exported)
