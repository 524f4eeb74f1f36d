"""This package's batch norms in place of torch's, and the way back."""

from __future__ import annotations

from torch import nn

from bnfold.errors import UsageError, explained
from bnfold.nn.batch_norm import AddActivation, BatchNorm1d, BatchNorm2d, BatchNorm3d, Fused
from bnfold.nn.fuse import merge, split
from bnfold.nn.graph_module import Graphed, check, install, restore
from bnfold.nn.sync import SyncBatchNorm
from bnfold.nn.tracing import traced
from bnfold.wrappers import check_kind, unwrapped

__all__ = ["convert", "revert"]

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}


def convert(module: nn.Module, fuse_activations: bool = False) -> nn.Module:
    """Make every torch batch norm in a module one of this package's.

    They become so in place: names, parameters and their order, buffers, hooks, attributes and modes stay.
    Subclasses are left alone, since they do something of their own.

    Args:
        module: it is changed. It may be wrapped (DataParallel, DistributedDataParallel, torch.compile).
        fuse_activations: also merge a following ReLU, and the addition between, into each batch norm. That
            changes calls: `module` becomes a `torch.fx.GraphModule` besides what it is, and calls a graph,
            which holds in training mode and in eval mode. What has no batch norm inside is called as it is.
            A submodule whose code calls the addition or the ReLU apart can no longer be called by itself.

    Returns:
        `module`.

    Raises:
        UsageError: calls are to be merged, and torch.fx cannot trace the module, or its code calls one thing
            in training mode and another in eval mode, sets attributes, draws random numbers, or turns
            gradients or autocast on or off. Nothing is changed then.
    """
    inner = _inner(module, "convert")
    if fuse_activations:
        check(inner)
    found = [part for part in module.modules() if type(part) in _OURS]
    before = [type(part) for part in found]
    for part in found:
        part.__class__ = _OURS[type(part)]
    if fuse_activations and not isinstance(inner, Fused):
        advice = "Convert it without fuse_activations, or rewrite what depends on data"
        try:
            with explained(f"torch.fx cannot trace {type(inner).__name__}", advice):
                graph, constants = traced(inner)
        except BaseException:
            for part, kind in zip(found, before, strict=True):
                part.__class__ = kind
            raise
        done = merge(inner, graph)
        install(inner, graph, constants, done.norms, done.inside)
    return module


def revert(module: nn.Module) -> nn.Module:
    """Make every batch norm of this package in a module torch's own: the opposite of `convert`.

    They become so in place: names, parameters and their order, buffers, hooks, attributes, modes, devices and
    types stay. A module whose calls `convert` has merged gets its class and its code back. Where a module's
    own code leaves an activation or a sum to a batch norm, torch's cannot do it: the module becomes a
    `torch.fx.GraphModule` besides what it is, and its graph calls `torch.relu` and the addition. Subclasses
    are left alone.

    Args:
        module: it is changed. It may be wrapped (DataParallel, DistributedDataParallel, torch.compile).

    Returns:
        `module`.

    Raises:
        UsageError: a batch norm has an activation inside, and torch.fx cannot trace the module, or does not
            show all calls of that batch norm. Nothing is changed then but what `convert` had merged.
    """
    inner = _inner(module, "revert")
    for part in list(module.modules()):
        if isinstance(part, Graphed):
            restore(part)
    _split(inner)
    for part in module.modules():
        theirs = _THEIRS.get(type(part))
        if theirs is not None:
            vars(part).pop("activation", None)
            part.__class__ = theirs
    return module


def _split(module: nn.Module) -> None:
    """Call behind the batch norms what they do behind themselves, if anything."""
    own = {path: part for path, part in module.named_modules() if isinstance(part, (Fused, AddActivation))}
    # Only code that was written for this package's batch norms can give them a residual.
    if not any("activation" in vars(part) for part in own.values()):
        return
    acting = [path for path, part in own.items() if part.activation or isinstance(part, AddActivation)]
    said = f"torch.fx cannot trace {type(module).__name__}"
    advice = f"torch's batch norms have no activation, and these have: {', '.join(acting)}"
    try:
        with explained(said, advice):
            graph, constants = traced(module)
        check(module)
        done = split(module, graph)
    except UsageError:
        if acting:
            raise
    else:
        if done.norms:
            install(module, graph, constants, (), done.inside)


def _inner(module: nn.Module, function: str) -> nn.Module:
    check_kind(module, function)
    inner: nn.Module = unwrapped(module)
    return inner
