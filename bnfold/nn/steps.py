"""Each step of a batch norm on its kernel, or in torch's operations (reference.py) where that cannot run.

Steps know nothing of autograd. Tensors are dense and in one order of dimensions. A mask tells which values
passed the ReLU, in bits (`kernel_calls.packed`). `ready` has the launches for tensors of these kinds.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import reference
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.kernel_calls import Ready
from bnfold.nn.moments import Moments, moments

__all__ = ["backward", "dz_of", "evaluate", "fall_back", "forward", "moments_of", "spread", "sums"]


def fall_back(error: KernelError) -> None:
    """Warns, once for each reason, that torch's own operations stand in for a kernel."""
    if not error.expected:
        _warn(str(error))


@functools.cache
def _warn(reason: str) -> None:
    warnings.warn(f"bnfold.nn runs on torch's own operations: {reason}", stacklevel=3)


def forward(
    given: Arguments, running: Running, ready: Ready | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Training: y, mean, invstd, and the mask where there are both a residual and a ReLU."""
    try:
        return kernels.forward(given, running, ready)
    except KernelError as error:
        fall_back(error)
    y, mean, invstd = reference.forward(given, running)
    return y, mean, invstd, kernels.packed(~(y <= 0), given.x) if given.masked else None


def evaluate(
    given: Arguments, mean: Tensor, var: Tensor, noted: bool, ready: Ready | None = None
) -> tuple[Tensor, Tensor | None]:
    """With statistics that are known: y, and the mask if it is to be noted."""
    try:
        return kernels.apply(given, mean, var, noted, ready)
    except KernelError as error:
        fall_back(error)
    y = reference.apply(given, mean, var)
    return y, kernels.packed(~(y <= 0), given.x) if noted else None


def backward(
    saved: Saved, dy: Tensor, frozen: bool, needs_residual: bool, ready: Ready | None = None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Dx, the residual's gradient where it is wanted and not dy itself, dweight and dbias."""
    try:
        return kernels.backward(saved, dy, frozen, needs_residual, ready)
    except KernelError as error:
        fall_back(error)
    x, _, weight, _, mean, invstd, relu = saved
    dz = dz_of(saved, dy)
    dx, dweight, dbias = reference.backward(x, dz, weight, mean, invstd, frozen)
    kind = weight.dtype if weight is not None else dbias.dtype
    return dx, dz if needs_residual and relu else None, dweight.to(kind), dbias.to(kind)


def dz_of(saved: Saved, dy: Tensor) -> Tensor:
    """Dy where the value passed the ReLU; differentiable in dy."""
    x, mask, weight, bias, mean, invstd, relu = saved
    if not relu:
        return dy
    with torch.no_grad():
        if mask is None:
            y = reference.normalized(Arguments(x, weight=weight, bias=bias), mean, invstd)
            kept = ~(y <= 0)
        else:
            kept = kernels.unpacked(mask, x)
    return torch.where(kept, dy, 0)


def moments_of(x: Tensor) -> Moments:
    """Count, mean and squared deviations of each channel, float64."""
    try:
        mean, m2 = kernels.statistics(x)
    except KernelError as error:
        fall_back(error)
        return moments(x)
    count = torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64, device=x.device)
    return Moments(count, mean.double(), m2.double())


def sums(saved: Saved, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Of dz, and of dz * (x - mean), over each channel."""
    try:
        return kernels.sums(saved, dy)
    except KernelError as error:
        fall_back(error)
    return reference.sums(saved.x, dz_of(saved, dy), saved.mean)


def spread(
    saved: Saved, dy: Tensor, mean_dz: Tensor, mean_dz_x: Tensor, needs_residual: bool
) -> tuple[Tensor, Tensor | None]:
    """Dx, and the residual's gradient where it is wanted and not dy itself, from means that are known."""
    try:
        return kernels.apply_backward(saved, dy, mean_dz, mean_dz_x, needs_residual)
    except KernelError as error:
        fall_back(error)
    x, _, weight, _, mean, invstd, relu = saved
    dz = dz_of(saved, dy)
    dx = reference.input_gradient(x, dz, weight, mean, invstd, mean_dz, mean_dz_x)
    return dx, dz if needs_residual and relu else None
