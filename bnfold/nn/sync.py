"""Batch norm over the batches of all processes: one all-gather of count, mean and squared deviations.

Local batches may differ in size, and be empty. In eval mode, and with one process, it is a batch norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bnfold.nn import reference, steps
from bnfold.nn.arguments import Arguments, Saved
from bnfold.nn.batch_norm import Fused, add_activate
from bnfold.nn.kernel_calls import dense, order_of
from bnfold.nn.moments import gathered

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm(Fused, nn.SyncBatchNorm):
    """Over inputs (N, C, ...) of every rank of `process_group`; see `torch.nn.SyncBatchNorm` and `Fused`.

    Any device that the group's backend serves, the CPU (gloo) included. All ranks must call it, with the same
    number of channels.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
        **options: Any,
    ) -> None:
        options |= {"process_group": process_group, "activation": activation}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """As torch's, but what it gives are batch norms of this class; activations are kept."""
        every = module.named_modules(remove_duplicate=False)
        activations = {name: part.activation for name, part in every if isinstance(part, Fused)}
        found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)  # type: ignore[no-untyped-call]
        for name, part in found.named_modules(remove_duplicate=False):
            if type(part) is nn.SyncBatchNorm:
                part.__class__ = cls
                part.activation = activations.get(name)  # type: ignore[assignment]
        return found

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """The whole, if there are other ranks to hear of or kernels that take it."""
        group = self.process_group or (
            dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        )
        if not self.training or group is None or dist.get_world_size(group) == 1:
            return super()._fused(x, residual)
        if x.shape[1] != self.num_features or not self.num_features:
            raise ValueError(f"SyncBatchNorm expected {self.num_features} channels, got {x.shape[1]}")
        momentum: Any = self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / self.num_batches_tracked.double() if momentum is None else momentum
        momentum = 0.0 if momentum is None else momentum
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        x = dense(x)
        alike = residual is None or residual.dtype == x.dtype
        added = dense(residual, like=x) if residual is not None and alike else None
        weight, bias = (None if each is None else each.contiguous() for each in (self.weight, self.bias))
        given = Arguments(x, added, weight, bias, self.eps, alike and self.activation == "relu")
        y: Tensor = _Synchronized.apply(*given, *running, momentum, group)  # type: ignore[no-untyped-call]
        return y if alike else add_activate(self, y, residual)


class _Synchronized(torch.autograd.Function):
    """`act((x - mean) * invstd * weight + bias + residual)` with the moments of all ranks' inputs.

    Takes `*Arguments`, running mean and variance, momentum (a number or a tensor), and the group.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        given, (running_mean, running_var, momentum, group) = Arguments(*arguments[:6]), arguments[6:]
        x = given.x
        total = gathered(steps.moments_of(x), group)
        if running_mean is not None and running_var is not None:
            # Without a branch on the count, which would wait for the device.
            part = momentum * (total.count > 0)
            running_mean += (part * (total.mean - running_mean)).to(running_mean.dtype)
            running_var += (part * (total.variance() - running_var)).to(running_var.dtype)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, var = total.mean.to(kind), (total.m2 / total.count.clamp(min=1)).to(kind)
        y, mask = steps.evaluate(given, mean, var, given.masked)
        invstd = reference.inverse_deviation(var, given.eps)
        ctx.save_for_backward(x, given.weight, given.bias, mean, invstd, total.count, mask)
        ctx.group, ctx.relu, ctx.order = group, given.relu, order_of(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, count, mask = ctx.saved_tensors
        _, needs_residual, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        x = x.contiguous(memory_format=ctx.order)  # hooks may have saved it in another one
        dy = dense(dy, like=x)
        saved = Saved(x, mask, weight, bias, mean, invstd, ctx.relu)
        here = torch.stack([each.double() for each in steps.sums(saved, dy)])
        means = here.clone()
        dist.all_reduce(means, group=ctx.group)
        means = (means / count.clamp(min=1)).to(mean.dtype)
        dx, dresidual = steps.spread(saved, dy, means[0], means[1], needs_residual)
        if needs_residual and not ctx.relu:
            dresidual = dy
        d_weight = (here[1] * invstd).to(weight.dtype) if needs_weight else None
        d_bias = here[0].to(bias.dtype) if needs_bias else None
        return dx, dresidual, d_weight, d_bias, *[None] * 6
