"""What each kernel computes, for reference: the same arguments and results, in torch's own operations.

The kernels are tested against them (in float64); they run where a kernel cannot; and, being differentiable,
they are what second derivatives are taken of. Arithmetic is float32, or float64 for float64 activations.

What the arguments are, everywhere: x, y, dz, dx (N, C, ...); weight, mean, invstd and all sums (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnfold.nn.arguments import Arguments, Running

__all__ = [
    "apply",
    "backward",
    "forward",
    "gradients",
    "input_gradient",
    "inverse_deviation",
    "normalized",
    "numbers",
    "statistics",
    "sums",
    "wide",
]


def forward(given: Arguments, running: Running) -> tuple[Tensor, Tensor, Tensor]:
    """Training: y, mean and invstd = 1/sqrt(var + eps) of a batch that is not empty."""
    x, batches, momentum = given.x, running.batches, running.momentum
    mean, var = statistics(x)
    if batches is not None and momentum >= 0:
        batches.add_(1)
    if running.mean is not None and running.var is not None:
        count = x.numel() // x.shape[1]
        part = 1 / batches.to(mean.dtype) if batches is not None and momentum < 0 else momentum
        for kept, new in ((running.mean, mean), (running.var, var * (count / max(1, count - 1)))):
            kept.copy_((1 - part) * kept.to(new.dtype) + part * new)
    invstd = inverse_deviation(var, given.eps)
    return normalized(given, mean, invstd), mean, invstd


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by the count) of each channel."""
    values, axes = numbers(x), _axes(x)
    mean = values.mean(axes)
    return mean, (values - wide(mean, x)).square().mean(axes)


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """1/sqrt(var + eps), of the arithmetic's type, rounded as the kernels do: rsqrt may differ in a bit."""
    return 1 / (numbers(var) + eps).sqrt()


def apply(given: Arguments, mean: Tensor, var: Tensor) -> Tensor:
    """Evaluation: y with statistics that are known."""
    return normalized(given, mean, inverse_deviation(var, given.eps))


def normalized(given: Arguments, mean: Tensor, invstd: Tensor) -> Tensor:
    """Y = act((x - mean) * invstd * weight + bias + residual), in x's type."""
    x, residual, weight, bias, _, relu = given
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    y = (numbers(x) - wide(mean.to(scale.dtype), x)) * wide(scale, x)
    if bias is not None:
        y = y + wide(bias.to(y.dtype), x)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return (y.relu() if relu else y).to(x.dtype)


def sums(x: Tensor, dz: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Those of dz, and of dz * (x - mean), over each channel."""
    values, axes = numbers(dz), _axes(x)
    return values.sum(axes), (values * (numbers(x) - wide(mean, x))).sum(axes)


def backward(
    x: Tensor, dz: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Dx, dweight and dbias from dz, the gradient before the sum and the activation.

    frozen: whether mean and invstd are constants, not those of x.
    """
    dbias, dz_x = sums(x, dz, mean)
    count = x.numel() // x.shape[1]
    means = (None, None) if frozen else (dbias / count, dz_x / count)
    return input_gradient(x, dz, weight, mean, invstd, *means), dz_x * invstd, dbias


def input_gradient(
    x: Tensor,
    dz: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    mean_dz: Tensor | None,
    mean_dz_x: Tensor | None,
) -> Tensor:
    """Dx from the means over all values of dz and dz * (x - mean); None: mean and invstd are constants."""
    slope = invstd if weight is None else invstd * weight.to(invstd.dtype)
    dx = numbers(dz)
    if mean_dz is not None and mean_dz_x is not None:
        dx = dx - wide(mean_dz, x) - (numbers(x) - wide(mean, x)) * wide(mean_dz_x * invstd.square(), x)
    return (dx * wide(slope, x)).to(x.dtype)


def gradients(
    x: Tensor, dz: Tensor, weight: Tensor | None, eps: float, frozen: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `backward`, but with the statistics as functions of x, unless `frozen` gives mean and invstd."""
    if frozen is None:
        mean, var = statistics(x)
        return backward(x, dz, weight, mean, inverse_deviation(var, eps), False)
    return backward(x, dz, weight, *frozen, True)


def wide(vector: Tensor, x: Tensor) -> Tensor:
    """One number for each channel, against the shape of x."""
    return vector.reshape((1, -1) + (1,) * (x.dim() - 2))


def numbers(x: Tensor) -> Tensor:
    """X in the type of the arithmetic."""
    return x if x.dtype == torch.float64 else x.float()


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]
