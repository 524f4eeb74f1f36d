"""Batch norm, sum and activation as one differentiable function, on the kernels where they run.

In eager mode an autograd.Function calls the kernels itself, which costs least; torch.compile sees the
operators of operators.py. Second derivatives are those of reference.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnfold.kernels.compile import KernelError
from bnfold.nn import kernel_calls as kernels
from bnfold.nn import operators, reference, steps
from bnfold.nn.arguments import Arguments, Running, Saved

__all__ = ["batch_norm", "usable"]


def batch_norm(given: Arguments, running: Running, training: bool) -> Tensor:
    """The batch norm on the kernels; see `usable`.

    Args:
        given: in any order of dimensions, dense or not.
        running: without statistics only in training.
        training: whether mean and variance are the batch's own.

    Returns:
        y as x, dense and in the same order of dimensions.
    """
    x = kernels.dense(given.x)
    residual = None if given.residual is None else kernels.dense(given.residual, like=x)
    given = Arguments(x, residual, *given[2:])
    if torch.compiler.is_compiling():
        return operators.batch_norm(given, running, training)
    if training:
        return _Train.apply(*given, *running)  # type: ignore[no-any-return, no-untyped-call]
    return _Evaluate.apply(*given, running.mean, running.var, torch.is_grad_enabled())  # type: ignore[no-any-return, no-untyped-call]


def usable(x: Tensor, residual: Tensor | None, *parameters: Tensor | None) -> bool:
    """Whether the kernels take these tensors; the parameters are weight, bias and running statistics, if any.

    Anything else is torch's: other devices and types, empty batches, parameters that are not dense or of
    another number of channels, forward-mode derivatives, torch.func, exported and traced graphs, tensors of
    other classes.
    """
    if torch.compiler.is_exporting() or not _device_usable(x.device):
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
        and (torch.compiler.is_compiling() or _plain(activations + given))
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


class _Differentiable(torch.autograd.Function):
    """What both modes share: forward ends with `_save`, and its first four arguments have gradients."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dy), *[None] * (len(ctx.needs_input_grad) - 4)


class _Train(_Differentiable):
    """With the batch's own statistics; takes `*Arguments, *Running`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        given = Arguments(*arguments[:6])
        y, mean, invstd, mask = steps.forward(given, Running(*arguments[6:]))
        _save(ctx, given, mean, invstd, mask, frozen=False)
        return y


class _Evaluate(_Differentiable):
    """With statistics that are known; takes `*Arguments`, mean, var, and whether gradients are enabled."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        given, (mean, var, enabled) = Arguments(*arguments[:6]), arguments[6:]
        wanted = enabled and any(ctx.needs_input_grad)
        y, mask = steps.evaluate(given, mean, var, given.masked and wanted)
        if wanted:  # training may go on before backward, and change what the statistics are
            mean, var = torch.stack([mean, var])
        _save(ctx, given, mean, var, mask, frozen=True)
        return y


def _save(
    ctx: Any, given: Arguments, mean: Tensor, second: Tensor, mask: Tensor | None, frozen: bool
) -> None:
    ctx.save_for_backward(given.x, given.weight, given.bias, mean, second, mask)
    ctx.eps, ctx.relu, ctx.frozen, ctx.order = given.eps, given.relu, frozen, kernels.order_of(given.x)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Those of x, residual, weight and bias, where they are wanted."""
    x, weight, bias, mean, second, mask = ctx.saved_tensors
    x = x.contiguous(memory_format=ctx.order)  # hooks may have saved it in another one
    if ctx.frozen:  # what was saved is the variance
        mean, second = reference.numbers(mean), reference.inverse_deviation(second, ctx.eps)
    saved = Saved(x, mask, weight, bias, mean, second, ctx.relu)
    needs = ctx.needs_input_grad[:4]
    if not torch._C._has_storage(dy):  # many at once: is_grads_batched, or jacobian(vectorize=True)
        dz = steps.dz_of(saved, dy)
        dx, dweight, dbias = reference.gradients(
            x, dz, weight, ctx.eps, (mean, second) if ctx.frozen else None
        )
        return _wanted((dx, dz, dweight, dbias), needs)
    # Without a ReLU, what the residual gets is dy itself.
    found = _Gradients.apply(  # type: ignore[no-untyped-call]
        kernels.dense(dy, like=x), *saved, ctx.eps, ctx.frozen, (needs[0], needs[1] and ctx.relu, *needs[2:])
    )
    return found if ctx.relu else _wanted((found[0], dy, *found[2:]), needs)


def _wanted(found: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """None in place of gradients that nobody wants: torch refuses one of what was no tensor."""
    return tuple(each if needed else None for each, needed in zip(found, needs, strict=True))


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
        return _wanted(found, needs)

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
