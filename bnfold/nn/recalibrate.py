"""Running statistics that are the mean and variance of a whole data set, and no moving average.

1. In one pass (the default) every batch norm normalizes by its batch's own statistics, as in training, and
   the moments of all that it sees are merged.
2. Layer by layer, each batch norm is measured with those before it at their final statistics: what the
   network will see in use, exactly, at the price of a pass for each.

Moments are float64 and merged without cancellation (moments.py); with torch.distributed, over all ranks
(measure.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bnfold.errors import UsageError
from bnfold.nn.measure import Measurement, Norm, inner
from bnfold.nn.moments import Moments
from bnfold.options import known
from bnfold.wrappers import unwrapped

__all__ = ["Recalibration", "recalibrate"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(eq=False)
class Recalibration:
    """What was changed.

    counts: how many values per channel each batch norm saw, by its name; those that share their statistics
    saw them together. left_out: names of the batch norms that were frozen or ignored.
    """

    _before: dict[Norm, dict[str, Tensor]] = field(repr=False)
    counts: dict[str, int]
    left_out: tuple[str, ...] = ()

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
    ignored: Collection[str] = (),
) -> Recalibration:
    """Give every batch norm of a module the statistics of a data set.

    Batch norms that are frozen (in eval mode, while `module` is in training mode) are left out.

    Args:
        module: in any mode; it is left in that mode, and only running statistics change. It may be wrapped
            (DataParallel, DistributedDataParallel, torch.compile).
        loader: the batches. Of a tuple or list the first item is the input, or as many items as the module's
            forward has inputs without defaults; a dict holds keyword arguments. Ranks may have different
            numbers of batches. For `layer_by_layer` it must be iterable many times.
        device: where the batches go; None: where the module's parameters are.
        reset: forget what the statistics were; False: they count as the data that the batch norm has seen
            (`num_batches_tracked` batches of the first batch's size).
        layer_by_layer: one pass for each batch norm, in the order in which they are called.
        ignored: names of batch norms, or of modules with all their batch norms, that are left out too.

    Returns:
        A handle that undoes it.

    Raises:
        UsageError: there is no batch norm with running statistics, or none is left; a name is unknown; there
            is no data, or one value per channel; a batch has too few inputs, or gives a batch norm NaN or
            infinite values. Nothing was changed then.
    """
    if layer_by_layer and not reset:
        raise UsageError("layer_by_layer measures anew: it goes with reset=True only")
    module = unwrapped(module)  # DistributedDataParallel would exchange buffers in every call
    norms, left_out = _chosen(module, ignored)
    where = device if device is not None else next((p.device for p in module.parameters()), None)
    modes = {part: part.training for part in module.modules()}
    before = {norm: {key: getattr(norm, key).clone() for key in _BUFFERS} for norm in norms}
    run = Measurement(module, loader, where, norms)
    try:
        module.eval()
        if layer_by_layer:
            found: dict[Norm, Moments] = {}
            for norm in run.order():
                found |= run.measure([each for each in norms if run.owner[each] is norm], training=False)
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
    seen = {name: found[run.owner[norm]] for norm, name in norms.items() if run.owner[norm] in found}
    return Recalibration(before, {name: int(m.count) for name, m in seen.items()}, left_out)


def _chosen(module: nn.Module, ignored: Collection[str]) -> tuple[dict[Norm, str], tuple[str, ...]]:
    """The batch norms to give new statistics to, with their names; and the names of those left out."""
    if isinstance(ignored, str):
        raise UsageError(f"ignored takes a collection of names: ({ignored!r},)")
    every = dict(module.named_modules(remove_duplicate=False))
    known("ignored", ignored, [name for name in every if name], "such module")
    norms = {
        part: name
        for name, part in module.named_modules()
        if isinstance(part, Norm) and part.running_mean is not None and part.running_var is not None
    }
    if not norms:
        raise UsageError(f"{type(module).__name__} has no batch norm with running statistics to recalibrate")
    unwanted = {part for name in ignored for part in every[name].modules()}
    training = inner(module).training  # a wrapper need not know
    frozen = {norm for norm in norms if training and not norm.training}
    left = {norm: name for norm, name in norms.items() if norm not in unwanted | frozen}
    if not left:
        raise UsageError(
            f"all batch norms of {type(module).__name__} are ignored or frozen (in eval mode, the module in "
            "training mode). If they are to be recalibrated, call .eval() of the whole module first"
        )
    return left, tuple(name for norm, name in norms.items() if norm not in left)


def _seen(before: dict[str, Tensor], values: int) -> Moments:
    """What the old statistics stand for: so many batches of this size."""
    count = before["num_batches_tracked"].double() * values
    return Moments(
        count, before["running_mean"].double(), before["running_var"].double() * (count - 1).clamp(min=0)
    )


def _store(norm: Norm, new: Moments, name: str) -> None:
    if not new.count > 1:
        raise UsageError(
            f"{name} saw {int(new.count)} value(s) per channel: no variance can be told from that"
        )
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(new.mean)
    norm.running_var.copy_(new.variance())


def _restore(before: dict[Norm, dict[str, Tensor]]) -> None:
    for norm, values in before.items():
        for key, value in values.items():
            getattr(norm, key).copy_(value)
