"""Modules around a module: what runs it on several devices, or compiled, and computes nothing of its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["inner_name", "unwrapped", "plain_module"]


def inner_name(module: Any) -> str:
    """The attribute in which DataParallel, DistributedDataParallel or torch.compile keep the module that they
    wrap; "" for any other module.
    """
    from torch import nn

    if "_orig_mod" in getattr(module, "_modules", ()):
        return "_orig_mod"
    return "module" if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else ""


def unwrapped(module: Any) -> Any:
    """The module inside all wrappers, in whatever order they are."""
    while name := inner_name(module):
        module = getattr(module, name)
    return module


def plain_module(module: Any, function: str) -> Any:
    """What is inside all wrappers, for a function that needs all of every parameter.

    Raises:
        UsageError: parameters are spread over processes (FSDP, tensor parallel).
    """
    from torch import nn

    module = unwrapped(module)
    if isinstance(module, nn.Module) and _spread(module):
        raise UsageError(
            f"{function} needs whole parameters, and those of {type(module).__name__} are spread over "
            "processes: gather them (torch.distributed.checkpoint.state_dict.get_model_state_dict, with "
            "full_state_dict=True), and give a network that holds all of them"
        )
    return module


def _spread(module: nn.Module) -> bool:
    # Who has not loaded these packages has nothing of theirs, and loading them takes long.
    tensors, fsdp = map(sys.modules.get, ("torch.distributed.tensor", "torch.distributed.fsdp"))
    dtensor, wrapper = getattr(tensors, "DTensor", ()), getattr(fsdp, "FullyShardedDataParallel", ())
    parts, parameters = module.modules(), module.parameters()
    return any(isinstance(p, dtensor) for p in parameters) or any(isinstance(p, wrapper) for p in parts)
