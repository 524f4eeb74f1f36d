"""Batch norm, sum and activation as one differentiable function, on the kernels where they run.

In eager mode an autograd.Function calls the kernels itself, which costs least; torch.compile sees the
operators of operators.py. Second derivatives are those of reference.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import operators, reference, steps
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.kernel_calls import Ready

__all__ = ["batch_norm", "differentiable", "eager", "ready_for", "usable"]


def batch_norm(given: Arguments, running: Running, training: bool) -> Tensor:
    """The batch norm on the kernels; see `usable`.

    Args:
        given: in any order of dimensions, dense or not.
        running: without statistics only in training.
        training: whether mean and variance are the batch's own.

    Returns:
        y as x, dense and in the same order of dimensions.
    """
    order = kernels.order_of(given.x)
    dense = kernels.ordered(given.x, order)
    added = None if given.residual is None else kernels.ordered(given.residual, order)
    if dense is not given.x or added is not given.residual:
        given = Arguments(dense, added, *given[2:])
    if torch.compiler.is_compiling():
        return operators.batch_norm(given, running, training)
    return eager(given, running, training, Ready(order), differentiable(*given[:4]))


def eager(given: Arguments, running: Running, training: bool, ready: Ready, wanted: bool) -> Tensor:
    """As `batch_norm`, of what is dense in the order of `ready`; wanted: `differentiable`."""
    if wanted and torch.is_grad_enabled():
        y: Tensor = (_train if training else _evaluate)(*given[:4], given, running, ready)
        return y
    if training:
        return steps.forward(given, running, ready)[0]
    assert running.mean is not None
    assert running.var is not None
    return steps.evaluate(given, running.mean, running.var, False, ready)[0]


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether one of them requires a gradient."""
    return any(each is not None and each.requires_grad for each in tensors)


def ready_for(x: Tensor, residual: Tensor | None) -> Ready | None:
    """For tensors that are dense in one order of dimensions; else None."""
    order = kernels.order_of(x)
    dense = kernels.is_ordered(x, order) and (residual is None or kernels.is_ordered(residual, order))
    return Ready(order) if dense else None


