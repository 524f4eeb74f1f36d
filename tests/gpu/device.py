"""What the tests on a GPU share: their marks, a device that can do less, and one case of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from bnfold.nn import kernel_calls as kernels
from tools._gpu.preflight import Limited

CUDA = "cuda"
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    # Where a kernel does not run, torch's operations would pass every test.
    pytest.mark.filterwarnings("error:bnfold.nn runs on torch"),
]

# Half the distance between two neighbours at 1: the rounding of a result.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
TYPES = list(ROUNDING)

# Less than the device can, so that each row of the launch table is taken.
LITTLE = 24 * 1024
LIMITS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no clusters": {"clusters": 1},
    "little memory": {"shared_memory": LITTLE},
    "no exchange": {"clusters": 1, "cooperative": False, "shared_memory": LITTLE},
}


def limited(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> Limited:
    """Puts it in the place of the device."""
    device = Limited(changes)
    monkeypatch.setattr(kernels, "machine_of", lambda x: device)
    return device


def ordered(x: Tensor, last: bool) -> Tensor:
    """Channels last if asked."""
    order = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()] if last else torch.contiguous_format
    return x.contiguous(memory_format=order)


@dataclass
class Case:
    """Tensors of one call, on the device; the same numbers for the same shape."""

    x: Tensor
    residual: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def drawn(
        cls,
        shape: tuple[int, ...],
        last: bool = False,
        kind: torch.dtype = torch.float32,
        mean: float = 1.0,
        std: float = 2.0,
    ) -> Case:
        generator = torch.Generator().manual_seed(sum(shape))

        def draw(scale: float, offset: float) -> Tensor:
            values = torch.randn(shape, generator=generator) * scale + offset
            return ordered(values.to(kind), last).to(CUDA)

        weight = torch.rand(shape[1], generator=generator) * 2 - 0.5
        bias = torch.randn(shape[1], generator=generator)
        return cls(draw(std, mean), draw(1, 0), draw(1, 0), weight.to(CUDA), bias.to(CUDA))


def excess(found: Tensor, wanted: Tensor, more: float = 0.0) -> float:
    """The largest error, as a part of what it may be: a rounding in its type, a little of float32, `more`."""
    assert found.shape == wanted.shape
    wanted = wanted.double()
    largest = max(1.0, wanted.abs().max().item())
    room = ROUNDING[found.dtype] * 1.01 * wanted.abs() + 4e-6 * largest + more
    off = (found.double() - wanted).abs() / room
    return off.max().item() if off.isfinite().all() else float("inf")
