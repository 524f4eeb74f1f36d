"""Batch norm over the batches of all processes: one all-gather of count, mean and squared deviations.

Local batches may differ in size, and be empty. In eval mode, and with one process, it is a batch norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bnfold.nn.batch_norm import Fused
from bnfold.nn.moments import gathered, moments

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
        options["process_group"] = process_group
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            activation=activation,
            **options,
        )

    def normalized(self, input: Tensor) -> Tensor:
        """The batch norm alone."""
        group = self.process_group or (
            dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        )
        if not self.training or group is None or dist.get_world_size(group) == 1:
            return nn.modules.batchnorm._BatchNorm.forward(self, input)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        momentum: Any = self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / self.num_batches_tracked.double() if momentum is None else momentum
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        y: Tensor = _Synchronized.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, *running, self.eps, momentum, group
        )
        return y


class _Synchronized(torch.autograd.Function):
    """`y = (x - mean) * invstd * weight + bias` with the moments of all ranks' inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: Any,
        group: Any,
    ) -> Tensor:
        total = gathered(moments(x), group)
        if running_mean is not None and running_var is not None and bool(total.count > 0):
            running_mean += momentum * (total.mean - running_mean).to(running_mean.dtype)
            running_var += momentum * (total.variance() - running_var).to(running_var.dtype)
        invstd = (total.m2 / total.count.clamp(min=1) + eps).rsqrt()
        y = (x - _wide(total.mean, x)) * _wide(invstd if weight is None else invstd * weight, x)
        if bias is not None:
            y = y + _wide(bias, x)
        ctx.save_for_backward(x, weight, total.mean, invstd, total.count)
        ctx.group, ctx.has_bias = group, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        axes = [axis for axis in range(x.dim()) if axis != 1]
        normal = (x - _wide(mean, x)) * _wide(invstd, x)
        sums = torch.stack([dy.sum(axes, dtype=torch.float64), (dy * normal).sum(axes, dtype=torch.float64)])
        d_weight = sums[1].to(weight.dtype) if weight is not None else None
        d_bias = sums[0].to(dy.dtype if weight is None else weight.dtype) if ctx.has_bias else None
        means = sums.clone()
        dist.all_reduce(means, group=ctx.group)
        means /= count.clamp(min=1)
        scale = invstd if weight is None else invstd * weight
        dx = (dy - _wide(means[0], x) - normal * _wide(means[1], x)) * _wide(scale, x)
        return dx, d_weight, d_bias, None, None, None, None, None


def _wide(vector: Tensor, x: Tensor) -> Tensor:
    """One number for each channel, in the type of x and against its shape."""
    return vector.to(x.dtype).reshape((1, -1) + (1,) * (x.dim() - 2))
