"""Tensors as TensorRT keeps them, calls of a plugin on them, and what they ought to give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.plugins.harness import Harness, Plugin
from tests.plugins.harness import Tensor as Told

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Half the distance between two neighbours at 1: the rounding of a result.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LANES = {"HWC": 1, "DHWC": 1, "HWC8": 8, "DHWC8": 8}
EPSILON = 1e-3
GUARD = 4096  # bytes behind each piece of memory that nobody may write


@dataclass(frozen=True)
class Case:
    """One call. sets: of scale and of shift, 1 or one a sample. misaligned: by so many values."""

    op: str
    shape: tuple[int, ...]
    type: str = "float32"
    format: str = "LINEAR"
    sets: tuple[int, int] = (1, 1)
    misaligned: int = 0
    device: str = "cpu"

    @property
    def statistics(self) -> bool:
        return "Stat" in self.op

    @property
    def residual(self) -> bool:
        return "Add" in self.op

    def parameter(self, sets: int) -> tuple[int, ...]:
        return (sets, self.shape[1], *[1] * (len(self.shape) - 2))

    def told(self) -> list[Told]:
        """Inputs and output, for the plugin."""
        x = Told(self.shape, self.type, self.format)
        parameters = [Told(self.parameter(sets), self.type) for sets in self.sets]
        return [x, *parameters, *[x] * (1 + self.residual)]

    def drawn(self) -> list[Tensor]:
        """Values of the inputs, in this type; the same for the same shape."""
        generator = torch.Generator().manual_seed(sum(self.shape))

        def draw(shape: tuple[int, ...], scale: float, offset: float) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale + offset).to(TYPES[self.type])

        x = draw(self.shape, 2, 1)
        parameters = [draw(self.parameter(sets), 1, 0.5) for sets in self.sets]
        return [x, *parameters, *[draw(self.shape, 1, 0)] * self.residual]

    def wanted(self, x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
        """The op in float64."""
        wide = x.double()
        if self.statistics:
            axes = [axis for axis in range(x.dim()) if axis != 1]
            mean = wide.mean(axes, keepdim=True)
            var = (wide - mean).square().mean(axes, keepdim=True)
            wide = (wide - mean) / (var + EPSILON).sqrt()
        y = wide * scale.double() + shift.double()
        if residual is not None:
            y = y + residual.double()
        return y.relu() if self.op.endswith("Relu") else y


@dataclass
class Memory:
    """Bytes on a device with a guard behind them, all 0xFF."""

    whole: Tensor
    size: int
    offset: int

    @classmethod
    def of(cls, size: int, device: str, offset: int = 0) -> Memory:
        whole = torch.full((256 + offset + size + GUARD,), 255, dtype=torch.uint8, device=device)
        return cls(whole, size, -whole.data_ptr() % 256 + offset)

    @property
    def address(self) -> int:
        return self.whole.data_ptr() + self.offset

    @property
    def bytes(self) -> Tensor:
        return self.whole[self.offset : self.offset + self.size]

    def intact(self) -> bool:
        """Whether nobody wrote around it."""
        before, behind = self.whole[: self.offset], self.whole[self.offset + self.size :]
        return bool((before == 255).all() and (behind == 255).all())


def stored(values: Tensor, kind: str) -> Tensor:
    """The values in the order of a format, with padding of zeros."""
    if kind == "LINEAR":
        return values.contiguous()
    last = values.movedim(1, -1)
    return torch.nn.functional.pad(last, (0, -values.shape[1] % LANES[kind])).contiguous()


def read(memory: Tensor, shape: tuple[int, ...], kind: str) -> tuple[Tensor, Tensor]:
    """The values in the order of their dimensions, and the padding."""
    if kind == "LINEAR":
        return memory.reshape(shape), memory[:0]
    padded = shape[1] + -shape[1] % LANES[kind]
    last = memory.reshape(shape[0], *shape[2:], padded)
    return last[..., : shape[1]].movedim(-1, 1), last[..., shape[1] :]


class Call:
    """A plugin and the memory of one call of it."""

    def __init__(self, harness: Harness, case: Case, room: list[Told] | None = None) -> None:
        made = harness.create(case.op, [("epsilon", EPSILON)] if case.statistics else [])
        assert made is not None, harness.log()
        self.plugin: Plugin = made
        self.case, self.told = case, case.told()
        self.values = case.drawn()
        assert self.plugin.configure(*(room or self.told)) == 0, harness.log()
        workspace = self.plugin.workspace(*(room or self.told))
        kind = TYPES[case.type]
        offset = case.misaligned * kind.itemsize
        self.tensors = []
        for values, told in zip(self.values, self.told, strict=False):
            data = stored(values, told.format)
            memory = Memory.of(data.numel() * kind.itemsize, case.device, offset)
            memory.bytes.copy_(data.reshape(-1).view(torch.uint8))
            self.tensors.append(memory)
        self.y = Memory.of(self.tensors[0].size, case.device, offset)
        self.workspace = Memory.of(workspace, case.device)

    def enqueue(self, stream: int = 0) -> int:
        addresses = [each.address for each in (*self.tensors, self.y)]
        return self.plugin.enqueue(self.told, addresses, self.workspace.address, stream)

    def excess(self) -> float:
        """The largest error of y as a part of what it may be; infinite where memory around was written."""
        case, kind = self.case, TYPES[self.case.type]
        if not all(each.intact() for each in (*self.tensors, self.y, self.workspace)):
            return math.inf
        y, padding = read(self.y.bytes.cpu().clone().view(kind), case.shape, case.format)
        if not padding.isfinite().all() or padding.any():
            return math.inf
        wanted = case.wanted(*self.values)
        assert y.shape == wanted.shape
        room = ROUNDING[kind] * 1.01 * wanted.abs() + 4e-6 * max(1.0, wanted.abs().max().item())
        off = (y.double() - wanted).abs() / (room + (2.0**-25 if kind == torch.float16 else 0))
        return off.max().item() if off.isfinite().all() else math.inf


def with_shape(told: list[Told], change: Callable[[int, tuple[int, ...]], Any]) -> list[Told]:
    """The same tensors with other shapes."""
    return [replace(each, **change(place, each.shape)) for place, each in enumerate(told)]
