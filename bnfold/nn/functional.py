"""Batch norm, sum and activation as one differentiable function, on the kernels where they run.

In eager mode an autograd.Function calls the kernels itself, which costs least; torch.compile sees the
operators of operators.py. Second derivatives are those of reference.py.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import operators, reference, steps

__all__ = ["batch_norm", "usable"]


def batch_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    training: bool,
    eps: float,
    momentum: float,
    relu: bool,
) -> Tensor:
    """`act((x - mean) / sqrt(var + eps) * weight + bias + residual)` on the kernels; see `usable`.

    Args:
        x: (N, C, ...).
        residual: as x, or None.
        weight: (C,), or None.
        bias: (C,), or None.
        running_mean: (C,). Training: updated in place, or None. Otherwise it is the mean.
        running_var: (C,), likewise.
        batches: (), int64: batches seen; in training counted up in place, or None.
        training: whether mean and variance are the batch's own.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics; negative: 1 / batches, counted already.
        relu: whether negative values become zero.

    Returns:
        y as x, dense and in the same order of dimensions.
    """
    x = kernels.dense(x)
    if residual is not None:
        residual = kernels.dense(residual, like=x)
    if torch.compiler.is_compiling():
        return operators.batch_norm(
            *(x, residual, weight, bias, running_mean, running_var, batches),
            *(training, eps, momentum, relu),
        )
    if training:
        running = (running_mean, running_var, batches)
        arguments = (x, residual, weight, bias, *running, eps, momentum, relu)
        return _Train.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
    noted = relu and residual is not None and torch.is_grad_enabled()
    given = (x, residual, weight, bias, running_mean, running_var, eps, relu, noted)
    return _Evaluate.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


def usable(x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> bool:
    """Whether the kernels take these tensors; the parameters are weight, bias and running statistics, if any.

    Anything else is torch's: other devices and types, empty batches, parameters that are not dense or of
    another number of channels, forward-mode derivatives, torch.func, exported and traced graphs, tensors of
    other classes.
    """
    if not _device_usable(x.device):
        return False
    given = [each for each in parameters if each is not None]
    types = {each.dtype for each in given}
    activations = [x] if residual is None else [x, residual]
    return (
        x.dtype in kernels.NAMES
        and x.dim() >= 2
        and x.numel() > 0
        and types <= {torch.float32, x.dtype}
        and len(types) <= 1
        and all(each.device == x.device for each in given)
        and all(each.shape == x.shape[1:2] and each.is_contiguous() for each in given)
        and (residual is None or (residual.dtype, residual.device) == (x.dtype, x.device))
        and (
            not torch.compiler.is_exporting()
            if torch.compiler.is_compiling()
            else _plain(activations + given)
        )
    )


def _plain(tensors: list[Tensor]) -> bool:
    """Whether nothing but autograd watches these tensors, and each is its values in memory."""
    return (
        all(type(each) in (Tensor, torch.nn.Parameter) for each in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _device_usable(device: torch.device) -> bool:
    return _tried(device)


@functools.cache
def _tried(device: torch.device) -> bool:
    """Whether there are kernels for a device; a CUDA device that has none is told of, once."""
    try:
        kernels.machine_of(torch.empty(0, device=device))
    except KernelError as error:
        steps.fall_back(error)
        return False
    return True


class _Train(torch.autograd.Function):
    """With the batch's own statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        batches: Tensor | None,
        eps: float,
        momentum: float,
        relu: bool,
    ) -> Tensor:
        y, mean, invstd, mask = steps.forward(
            x, residual, weight, bias, running_mean, running_var, batches, eps, momentum, relu
        )
        ctx.save_for_backward(x, weight, bias, mean, invstd, mask)
        ctx.eps, ctx.relu, ctx.frozen, ctx.order = eps, relu, False, kernels.order_of(x)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dy), None, None, None, None, None, None


