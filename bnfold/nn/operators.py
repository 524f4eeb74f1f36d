"""The steps as operators of torch's library, `torch.ops.bnfold.*`: what torch.compile sees of them.

Eager code does not come here: calling an operator costs more than launching a kernel. Where a step gives
nothing, its operator gives an empty tensor. The operator that changes running statistics cannot have a
derivative registered (torch takes that for pure ones only), so both forward operators bring a kernel of the
autograd key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnfold.nn import across_ranks, reference, steps
from bnfold.nn import kernel_calls as kernels
from bnfold.nn.arguments import Arguments, Running, Saved

__all__ = ["batch_norm", "sync_batch_norm"]

_PARAMETERS = "Tensor? weight, Tensor? bias"
_SCHEMAS = {
    "batch_norm_train": f"(Tensor x, Tensor? residual, {_PARAMETERS}, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor(c!)? batches, float eps, float momentum, bool relu) "
    "-> (Tensor y, Tensor mean, Tensor invstd, Tensor mask)",
    "batch_norm_evaluate": f"(Tensor x, Tensor? residual, {_PARAMETERS}, Tensor mean, Tensor var, float eps, "
    "bool relu) -> (Tensor y, Tensor mask)",
    "batch_norm_backward": f"(Tensor x, Tensor dy, Tensor mask, {_PARAMETERS}, Tensor mean, Tensor invstd, "
    "bool relu, bool frozen, bool needs_residual) "
    "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    "sync_batch_norm_train": f"(Tensor x, Tensor? residual, {_PARAMETERS}, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor? batches, float eps, float momentum, bool relu, int need, str group) "
    "-> (Tensor y, Tensor mean, Tensor invstd, Tensor ranks, Tensor mask)",
    "sync_batch_norm_backward": f"(Tensor x, Tensor dy, Tensor mask, {_PARAMETERS}, Tensor mean, "
    "Tensor invstd, bool relu, Tensor ranks, int need, bool needs_residual, str group) "
    "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
}
_library: Any = torch.library.Library("bnfold", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema)


def batch_norm(given: Arguments, running: Running, training: bool) -> Tensor:
    """As `functional.batch_norm`, for dense tensors."""
    operators: Any = torch.ops.bnfold
    tensors, eps, relu = given[:4], given.eps, given.relu
    if training:
        y, *_ = operators.batch_norm_train(*tensors, *running[:3], eps, running.momentum, relu)
    else:
        y, _ = operators.batch_norm_evaluate(*tensors, *running[:2], eps, relu)
    return y  # type: ignore[no-any-return]


def sync_batch_norm(given: Arguments, running: Running, need: int, group: str) -> Tensor:
    """Over the ranks of the group of that name; running: its batches were counted already."""
    operators: Any = torch.ops.bnfold
    arguments = (*given[:4], *running[:3], given.eps, running.momentum, given.relu, need, group)
    y, *_ = operators.sync_batch_norm_train(*arguments)
    return y  # type: ignore[no-any-return]


def _train(*arguments: Any) -> tuple[Tensor, ...]:
    x, residual, weight, bias, running_mean, running_var, batches, eps, momentum, relu = arguments
    given = _aligned(Arguments(x, residual, weight, bias, eps, relu))
    running = Running(running_mean, running_var, batches, momentum)
    y, mean, invstd, mask = steps.forward(given, running)
    return y, mean, invstd, _given(mask, given.x)


def _evaluate(*arguments: Any) -> tuple[Tensor, ...]:
    x, residual, weight, bias, mean, var, eps, relu = arguments
    given = _aligned(Arguments(x, residual, weight, bias, eps, relu))
    y, mask = steps.evaluate(given, mean, var, given.masked)
    return y, _given(mask, given.x)


def _backward(x: Tensor, dy: Tensor, mask: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, frozen, needs_residual = rest
    saved = Saved(x, mask if mask.numel() else None, *parameters)
    dx, dresidual, dweight, dbias = steps.backward(saved, dy, frozen, needs_residual)
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _sync_train(*arguments: Any) -> tuple[Tensor, ...]:
    x, residual, weight, bias, mean, var, batches, eps, momentum, relu, need, group = arguments
    given = _aligned(Arguments(x, residual, weight, bias, eps, relu))
    running = Running(mean, var, batches, momentum)
    y, mean, invstd, ranks, mask = across_ranks.forward(given, running, need, _group(group))
    # Operators may not return parts of one tensor, as the moments of a single rank can be.
    return y, mean.clone(), invstd, ranks, _given(mask, given.x)


def _sync_backward(x: Tensor, dy: Tensor, mask: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, ranks, need, needs_residual, group = rest
    saved = Saved(x, mask if mask.numel() else None, *parameters)
    found = across_ranks.backward(saved, dy, ranks, need, needs_residual, _group(group))
    dx, dresidual, dweight, dbias = found
    return dx, x.new_empty(0) if dresidual is None else dresidual, dweight, dbias


def _group(name: str) -> Any:
    c10d: Any = torch.distributed.distributed_c10d
    return c10d._resolve_process_group(name)


def _aligned(given: Arguments) -> Arguments:
    """So that the mask has the size that the shapes alone tell."""
    if given.residual is None or not given.relu:
        return given
    return given._replace(x=kernels.aligned(given.x), residual=kernels.aligned(given.residual))


def _given(mask: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=torch.uint8) if mask is None else mask


def _fake_train(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    vector = x.new_empty(x.shape[1], dtype=_wide(x))
    return torch.empty_like(x), vector, torch.empty_like(vector), _fake_mask(x, residual, rest[-1])


def _fake_evaluate(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), _fake_mask(x, residual, rest[-1])


def _fake_backward(
    x: Tensor, dy: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    relu, _, needs_residual = rest[-3:]
    given = weight if weight is not None else bias
    vector = x.new_empty(x.shape[1], dtype=_wide(x) if given is None else given.dtype)
    dresidual = torch.empty_like(x) if relu and needs_residual else x.new_empty(0)
    return torch.empty_like(x), dresidual, vector, torch.empty_like(vector)


def _fake_sync_train(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    y, mean, invstd, mask = _fake_train(x, residual, *rest[:-2])
    ranks = x.new_empty(1 + torch.distributed.get_world_size(_group(rest[-1])), dtype=torch.float64)
    return y, mean, invstd, ranks, mask


def _fake_sync_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *others, relu, _, _, needs_residual, _ = arguments
    return _fake_backward(*others, relu, False, needs_residual)


def _fake_mask(x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    size = kernels.mask_bytes(x) if relu and residual is not None else 0
    return x.new_empty(size, dtype=torch.uint8)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Differentiable(torch.autograd.Function):
    """Calls an operator below autograd; the derivative calls `batch_norm_backward`."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if ctx.frozen:  # what was saved is the variance
            mean, invstd = reference.numbers(mean), reference.inverse_deviation(invstd, ctx.eps)
        dx, dresidual, dweight, dbias = torch.ops.bnfold.batch_norm_backward(
            *(x, kernels.dense(dy, like=x), mask, weight, bias, mean, invstd), ctx.relu, ctx.frozen, needs[1]
        )
        found = (dx, dresidual if ctx.relu else dy, dweight, dbias)
        wanted = [each if needed else None for each, needed in zip(found, needs, strict=False)]
        return *wanted, *[None] * (len(needs) - 4)


