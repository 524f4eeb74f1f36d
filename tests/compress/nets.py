"""Networks to slim, in float64 so that equal means equal; their batch norms are random and not trivial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import bnfold.nn

SIDE = 8


class Made(nn.Module):
    """A forward function over named parts."""

    def __init__(self, call: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def unit(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution "0", batch norm "1", ReLU "2"."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Inverted(nn.Module):
    """An inverted residual with this package's batch norms: the last one adds the skip."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm1 = bnfold.nn.BatchNorm2d(hidden, activation="relu")
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm2 = bnfold.nn.BatchNorm2d(hidden, activation="relu")
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm3 = bnfold.nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.depthwise(self.norm1(self.expand(x))))
        result: Tensor = self.norm3(self.project(y), residual=x)
        return result


def residual_net() -> nn.Module:
    """Two inverted residuals on 8 channels, with 12 and 16 inside."""
    return ready(
        Made(
            lambda s, x: s.head(s.two(s.one(s.norm(s.stem(x)))).mean((2, 3))),
            stem=nn.Conv2d(3, 8, 3, padding=1, bias=False),
            norm=bnfold.nn.BatchNorm2d(8, activation="relu"),
            one=Inverted(8, 12),
            two=Inverted(8, 16),
            head=nn.Linear(8, 5),
        )
    )


def ready(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, float64, with random statistics, scales and shifts."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value in (part.weight, part.bias):
                if value is not None:
                    nn.init.uniform_(value, -1, 1)
            if part.running_mean is not None:
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 2)
    return module.double().eval()


def example(batch: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, SIDE, SIDE, generator=generator, dtype=torch.float64)


def clear(module: nn.Module, channels: dict[str, list[int]]) -> None:
    """gamma = beta = 0 in these channels of these batch norms."""
    with torch.no_grad():
        for name, some in channels.items():
            norm = module.get_submodule(name)
            norm.weight[some] = 0
            norm.bias[some] = 0