def usable(x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> bool:
    """Whether the kernels take these tensors; the parameters are weight, bias and running statistics, if any.

    Anything else is torch's: other devices and types, empty batches, parameters that are not dense or of
    another number of channels, forward-mode derivatives, torch.func, exported and traced graphs, tensors of
    other classes.
    """
    kind, device = x.dtype, x.device
    if torch.compiler.is_exporting() or not _device_usable(device):
        return False
    if kind not in kernels.NAMES or x.dim() < 2 or x.numel() == 0:
        return False
    if residual is not None and (residual.dtype is not kind or residual.device != device):
        return False
    found, channels = None, x.shape[1:2]
    for each in parameters:
        if each is not None:
            if found is None:
                found = each.dtype
                if found is not kind and found is not torch.float32:
                    return False
            elif each.dtype is not found:
                return False
            if each.shape != channels or each.device != device or not each.is_contiguous():
                return False
    return torch.compiler.is_compiling() or kernels.plain(x, residual, *parameters)


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


class _Differentiable(torch.autograd.Function):
    """What both modes share: the first four arguments of forward have gradients."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, weight, bias, *_ = needs = ctx.needs_input_grad
        dx, dresidual, dweight, dbias = _gradients(ctx, dy, needs)
        return (
            *(dx if x else None, dresidual if residual else None),
            *(dweight if weight else None, dbias if bias else None),
            *(None, None, None),
        )


class _Train(_Differentiable):
    """With the batch's own statistics; takes four of Arguments for autograd, Arguments, Running and Ready."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _, _, weight, bias, given, running, ready = arguments
        y, mean, invstd, mask = steps.forward(given, running, ready)
        ctx.save_for_backward(given.x, weight, bias, mean, invstd, mask)
        ctx.how = (given.eps, given.relu, False, ready)
        return y


class _Evaluate(_Differentiable):
    """With statistics that are known; takes what `_Train` does."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        _, _, weight, bias, given, running, ready = arguments
        y, mask = steps.evaluate(given, running.mean, running.var, given.masked, ready)
        # Training may go on before backward, and change what the statistics are.
        mean, var = torch.stack([running.mean, running.var])
        ctx.save_for_backward(given.x, weight, bias, mean, var, mask)
        ctx.how = (given.eps, given.relu, True, ready)
        return y


def _direct(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Its `apply` for tensors that are `plain`: what torch does before is for others."""
    call: Any = super(torch.autograd.Function, function)
    found: Callable[..., Any] = call.apply
    return found


_train, _evaluate = _direct(_Train), _direct(_Evaluate)


def _gradients(ctx: Any, dy: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Those of x, residual, weight and bias, whether they are wanted or not."""
    x, weight, bias, mean, second, mask = ctx.saved_tensors
    eps, relu, frozen, ready = ctx.how
    x = x.contiguous(memory_format=ready.order)  # hooks may have saved it in another one
    if frozen:  # what was saved is the variance
        mean, second = reference.numbers(mean), reference.inverse_deviation(second, eps)
    saved = Saved(x, mask, weight, bias, mean, second, relu)
    if not torch._C._has_storage(dy):  # many at once: is_grads_batched, or jacobian(vectorize=True)
        dz = steps.dz_of(saved, dy)
        dx, dweight, dbias = reference.gradients(x, dz, weight, eps, (mean, second) if frozen else None)
        return dx, dz, dweight, dbias
    needs_residual = relu and needs[1]  # without a ReLU, what the residual gets is dy itself
    dense = kernels.ordered(dy, ready.order)
    if torch.is_grad_enabled():  # for derivatives of these gradients
        wanted = (needs[0], needs_residual, needs[2], needs[3])
        found = _Gradients.apply(dense, *saved, eps, frozen, wanted)  # type: ignore[no-untyped-call]
    else:
        found = steps.backward(saved, dense, frozen, needs_residual, ready)
    return found if relu else (found[0], dy, found[2], found[3])


class _Gradients(torch.autograd.Function):
    """The gradients as a function of dy, x and weight, differentiable again through reference.py.

    Takes dy, `*Saved`, eps, frozen, and which gradients are wanted.
    """

    @staticmethod
    def forward(ctx: Any, dy: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        saved = Saved(*arguments[:7])
        ctx.eps, ctx.frozen, needs = arguments[7:]
        ctx.save_for_backward(dy, *saved[:6])
        ctx.relu, ctx.order = saved.relu, kernels.order_of(saved.x)
        found = steps.backward(saved, dy, ctx.frozen, needs[1])
        # torch refuses a gradient of what was no tensor.
        return tuple(each if needed else None for each, needed in zip(found, needs, strict=True))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, mask, weight, bias, mean, invstd = ctx.saved_tensors
        found: list[Tensor | None] = [None] * 11
        places = [place for place in (0, 1, 3) if ctx.needs_input_grad[place]]
        once_more = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views, so that dy as a function of x is not gone through a second time.
            x, dy = (each.view_as(each).contiguous(memory_format=ctx.order) for each in (x, dy))
            weight = None if weight is None else weight.view_as(weight)
            dz = steps.dz_of(Saved(x, mask, weight, bias, mean, invstd, ctx.relu), dy)
            statistics = (mean, invstd) if ctx.frozen else None
            dx, dweight, dbias = reference.gradients(x, dz, weight, ctx.eps, statistics)
            pairs = [
                (result, gradient.to(result.dtype))
                for result, gradient in zip((dx, dz, dweight, dbias), outer, strict=True)
                if gradient is not None and result.requires_grad
            ]
            inputs = {0: dy, 1: x, 3: weight}
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