class _Train(_Differentiable):
    """With the batch's own statistics."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            y, mean, invstd, mask = torch.ops.bnfold.batch_norm_train(*arguments)
        x, _, weight, bias, *_ = arguments
        ctx.save_for_backward(x, weight, bias, mean, invstd, mask)
        ctx.mark_non_differentiable(mean, invstd, mask)
        ctx.relu, ctx.frozen = arguments[-1], False
        return y, mean, invstd, mask


class _Evaluate(_Differentiable):
    """With statistics that are known."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            y, mask = torch.ops.bnfold.batch_norm_evaluate(*arguments)
        x, _, weight, bias, mean, var, ctx.eps, ctx.relu = arguments
        ctx.save_for_backward(x, weight, bias, mean, var, mask)
        ctx.mark_non_differentiable(mask)
        ctx.frozen = True
        return y, mask


class _SyncTrain(torch.autograd.Function):
    """With the statistics of all ranks; the derivative calls `sync_batch_norm_backward`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            found = torch.ops.bnfold.sync_batch_norm_train(*arguments)
        _, *kept = found
        x, _, weight, bias, *_, ctx.relu, ctx.need, ctx.group = arguments
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.mark_non_differentiable(*kept)
        return found

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, ranks, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dresidual, *others = torch.ops.bnfold.sync_batch_norm_backward(
            *(x, kernels.dense(dy, like=x), mask, weight, bias, mean, invstd),
            *(ctx.relu, ranks, ctx.need, needs[1], ctx.group),
        )
        found = (dx, dresidual if ctx.relu else dy, *others)
        wanted = [each if needed else None for each, needed in zip(found, needs, strict=False)]
        return *wanted, *[None] * (len(needs) - 4)


def _above(step: Callable[..., tuple[Tensor, ...]], function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator for autograd: the step alone where no gradient is wanted, as below torch.compile."""

    def call(*arguments: Any) -> Any:
        if not torch.is_grad_enabled() and kernels.plain(*arguments[:6]):
            return step(*arguments)
        return function(*arguments)

    return call


for _name, _step, _fake, _function in (
    ("batch_norm_train", _train, _fake_train, _Train.apply),
    ("batch_norm_evaluate", _evaluate, _fake_evaluate, _Evaluate.apply),
    ("batch_norm_backward", _backward, _fake_backward, None),
    ("sync_batch_norm_train", _sync_train, _fake_sync_train, _SyncTrain.apply),
    ("sync_batch_norm_backward", _sync_backward, _fake_sync_backward, None),
):
    _library.impl(_name, _step, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bnfold::{_name}", _fake, lib=_library)
    if _function is not None:
        _library.impl(_name, _above(_step, _function), "Autograd")
