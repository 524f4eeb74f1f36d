"""Running statistics that are the mean and variance of a whole data set, and no moving average.

1. In one pass (the default) every batch norm normalizes by its batch's own statistics, as in training, and
   the moments of all that it sees are merged.
2. Layer by layer, each batch norm is measured with those before it at their final statistics: what the
   network will see in use, exactly, at the price of a pass for each.

Moments are float64 and merged without cancellation (moments.py); with torch.distributed, over all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError
from bnfold.nn.moments import Moments, gathered, moments
from bnfold.progress import progress
from bnfold.wrappers import unwrapped

__all__ = ["Recalibration", "recalibrate"]

_Norm = nn.modules.batchnorm._BatchNorm
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(eq=False)
class Recalibration:
    """What was changed. `counts`: how many values per channel each batch norm saw, by its name."""

    _before: dict[_Norm, dict[str, Tensor]] = field(repr=False)
    counts: dict[str, int]

    def undo(self) -> None:
        """Put the statistics back that were there before."""
        _restore(self._before)


def recalibrate(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    device: Any = None,
    reset: bool = True,
    layer_by_layer: bool = False,
) -> Recalibration:
    """Give every batch norm of a module the statistics of a data set.

    Args:
        module: in any mode; it is left in that mode, and only running statistics change. It may be wrapped
            (DataParallel, DistributedDataParallel, torch.compile).
        loader: the batches; of a tuple or list the first item is the input, a dict holds keyword arguments.
            For `layer_by_layer` it must be iterable many times.
        device: where the batches go; None: where the module's parameters are.
        reset: forget what the statistics were; False: they count as the data that the batch norm has seen
            (`num_batches_tracked` batches of the first batch's size).
        layer_by_layer: one pass for each batch norm, in the order in which they are called.

    Returns:
        A handle that undoes it.

    Raises:
        UsageError: there is no batch norm with running statistics, no data, or only one value per channel.
    """
    if layer_by_layer and not reset:
        raise UsageError("layer_by_layer measures anew: it goes with reset=True only")
    module = unwrapped(module)  # DistributedDataParallel would exchange buffers in every call
    norms = {
        part: name
        for name, part in module.named_modules()
        if isinstance(part, _Norm) and part.running_mean is not None and part.running_var is not None
    }
    if not norms:
        raise UsageError(f"{type(module).__name__} has no batch norm with running statistics to recalibrate")
    where = device if device is not None else next((p.device for p in module.parameters()), None)
    modes = {part: part.training for part in module.modules()}
    before = {norm: {key: getattr(norm, key).clone() for key in _BUFFERS} for norm in norms}
    run = _Run(module, loader, where)
    try:
        module.eval()
        if layer_by_layer:
            found: dict[_Norm, Moments] = {}
            for norm in run.order(norms):
                found |= run.measure([norm], training=False)
                if norm not in found:
                    raise UsageError("layer_by_layer needs a loader that can be read many times")
                _store(norm, found[norm], norms[norm])
        else:
            found = run.measure(list(norms), training=True)
            if not reset:
                found = {norm: _seen(before[norm], run.first[norm]).merged(m) for norm, m in found.items()}
            _restore(before)
            for norm, new in found.items():
                _store(norm, new, norms[norm])
        if not found:
            raise UsageError("no batch norm saw any data: the loader is empty, or cannot be read again")
    except BaseException:
        _restore(before)
        raise
    finally:
        for part, mode in modes.items():
            part.training = mode
    return Recalibration(before, {norms[norm]: int(m.count) for norm, m in found.items()})


class _Run:
    """Passes over the data, each measuring what some batch norms see."""

    def __init__(self, module: nn.Module, loader: Iterable[Any], device: Any) -> None:
        self.module, self.loader, self.device = module, loader, device
        self.first: dict[_Norm, int] = {}  # values per channel in the first batch

    def measure(self, norms: list[_Norm], training: bool) -> dict[_Norm, Moments]:
        """The moments of what these batch norms see, in training mode or as they are."""
        found: dict[_Norm, Moments] = {}

        def look(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(norm, _Norm)
            seen = moments(inputs[0])
            self.first.setdefault(norm, int(seen.count))
            found[norm] = found[norm].merged(seen) if norm in found else seen

        with ExitStack() as hooks, torch.no_grad():
            for norm in norms:
                norm.train(training)
                hooks.callback(norm.register_forward_pre_hook(look).remove)
            self.batches()
        for norm in norms:
            norm.eval()
        whole = {norm: _of_all_ranks(found.get(norm) or _nothing(norm)) for norm in norms}
        return {norm: m for norm, m in whole.items() if m.count > 0}

    def order(self, norms: Iterable[_Norm]) -> list[_Norm]:
        """The batch norms in the order in which the first batch reaches them."""
        reached: dict[_Norm, None] = {}
        with ExitStack() as hooks, torch.no_grad():
            for norm in norms:
                hooks.callback(norm.register_forward_pre_hook(lambda n, _: reached.setdefault(n)).remove)
            self.batches(1)
        return list(reached)

    def batches(self, most: int | None = None) -> None:
        """Run the module on the batches."""
        total = length_hint(self.loader)
        with progress("recalibrating") as advance:
            for done, batch in enumerate(self.loader, 1):
                first = batch[0] if isinstance(batch, (tuple, list)) else batch
                given: Any = pytree.tree_map(self.moved, first)
                if isinstance(given, dict):
                    self.module(**given)
                else:
                    self.module(given)
                advance(done, total or done)
                if done == most:
                    return

    def moved(self, leaf: Any) -> Any:
        return leaf.to(self.device) if isinstance(leaf, Tensor) and self.device is not None else leaf


def _nothing(norm: _Norm) -> Moments:
    assert norm.running_mean is not None
    none = torch.zeros_like(norm.running_mean, dtype=torch.float64)
    return Moments(none.sum(), none, none)


def _of_all_ranks(here: Moments) -> Moments:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return here
    return gathered(here)


def _seen(before: dict[str, Tensor], values: int) -> Moments:
    """What the old statistics stand for: so many batches of this size."""
    count = before["num_batches_tracked"].double() * values
    return Moments(
        count, before["running_mean"].double(), before["running_var"].double() * (count - 1).clamp(min=0)
    )


def _store(norm: _Norm, new: Moments, name: str) -> None:
    if not new.count > 1:
        raise UsageError(
            f"{name} saw {int(new.count)} value(s) per channel: no variance can be told from that"
        )
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(new.mean)
    norm.running_var.copy_(new.variance())


def _restore(before: dict[_Norm, dict[str, Tensor]]) -> None:
    for norm, values in before.items():
        for key, value in values.items():
            getattr(norm, key).copy_(value)
