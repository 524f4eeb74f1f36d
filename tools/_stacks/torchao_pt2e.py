"""torchao's PT2E with the quantizer for XNNPACK, a scale for each output channel: the converted program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import quantize_pt2e
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.testing.pt2e._xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)

import bnfold
from tools._peers.torch_left import left, of_module
from tools._stacks.measure import INT8, Made, measure

CALIBRATION = 4  # images
# Where a batch norm is left, `convert_pt2e` exports 96 patterns of training with quantization in 20 seconds,
# and finds none of them in a program that was prepared for inference.
quantize_pt2e._fold_conv_bn_qat = lambda graph: graph


def quantized(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> nn.Module:
    """Exported, folded if asked, calibrated and converted."""
    program = torch.export.export(module, (x,))
    if fold is not None:
        program, _ = bnfold.fold_program(program, **fold)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    torch.manual_seed(1)
    for _ in range(CALIBRATION):
        prepared(torch.randn_like(x))
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def make(module: nn.Module, x: Tensor, fold: dict[str, Any] | None) -> Made:
    converted = quantized(module, x, fold)
    return Made(left(of_module(converted, x)), converted)


if __name__ == "__main__":
    measure(make, INT8)
