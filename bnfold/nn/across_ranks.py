"""The steps of a training batch norm over the ranks of a group: one all-gather, and one all-reduce backward.

As steps.py they know nothing of autograd: sync.py calls them in eager mode, operators.py under torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bnfold.nn import reference, steps
from bnfold.nn.arguments import Arguments, Running, Saved
from bnfold.nn.moments import gathered

__all__ = ["backward", "forward"]


def forward(
    given: Arguments, running: Running, group: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """With the moments of all ranks' inputs: y, mean, invstd, count, and the mask if one is needed.

    running: its batches were counted already.
    """
    x, momentum = given.x, running.momentum
    total = gathered(steps.moments_of(x), group)
    if running.mean is not None and running.var is not None:
        averaged = running.batches is not None and momentum < 0
        share: Any = 1 / running.batches.double() if averaged else momentum  # type: ignore[union-attr]
        part = share * (total.count > 0)  # without a branch on the count, which would wait for the device
        for kept, new in ((running.mean, total.mean), (running.var, total.variance())):
            kept.copy_((1 - part) * kept.double() + part * new)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, var = total.mean.to(kind), (total.m2 / total.count.clamp(min=1)).to(kind)
    y, mask = steps.evaluate(given, mean, var, given.masked)
    return y, mean, reference.inverse_deviation(var, given.eps), total.count, mask


def backward(
    saved: Saved, dy: Tensor, count: Tensor, needs_residual: bool, group: Any
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Dx, the residual's gradient where it is wanted and not dy itself, and this rank's dweight and dbias."""
    here = torch.stack([each.double() for each in steps.sums(saved, dy)])
    means = here.clone()
    dist.all_reduce(means, group=group)
    means = (means / count.clamp(min=1)).to(saved.mean.dtype)
    dx, dresidual = steps.spread(saved, dy, means[0], means[1], needs_residual)
    kind = next((each.dtype for each in (saved.weight, saved.bias) if each is not None), saved.mean.dtype)
    return dx, dresidual, (here[1] * saved.invstd).to(kind), here[0].to(kind)
