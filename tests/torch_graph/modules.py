"""Small networks, and how many of their batch norms stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

__all__ = ["CASES", "randomize"]


def randomize(module: nn.Module, negative: bool = True) -> nn.Module:
    """Every batch norm does something; scales of both signs unless `negative` is False."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            with torch.no_grad():
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.normal_(0, 0.5)
                    part.running_var.uniform_(0.5, 1.5)
                if part.affine:
                    sign = torch.randint(0, 2, part.weight.shape) * 2 - 1 if negative else 1
                    part.weight.copy_(torch.rand_like(part.weight).add(0.5) * sign)
                    part.bias.normal_(0, 0.5)
    return module.eval()


class Fn(nn.Module):
    """Some layers and a function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(a: int, b: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, **options)


bn = nn.BatchNorm2d
IMAGE = (2, 6, 9, 9)


def functional(m: Any, x: Tensor) -> Tensor:
    return batch_norm(m.c(x), m.mean, m.var, m.w, m.b, False)


def functional_module() -> nn.Module:
    module = Fn(functional, c=conv(6, 4))
    for name, value in (("mean", 0.3), ("var", 2.0), ("w", -1.5), ("b", 0.7)):
        module.register_buffer(name, torch.full((4,), value))
    return module


def frozen(m: Any, x: Tensor) -> Tensor:
    """FrozenBatchNorm2d as detection libraries write it."""
    scale = m.w * (m.var + 1e-5).rsqrt()
    shift = m.b - m.mean * scale
    return m.c(x) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def frozen_module() -> nn.Module:
    module = functional_module()
    module.run = frozen
    return module


def tied() -> nn.Module:
    module = Fn(lambda m, x: m.b1(m.c1(x)) + m.b2(m.c2(x)), c1=conv(6, 4), c2=conv(6, 4), b1=bn(4), b2=bn(4))
    module.c2.weight = module.c1.weight
    return module


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(conv(6, 4)), bn(4))


# name: (what makes the module, the shape of its input, batch norms and per-channel nodes that stay)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv": (lambda: nn.Sequential(conv(6, 4), bn(4)), IMAGE, 0),
    "conv without bias": (lambda: nn.Sequential(conv(6, 4, bias=False), bn(4)), IMAGE, 0),
    "grouped conv": (lambda: nn.Sequential(conv(6, 4, groups=2, padding=1), bn(4)), IMAGE, 0),
    "depthwise conv": (lambda: nn.Sequential(conv(6, 12, groups=6, padding="same"), bn(12)), IMAGE, 0),
    "conv 1d": (lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)), (2, 6, 9), 0),
    "conv 3d": (lambda: nn.Sequential(nn.Conv3d(6, 4, 3), nn.BatchNorm3d(4)), (2, 6, 5, 5, 5), 0),
    "transposed conv": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2), bn(4)), IMAGE, 0),
    "grouped transposed conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2, groups=2), bn(4)),
        IMAGE,
        0,
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (3, 6), 0),
    "linear on tokens, the other axis": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(5)),
        (3, 5, 6),
        1,
    ),
    "linear on tokens, transposed": (
        lambda: Fn(
            lambda m, x: m.b(m.l(x).transpose(1, 2)).transpose(1, 2), l=nn.Linear(6, 4), b=nn.BatchNorm1d(4)
        ),
        (3, 5, 6),
        0,
    ),
    "linear on tokens, flattened": (
        lambda: Fn(
            lambda m, x: m.b((y := m.l(x)).flatten(0, 1)).reshape_as(y),
            l=nn.Linear(6, 4, bias=False),
            b=nn.BatchNorm1d(4),
        ),
        (3, 5, 6),
        0,
    ),
    "no affine": (lambda: nn.Sequential(conv(6, 4), bn(4, affine=False)), IMAGE, 0),
    "momentum=None": (lambda: nn.Sequential(conv(6, 4), bn(4, momentum=None)), IMAGE, 0),
    "SyncBatchNorm": (lambda: nn.Sequential(conv(6, 4), nn.SyncBatchNorm(4)), IMAGE, 0),
    "functional": (functional_module, IMAGE, 0),
    "FrozenBatchNorm2d": (frozen_module, IMAGE, 0),
    "no running statistics": (
        lambda: nn.Sequential(conv(6, 4), bn(4, track_running_stats=False)),
        IMAGE,
        1,
    ),
    "conv called twice, one path without": (
        lambda: Fn(lambda m, x: m.b(m.c(x)) + m.c(x.flip(2)), c=conv(6, 4), b=bn(4)),
        IMAGE,
        0,
    ),
    "batch norm called twice": (
        lambda: Fn(
            lambda m, x: torch.sigmoid(m.b(m.c(x))) + m.b(m.d(x)), c=conv(6, 4), d=conv(6, 4), b=bn(4)
        ),
        IMAGE,
        0,
    ),
    "tied weights": (tied, IMAGE, 0),
    "weight norm": (weight_norm, IMAGE, 0),
    "matmul by a parameter": (
        lambda: Fn(lambda m, x: m.b(x @ m.l.weight), l=nn.Linear(4, 6, bias=False), b=nn.BatchNorm1d(4)),
        (3, 6),
        0,
    ),
    "addmm": (
        lambda: Fn(
            lambda m, x: m.b(torch.addmm(m.l.bias, x, m.l.weight, alpha=0.5, beta=2.0)),
            l=nn.Linear(6, 6),
            b=nn.BatchNorm1d(6),
        ),
        (3, 6),
        0,
    ),
    "attention": (
        lambda: Fn(
            lambda m, x: m.b((torch.softmax(x @ x.transpose(1, 2), -1) @ m.l(x)).transpose(1, 2)),
            l=nn.Linear(6, 4),
            b=nn.BatchNorm1d(4),
        ),
        (2, 5, 6),
        0,
    ),
    "forward into a matmul": (
        lambda: Fn(lambda m, x: m.b(x) @ m.l.weight, l=nn.Linear(4, 6), b=nn.BatchNorm1d(6)),
        (3, 6),
        0,
    ),
    "forward": (lambda: nn.Sequential(bn(6), conv(6, 4)), IMAGE, 0),
    "forward, grouped": (lambda: nn.Sequential(bn(6), conv(6, 4, groups=2)), IMAGE, 0),
    "forward into padding": (lambda: nn.Sequential(bn(6), conv(6, 4, padding=1)), IMAGE, 1),
    "forward through pool, flatten": (
        lambda: nn.Sequential(bn(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        IMAGE,
        0,
    ),
    "relu between, then unpadded conv": (
        lambda: nn.Sequential(conv(6, 4), nn.ReLU(), bn(4), nn.MaxPool2d(2), conv(4, 3, 2)),
        IMAGE,
        1,
    ),
    "relu in place, then batch norm": (
        lambda: nn.Sequential(
            conv(6, 4), nn.LeakyReLU(0.2, inplace=True), bn(4), nn.AvgPool2d(2), conv(4, 3, 2)
        ),
        IMAGE,
        0,
    ),
    "concat": (
        lambda: Fn(
            lambda m, x: m.b(torch.cat([m.c(x), m.d(x)], 1)), c=conv(6, 4), d=conv(6, 3, bias=False), b=bn(7)
        ),
        IMAGE,
        0,
    ),
    "add": (lambda: Fn(lambda m, x: m.b(m.c(x) + m.d(x)), c=conv(6, 4), d=conv(6, 4), b=bn(4)), IMAGE, 0),
    "split": (
        lambda: Fn(
            lambda m, x: m.b((y := m.c(x).chunk(2, 1))[1]) * torch.sigmoid(y[0]), c=conv(6, 8), b=bn(4)
        ),
        IMAGE,
        0,
    ),
    "layer scale": (
        lambda: Fn(
            lambda m, x: x + m.b(m.c(x)) * m.g.weight[:, None, None], c=conv(6, 6, 1), b=bn(6), g=bn(6)
        ),
        IMAGE,
        0,
    ),
    "layer scale on the left": (
        lambda: Fn(
            lambda m, x: x + m.g.weight[:, None, None] * m.b(m.c(x)), c=conv(6, 6, 1), b=bn(6), g=bn(6)
        ),
        IMAGE,
        0,
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(conv(6, 8), nn.PixelShuffle(2), bn(2)),
        IMAGE,
        0,
    ),
    "channel shuffle": (lambda: nn.Sequential(conv(6, 8), nn.ChannelShuffle(2), bn(8)), IMAGE, 0),
    "reflection padding": (lambda: nn.Sequential(bn(6), nn.ReflectionPad2d(1), conv(6, 4)), IMAGE, 0),
    "upsampling": (lambda: nn.Sequential(conv(6, 4), nn.Upsample(scale_factor=2), bn(4)), IMAGE, 0),
    "two batch norms": (lambda: nn.Sequential(conv(6, 4), bn(4), bn(4)), IMAGE, 0),
    "batch norm alone": (lambda: nn.Sequential(nn.Sigmoid(), bn(6), nn.Sigmoid()), IMAGE, 1),
    "dropout between": (lambda: nn.Sequential(conv(6, 4), nn.Dropout(0.5), bn(4)), IMAGE, 0),
    "layer norm's own scale": (
        lambda: Fn(
            lambda m, x: m.b(m.n(x).transpose(1, 2)).transpose(1, 2), n=nn.LayerNorm(6), b=nn.BatchNorm1d(6)
        ),
        (3, 5, 6),
        0,
    ),
}