class _Evaluate(torch.autograd.Function):
    """With statistics that are known."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        relu: bool,
        noted: bool,
    ) -> Tensor:
        noted = noted and any(ctx.needs_input_grad)
        y, mask = steps.evaluate(x, residual, weight, bias, mean, var, eps, relu, noted)
        ctx.save_for_backward(x, weight, bias, mean, var, mask)
        ctx.eps, ctx.relu, ctx.frozen, ctx.order = eps, relu, True, kernels.order_of(x)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dy), None, None, None, None, None


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Those of x, residual, weight and bias, where they are wanted."""
    x, weight, bias, mean, second, mask = ctx.saved_tensors
    x = x.contiguous(memory_format=ctx.order)  # hooks may have saved it in another one
    if ctx.frozen:  # what was saved is the variance
        mean, second = reference.numbers(mean), reference.inverse_deviation(second, ctx.eps)
    if not torch._C._has_storage(dy):  # many at once: is_grads_batched, or jacobian(vectorize=True)
        dz = steps.dz_of(kernels.Saved(x, mask, weight, bias, mean, second, ctx.relu), dy)
        dx, dweight, dbias = reference.gradients(
            x, dz, weight, ctx.eps, (mean, second) if ctx.frozen else None
        )
        return dx, dz, dweight, dbias
    needs_x, needs_residual, *others = ctx.needs_input_grad[:4]
    # Without a ReLU, what the residual gets is dy itself.
    needs = (needs_x, needs_residual and ctx.relu, *others)
    arguments = (x, kernels.dense(dy, like=x), mask, weight, bias, mean, second)
    dx, dresidual, dweight, dbias = _Gradients.apply(  # type: ignore[no-untyped-call]
        *arguments, ctx.eps, ctx.relu, ctx.frozen, needs
    )
    return dx, dy if needs_residual and not ctx.relu else dresidual, dweight, dbias


class _Gradients(torch.autograd.Function):
    """The gradients as a function of x, dy and weight, differentiable again through reference.py."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dy: Tensor,
        mask: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        eps: float,
        relu: bool,
        frozen: bool,
        needs: tuple[bool, bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        saved = kernels.Saved(x, mask, weight, bias, mean, invstd, relu)
        dx, dresidual, dweight, dbias = steps.backward(saved, dy, frozen, needs[1])
        ctx.save_for_backward(x, dy, mask, weight, bias, mean, invstd)
        ctx.eps, ctx.relu, ctx.frozen, ctx.needs = eps, relu, frozen, needs
        ctx.order = kernels.order_of(x)
        return tuple(
            each if needed else None
            for each, needed in zip((dx, dresidual, dweight, dbias), needs, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dy, mask, weight, bias, mean, invstd = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 11
        places = [place for place in (0, 1, 3) if ctx.needs_input_grad[place]]
        once_more = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that dy as a function of x is not gone through a second time.
            x, dy = (each.view_as(each).contiguous(memory_format=ctx.order) for each in (x, dy))
            weight = None if weight is None else weight.view_as(weight)
            dz = steps.dz_of(kernels.Saved(x, mask, weight, bias, mean, invstd, ctx.relu), dy)
            statistics = (mean, invstd) if ctx.frozen else None
            dx, dweight, dbias = reference.gradients(x, dz, weight, ctx.eps, statistics)
            pairs = [
                (result, gradient.to(result.dtype))
                for result, gradient in zip((dx, dz, dweight, dbias), outer, strict=True)
                if gradient is not None and result.requires_grad
            ]
            inputs = {0: x, 1: dy, 3: weight}
            gradients = torch.autograd.grad(
                [result for result, _ in pairs],
                [inputs[place] for place in places],
                [gradient for _, gradient in pairs],
                create_graph=once_more,
                allow_unused=True,
            )
        for place, gradient in zip(places, gradients, strict=True):
            found[place] = gradient
        return tuple(found)
