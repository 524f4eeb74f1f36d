"""This package's batch norms in place of torch's."""

from __future__ import annotations

from torch import nn

from bnfold.errors import UsageError
from bnfold.nn.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, Fused
from bnfold.nn.fuse import fused
from bnfold.nn.sync import SyncBatchNorm

__all__ = ["convert"]

_OURS: dict[type, type[Fused]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


def convert(module: nn.Module, fuse_activations: bool = False) -> nn.Module:
    """Make every torch batch norm in a module one of this package's.

    They become so in place: names, parameters, buffers, hooks and modes stay. Subclasses are left alone: they
    do something of their own.

    Args:
        module: it is changed.
        fuse_activations: also merge a following ReLU, and the addition between, into each batch norm. That
            changes calls, so that the result is a `torch.fx.GraphModule`, whose state_dict is the module's.

    Returns:
        `module`, or the graph module.

    Raises:
        UsageError: calls are to be merged, and torch.fx cannot trace the module.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"convert takes a torch.nn.Module, not {type(module).__name__}")
    for part in module.modules():
        ours = _OURS.get(type(part))
        if ours is not None:
            part.__class__ = ours
    return fused(module) if fuse_activations else module
