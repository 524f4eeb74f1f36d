"""What to add to the loss, so that training itself says which channels it can do without."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bnfold.errors import UsageError
from bnfold.options import known
from bnfold.wrappers import unwrapped

__all__ = ["gamma_penalty"]

_Norm = nn.modules.batchnorm._BatchNorm


def gamma_penalty(module: nn.Module, *, only: Collection[str] | None = None) -> Tensor:
    """The sum of |gamma| over the channels of a module's batch norms, to be added to the loss.

    That is `loss + 1e-4 * gamma_penalty(net)`, say. The gradient is the sign of each gamma, and 0 at 0, where
    a gamma rests. Batch norms without gamma, and those whose gamma is frozen (`requires_grad` False), do not
    count.

    Args:
        module: it may be wrapped (DataParallel, DistributedDataParallel, torch.compile), or be called where
            torch.compile traces.
        only: names of the batch norms that count, as `prunable` gives them; None: all. A penalty on a batch
            norm whose channels cannot be removed gains nothing.

    Returns:
        A scalar of the widest type among the gammas (float32 at least), on the device of the first; 0 if all
        are frozen.

    Raises:
        UsageError: there is no batch norm with a gamma, or no batch norm of such a name.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """
    inner = unwrapped(module)
    found = {_plain(name): part for name, part in inner.named_modules() if isinstance(part, _Norm)}
    scales = {name: part.weight for name, part in found.items() if isinstance(part.weight, Tensor)}
    if not scales:
        raise UsageError(f"{type(module).__name__} has no batch norm with a scale to penalize")
    for name, scale in scales.items():
        if isinstance(scale, UninitializedParameter):
            raise UsageError(f"{name} is lazy and holds no scale yet: run the module once")
    names = list(scales) if only is None else list(dict.fromkeys(map(_plain, only)))
    known("only", names, list(scales), "batch norm with a scale")
    total = torch.zeros((), dtype=torch.float32, device=next(iter(scales.values())).device)
    for scale in (scales[name] for name in names):
        if scale.requires_grad:
            wide = scale if scale.dtype == torch.float64 else scale.float()
            total = total + wide.abs().sum().to(total.device)
    return total


def _plain(name: str) -> str:
    """A name without the marks of torch.compile, which may be around any part."""
    return name.removeprefix("_orig_mod.").replace("._orig_mod.", ".")
