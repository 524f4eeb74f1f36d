"""Batch norm over the batches of all processes: one all-gather of count, mean and squared deviations.

Local batches may differ in size, and be empty. In eval mode, and with one process, it is a batch norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bnfold.errors import UsageError
from bnfold.nn import across_ranks, operators
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, Fused, add_activate
from bnfold.nn.kernel_calls import dense, order_of

__all__ = ["SYNCHRONIZED", "SyncBatchNorm", "ranks_of"]

_Norm = nn.modules.batchnorm._BatchNorm
# Their forward is a batch norm and nothing else, so that they can become another class.
_PLAIN = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
)


class _Nothing:
    """Has what Python writes into every class."""

    annotated: None


# What a subclass may define and still be the class that it extends: how it is made.
_SAME = {"__init__", *vars(_Nothing)}


class SyncBatchNorm(Fused):
    """Over inputs (N, C, ...) of every rank of `process_group`; see `torch.nn.SyncBatchNorm` and `Fused`.

    Any device that the group's backend serves, the CPU (gloo) included. All ranks must call it, with the same
    number of channels, and all must run backward if one does: a rank may leave it out only if no rank's input
    needs a gradient. It is no subclass of torch's, which DistributedDataParallel refuses on the CPU.

    Raises (in backward, on the CPU):
        UsageError: this rank's input needs a gradient, and on another rank nothing does. A GPU waits there.
    """

    process_group: Any = None

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
        options |= {"activation": activation}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Make every batch norm of torch's and of this package's in a module one of this class.

        They become so in place: names, parameters, buffers, hooks, modes, activations and the identity of
        modules with two names stay, and a module that is a batch norm itself changes too.

        Args:
            module: it is changed.
            process_group: the ranks that are to share statistics; None: all.

        Returns:
            `module`.

        Raises:
            UsageError: a batch norm is of a class that does something of its own. Nothing was changed then.
        """
        norms = {part: name for name, part in module.named_modules() if isinstance(part, _Norm)}
        for part, name in norms.items():
            own = [] if isinstance(part, cls) else _own(type(part))
            if own:
                raise UsageError(
                    f"{name or 'the module'} is a {type(part).__name__}: a batch norm with "
                    f"{', '.join(own[:3])} of its own, which it would lose as a {cls.__name__}. Put a plain "
                    "batch norm in its place first, or convert only the submodules that have none"
                )
        for part in norms:
            if not isinstance(part, cls):
                part.__class__ = cls
            part.process_group = process_group
        return module

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.shape[1] == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def _fused(self, x: Tensor, residual: Tensor | None) -> Tensor | None:
        """The whole, if there are other ranks to hear of or kernels that take it."""
        one_statistic = (self.running_mean is None) != (self.running_var is None)
        if not self.training or ranks_of(self) == 1 or (one_statistic and self.track_running_stats):
            return super()._fused(x, residual)
        if x.shape[1] != self.num_features:
            raise ValueError(f"SyncBatchNorm expected {self.num_features} channels, got {x.shape[1]}")
        momentum, batches = self.momentum, self.num_batches_tracked if self.track_running_stats else None
        if batches is not None:
            batches.add_(1)
        if momentum is None:
            momentum = 0.0 if batches is None else -1.0
        kept = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        running = Running(*kept, batches, momentum)
        x = dense(x)
        alike = residual is None or residual.dtype == x.dtype
        added = dense(residual, like=x) if residual is not None and alike else None
        weight, bias = (None if each is None else each.contiguous() for each in (self.weight, self.bias))
        given = Arguments(x, added, weight, bias, self.eps, alike and self.activation == "relu")
        need = across_ranks.need_of(given)
        y: Tensor
        if torch.compiler.is_compiling():
            y = operators.sync_batch_norm(given, running, need, _group_of(self).group_name)
        else:
            y = _Synchronized.apply(*given, *running, need, _group_of(self))  # type: ignore[no-untyped-call]
        return y if alike else add_activate(self, y, residual)


SYNCHRONIZED = (SyncBatchNorm, nn.SyncBatchNorm)


def ranks_of(norm: nn.Module) -> int:
    """How many ranks share the statistics of a batch norm in training mode: 1 if it waits for no other."""
    group = _group_of(norm) if isinstance(norm, SYNCHRONIZED) else None
    return 1 if group is None else max(1, dist.get_world_size(group))


def _group_of(norm: Any) -> Any:
    world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    return norm.process_group or world


def _own(kind: type) -> list[str]:
    """What a class of batch norms defines beyond the plain class that it extends, `forward` first."""
    base = next(each for each in kind.__mro__ if each in (*_PLAIN, SyncBatchNorm, _Norm))
    found = {name for each in set(kind.__mro__) - set(base.__mro__) for name in each.__dict__}
    return sorted(found - _SAME, key=lambda name: (name != "forward", name))


class _Synchronized(torch.autograd.Function):
    """`act((x - mean) * invstd * weight + bias + residual)` with the moments of all ranks' inputs.

    Takes `*Arguments, *Running`, what this rank needs gradients for, and the group.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        given, running = Arguments(*arguments[:6]), Running(*arguments[6:-2])
        ctx.need, ctx.group = arguments[-2:]
        y, mean, invstd, ranks, mask = across_ranks.forward(given, running, ctx.need, ctx.group)
        ctx.save_for_backward(given.x, given.weight, given.bias, mean, invstd, ranks, mask)
        ctx.relu, ctx.order = given.relu, order_of(given.x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd, ranks, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        x = x.contiguous(memory_format=ctx.order)  # hooks may have saved it in another one
        dy = dense(dy, like=x)
        saved = Saved(x, mask, weight, bias, mean, invstd, ctx.relu)
        dx, dresidual, *others = across_ranks.backward(saved, dy, ranks, ctx.need, needs[1], ctx.group)
        found = (dx, dresidual if ctx.relu else dy, *others)
        return *(each if needed else None for each, needed in zip(found, needs, strict=True)), *[None] * 8
