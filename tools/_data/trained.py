"""Small networks of the usual kinds, trained in seconds on real images, for what random weights cannot show.

NETWORKS: blocks of three branches (RepVGG), seven and fifteen of them; inverted residuals with ReLU6
(MobileNetV2); residual blocks; and residual blocks with the batch norms first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tools._data.images import CLASSES, Images

BATCH, LEARNING_RATE, MOMENTUM, DECAY = 128, 0.1, 0.9, 5e-4
WARM_UP = 20  # steps


def layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    pads = kernel // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, pads, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class Branches(nn.Module):
    """3 x 3, 1 x 1 and, where the sizes stay, a batch norm of the input: one sum."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        parts = [nn.Sequential(*layer(inputs, outputs, kernel, stride)) for kernel in (3, 1)]
        self.parts = nn.ModuleList([*parts, *([nn.BatchNorm2d(inputs)] if same else [])])

    def forward(self, x: Tensor) -> Tensor:
        y = self.parts[0](x) + self.parts[1](x)
        return torch.relu(y + self.parts[2](x) if len(self.parts) > 2 else y)


class Inverted(nn.Module):
    """1 x 1 to four times the channels, depthwise, 1 x 1 back; it skips where the sizes stay."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        hidden = 4 * inputs
        wide = [*layer(inputs, hidden, 1), nn.ReLU6(), *layer(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        self.body = nn.Sequential(*wide, *layer(hidden, outputs, 1))
        self.skips = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.skips else y


class Residual(nn.Module):
    """Two 3 x 3, added to the input, or to a 1 x 1 of it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        self.body = nn.Sequential(*layer(inputs, outputs, 3, stride), nn.ReLU(), *layer(outputs, outputs, 3))
        self.skip = nn.Identity() if same else nn.Sequential(*layer(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class NormFirst(nn.Module):
    """The same, with batch norm and Relu in front of each 3 x 3."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second)
        same = inputs == outputs and stride == 1
        self.skip = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = self.body(y) + (x if self.skip is None else self.skip(y))
        return result


def blocks(block: Callable[[int, int, int], nn.Module], inputs: int, stages: str) -> list[nn.Module]:
    """Blocks by their outputs; a number that changes halves the sides: "16 32 32"."""
    found, previous = list[nn.Module](), inputs
    for outputs in map(int, stages.split()):
        found.append(block(previous, outputs, 1 if outputs == previous else 2))
        previous = outputs
    return found


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def _branches(stages: str) -> nn.Sequential:
    return nn.Sequential(*blocks(Branches, 1, stages), *head(64))


def _inverted() -> nn.Sequential:
    body = blocks(Inverted, 16, "16 24 24 24 40 40")
    return nn.Sequential(*layer(1, 16, 3, 2), nn.ReLU6(), *body, *layer(40, 96, 1), nn.ReLU6(), *head(96))


def _residual() -> nn.Sequential:
    return nn.Sequential(*layer(1, 16, 3, 2), nn.ReLU(), *blocks(Residual, 16, "16 32 32 64 64"), *head(64))


def _norm_first() -> nn.Sequential:
    body = blocks(NormFirst, 16, "16 32 32 64 64")
    stem = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    return nn.Sequential(stem, *body, nn.BatchNorm2d(64), nn.ReLU(), *head(64))


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "three branches, 7 blocks": lambda: _branches("16 16 32 32 32 64 64"),
    "three branches, 15 blocks": lambda: _branches(" ".join(["16"] * 5 + ["32"] * 7 + ["64"] * 3)),
    "inverted residuals, ReLU6": _inverted,
    "residual blocks": _residual,
    "residual blocks, batch norm first": _norm_first,
}


def trained(name: str, images: Images, seed: int, epochs: int, cache: Path | None = None) -> nn.Sequential:
    """One of NETWORKS in eval mode. cache: a file to keep the weights in."""
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    if cache is not None and cache.exists():
        net.load_state_dict(torch.load(cache, weights_only=True))
        return net.eval()
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    count = len(images.train) // BATCH
    total, step = epochs * count, 0
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images.train))[: count * BATCH].split(BATCH):
            rate = LEARNING_RATE * (1 + math.cos(math.pi * step / total)) / 2 * min(1, (step + 1) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = nn.functional.cross_entropy(net(images.train[chosen]), images.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), cache)
    return net.eval()
