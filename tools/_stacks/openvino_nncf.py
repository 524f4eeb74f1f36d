"""NNCF's int8 for OpenVINO, calibrated: the quantized model, which OpenVINO runs on the CPU."""

from __future__ import annotations

from typing import Any

import nncf
import torch
from torch import Tensor, nn

from bnfold.integrations.nncf import quantize
from tools._stacks.measure import INT8, Made, exported, measure
from tools._stacks.openvino_ir import converted, made

CALIBRATION = 4  # images


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    model = converted(module, x, fold)
    torch.manual_seed(1)
    images = nncf.Dataset([torch.randn_like(x).numpy() for _ in range(CALIBRATION)])
    how = nncf.quantize if fold is None else quantize
    return made(how(model, images, subset_size=CALIBRATION))


if __name__ == "__main__":
    measure(make, INT8, exported)
