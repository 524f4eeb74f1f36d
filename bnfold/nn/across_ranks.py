"""The steps of a training batch norm over the ranks of a group: one all-gather, and one all-reduce backward.

As steps.py they know nothing of autograd: sync.py calls them in eager mode, operators.py under torch.compile.

The all-reduce is for gradients of inputs. If one rank needs such a gradient all take part, and otherwise none
does: what each rank needs travels with the all-gather.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bnfold.errors import UsageError
from bnfold.nn import reference, steps
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.moments import gathered

__all__ = ["backward", "forward", "need_of"]

NO_BACKWARD, PARAMETERS, INPUT = 0, 1, 2  # what a rank needs gradients for


def need_of(given: Arguments) -> int:
    """What this rank needs gradients for: its input, its other arguments, or nothing (no backward comes)."""
    if not torch.is_grad_enabled():
        return NO_BACKWARD
    if given.x.requires_grad:
        return INPUT
    others = (given.residual, given.weight, given.bias)
    return PARAMETERS if any(each is not None and each.requires_grad for each in others) else NO_BACKWARD


def forward(
    given: Arguments, running: Running, need: int, group: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """With the moments of all ranks' inputs: y, mean, invstd, ranks, and the mask if one is needed.

    running: its batches were counted already. need: see `need_of`. ranks: shape (1 + ranks,), float64: the
    number of values of each channel in all inputs, and the need of each rank.
    """
    x, momentum = given.x, running.momentum
    total, needs = gathered(steps.moments_of(x), group, need)
    if running.mean is not None and running.var is not None:
        averaged = running.batches is not None and momentum < 0
        share: Any = 1 / running.batches.double() if averaged else momentum  # type: ignore[union-attr]
        part = share * (total.count > 0)  # without a branch on the count, which would wait for the device
        for kept, new in ((running.mean, total.mean), (running.var, total.variance())):
            kept.copy_((1 - part) * kept.double() + part * new)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var = total.mean.to(kind), (total.m2 / total.count.clamp(min=1)).to(kind)
    y, mask = steps.evaluate(given, mean, var, given.masked)
    ranks = torch.cat([total.count[None], needs])
    return y, mean, reference.inverse_deviation(var, given.eps), ranks, mask


def backward(
    saved: Saved, dy: Tensor, ranks: Tensor, need: int, needs_residual: bool, group: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Dx, the residual's gradient where it is wanted and not dy itself, and this rank's dweight and dbias.

    Dx means nothing where no rank needs it.

    Raises:
        UsageError: a rank for which no backward comes would be waited for.
    """
    here = torch.stack([each.double() for each in steps.sums(saved, dy)])
    means = here.clone()
    if _together(ranks[1:], need):
        dist.all_reduce(means, group=group)
    means = (means / ranks[0].clamp(min=1)).to(saved.mean.dtype)
    dx, dresidual = steps.spread(saved, dy, means[0], means[1], needs_residual)
    kind = next((each.dtype for each in (saved.weight, saved.bias) if each is not None), saved.mean.dtype)
    return dx, dresidual, (here[1] * saved.invstd).to(kind), here[0].to(kind)


def _together(needs: Tensor, own: int) -> bool:
    """Whether the ranks add up their sums. All find the same.

    On a GPU only a rank that has no need of it looks, since that waits for the GPU; and none does while a
    graph is captured, which takes it that all ranks are alike.
    """
    captured = needs.is_cuda and torch.cuda.is_current_stream_capturing()
    if captured or (needs.device.type != "cpu" and own == INPUT):
        return own == INPUT
    found = needs.tolist()
    if INPUT in found and NO_BACKWARD in found:
        idle = [rank for rank, need in enumerate(found) if need == NO_BACKWARD]
        raise UsageError(
            f"backward of a SyncBatchNorm would wait for ever for rank {', '.join(map(str, idle))} of its "
            "group: neither the input nor a parameter needs a gradient there, and the input of another rank "
            "does. Let the input need a gradient on all of these ranks or on none, and none run under no_grad"
        )
    return INPUT in found
