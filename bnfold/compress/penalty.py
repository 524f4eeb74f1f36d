"""What to add to the loss, so that training itself says which channels it can do without."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnfold.errors import UsageError

__all__ = ["gamma_penalty"]

_Norm = nn.modules.batchnorm._BatchNorm
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and DistributedDataParallel; torch.compile


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
    found = {_plain(name): part for name, part in module.named_modules() if isinstance(part, _Norm)}
    scales = {name: part.weight for name, part in found.items() if isinstance(part.weight, Tensor)}
    if not scales:
        raise UsageError(f"{type(module).__name__} has no batch norm with a scale to penalize")
    chosen = list(scales.values())
    if only is not None:
        for name in only:
            if _plain(name) not in scales:
                some = ", ".join([*scales][:8]) + (", ..." if len(scales) > 8 else "")
                raise UsageError(f"only {name!r}: no batch norm with a scale. Note: valid choices are {some}")
        chosen = [scales[name] for name in dict.fromkeys(map(_plain, only))]
    for name, scale in scales.items():
        if is_lazy(scale):
            raise UsageError(f"{name} is lazy and holds no scale yet: run the module once")
    free = [scale for scale in chosen if scale.requires_grad]
    device = next(iter(scales.values())).device
    total = torch.zeros((), dtype=torch.float32, device=device)
    for scale in free:
        wide = scale if scale.dtype == torch.float64 else scale.float()
        total = total + wide.abs().sum().to(device)
    return total


def _plain(name: str) -> str:
    """A module's name without what wrappers put before and into it."""
    for wrapper in _WRAPPERS:
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
        if wrapper == "_orig_mod.":  # a part may be compiled on its own
            name = name.replace(f".{wrapper}", ".")
    return name
