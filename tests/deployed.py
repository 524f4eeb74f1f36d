"""Small nets with a batch norm that no fold removes, and one where a clever fold removes all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETS", "export", "made"]


class Preactivated(nn.Module):
    """A ResNet with batch norm and ReLU before each conv."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * blocks + 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2 * blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i in range(0, len(self.convs), 2):
            y = self.convs[i](functional.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](functional.relu(self.norms[i + 1](y)))
        return self.head(functional.relu(self.norms[-1](x)).mean((2, 3)))


class Dense(nn.Module):
    """A DenseNet: every layer normalizes all that came before in its own way."""

    def __init__(self, width: int = 8, layers: int = 3, grow: int = 4) -> None:
        super().__init__()
        sizes = [width + grow * i for i in range(layers + 1)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(size, grow, 3, padding=1, bias=False) for size in sizes[:-1])
        self.head = nn.Linear(sizes[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        return self.head(functional.relu(self.norms[-1](x)).mean((2, 3)))


class Conditional(nn.Module):
    """Batch norm whose scale and shift are looked up by class."""

    def __init__(self, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.embed = nn.Embedding(classes, 2 * channels)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        gain, offset = self.embed(label).chunk(2, 1)
        return self.norm(x) * (1 + gain[:, :, None, None]) + offset[:, :, None, None]


class Generator(nn.Module):
    """A block of a class-conditional image generator."""

    def __init__(self, inputs: int = 8, outputs: int = 6) -> None:
        super().__init__()
        self.norm1, self.conv1 = Conditional(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = Conditional(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        y = functional.interpolate(functional.relu(self.norm1(x, label)), scale_factor=2)
        y = self.conv2(functional.relu(self.norm2(self.conv1(y), label)))
        return y + self.short(functional.interpolate(x, scale_factor=2))


class BatchStatistics(nn.Module):
    """Normalizes by the batch at inference too."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        own = {"track_running_stats": False}
        self.conv1, self.norm1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width, **own)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width, affine=False, **own)
        self.head, self.norm3 = nn.Linear(width, 5), nn.BatchNorm1d(5, **own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(x)) + x)
        return self.norm3(self.head(x.mean((2, 3))))


# The net, its inputs, and the operators of ours that its export needs, in their order.
Net = tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, ...]], tuple[str, ...]]
NETS: dict[str, Net] = {
    "pre-activation ResNet": (Preactivated, lambda: (torch.randn(2, 3, 12, 12),), ()),
    "DenseNet": (Dense, lambda: (torch.randn(2, 3, 12, 12),), ("BnfoldBatchNormRelu",) * 3),
    "conditional generator": (
        Generator,
        lambda: (torch.randn(2, 8, 6, 6), torch.tensor([1, 7])),
        ("BnfoldBatchNormRelu",) * 2,
    ),
    "batch statistics": (
        BatchStatistics,
        lambda: (torch.randn(4, 3, 12, 12),),
        ("BnfoldBatchStatNormRelu", "BnfoldBatchStatNormAddRelu", "BnfoldBatchStatNorm"),
    ),
}


def made(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A net in eval mode with statistics and parameters that are not trivial, and inputs."""
    torch.manual_seed(0)
    module, inputs = NETS[name][0](), NETS[name][1]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            if part.running_mean is not None and part.running_var is not None:
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
            if part.weight is not None:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias)
    return module.eval(), inputs


def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, raw: bool) -> None:
    """By torch's exporter, with or without its optimizer."""
    more: dict[str, Any] = {"external_data": False, "verbose": False}
    torch.onnx.export(module, inputs, path, dynamo=True, optimize=not raw, **more)
