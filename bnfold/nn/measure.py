"""What batch norms see of a data set: passes over a loader, with the ranks of torch.distributed in step.

1. `inputs_of`: how a batch of a loader is given to a module.
2. `Measurement.measure`: a pass, which finds the moments of each batch norm's inputs, over all ranks.
3. `_Together`: SyncBatchNorm waits for all ranks in each call. It does so as long as every rank has a batch;
   once one has none left, the others normalize by their own batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from operator import length_hint
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError
from bnfold.nn.moments import Moments, gathered, moments
from bnfold.nn.sync import SYNCHRONIZED, ranks_of
from bnfold.progress import progress

__all__ = ["Measurement", "Norm", "inner", "inputs_of"]

Norm = nn.modules.batchnorm._BatchNorm


class Measurement:
    """Passes over the data.

    Args:
        module: what is run.
        loader: its batches.
        device: where they go; None: they stay.
        norms: the batch norms that may be measured, with their names. Those that share their statistics are
            measured as one, the first of them (`owner`).
    """

    def __init__(self, module: nn.Module, loader: Iterable[Any], device: Any, norms: dict[Norm, str]) -> None:
        self.module, self.loader, self.device, self.norms = module, loader, device, norms
        owners: dict[int, Norm] = {}
        self.owner = {norm: owners.setdefault(id(norm.running_var), norm) for norm in norms}
        self.first: dict[Norm, int] = {}  # values per channel in the first batch, of the rank with most
        self.number = 0  # of the batch that is being run

    def measure(self, norms: Sequence[Norm], training: bool) -> dict[Norm, Moments]:
        """The moments of what these batch norms see, in training mode or as they are, by their owners.

        Raises:
            UsageError: values that are not finite, or one value per channel in training mode. If that is so
                on one rank, all ranks raise.
        """
        found: dict[Norm, Moments] = {}
        seen: list[tuple[Norm, Moments]] = []  # in the batch that is being run
        waiting = [norm for norm in norms if training and ranks() > 1 and isinstance(norm, SYNCHRONIZED)]
        together = _Together(waiting)

        def look(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert isinstance(norm, Norm)
            x = next(iter(inspect.signature(norm.forward).bind(*args, **kwargs).arguments.values()))
            values = x.numel() // max(1, x.shape[1])
            if training and values == 1 and not (together.now and ranks_of(norm) > 1):
                raise self._refused(
                    f"has one value per channel at {self.norms[norm]}, which its own mean cannot normalize: "
                    "leave it out (drop_last=True of a DataLoader), or say layer_by_layer=True"
                )
            seen.append((norm, moments(x)))
            self.first.setdefault(self.owner[norm], values)

        failure: UsageError | None = None
        with ExitStack() as stack, torch.no_grad():
            for norm in norms:
                norm.train(training)
                stack.callback(norm.eval)
                stack.callback(norm.register_forward_pre_hook(look, with_kwargs=True).remove)
            stack.enter_context(_as_written())
            stack.callback(together.end)
            try:
                for _ in self.batches(together):
                    for norm, new in seen:
                        if not new.m2.isfinite().all():
                            raise self._refused(f"gives {self.norms[norm]} values that are NaN or infinite")
                        owner = self.owner[norm]
                        found[owner] = found[owner].merged(new) if owner in found else new
                    seen.clear()
            except UsageError as error:
                failure = error
                together.tell(False)
        owners = list(dict.fromkeys(self.owner[norm] for norm in norms))
        if ranks() > 1:
            _agree(failure, owners[0])
            found = {norm: gathered(found.get(norm) or _nothing(norm))[0] for norm in owners}
            sizes = torch.stack([found[norm].count.new_tensor(self.first.get(norm, 0)) for norm in owners])
            dist.all_reduce(sizes, op=dist.ReduceOp.MAX)
            self.first |= dict(zip(owners, map(int, sizes.tolist()), strict=True))
        elif failure is not None:
            raise failure
        return {norm: m for norm, m in found.items() if m.count > 0}

    def order(self) -> list[Norm]:
        """The owners in the order in which the first batch reaches them, of any rank that has one."""
        reached: dict[str, None] = {}
        names = {self.norms[owner]: owner for owner in self.owner.values()}

        def note(norm: Any, _: Any) -> None:
            reached.setdefault(self.norms[self.owner[norm]])

        with ExitStack() as stack, torch.no_grad():
            for norm in self.owner:
                stack.callback(norm.register_forward_pre_hook(note).remove)
            stack.enter_context(_as_written())
            next(self.batches(_Together([])), None)
        every = [list(reached)]
        if ranks() > 1:
            every = [[] for _ in range(ranks())]
            dist.all_gather_object(every, list(reached))
        return [names[name] for name in dict.fromkeys(name for of_rank in every for name in of_rank)]

    def batches(self, together: _Together) -> Iterator[None]:
        """Run the module on the batches, one for each step of the iterator."""
        total = length_hint(self.loader)
        with progress("recalibrating") as advance:
            for number, batch in enumerate(self.loader):
                self.number = number
                together.tell(True)
                args, kwargs = inputs_of(self.module, batch)
                args, kwargs = pytree.tree_map(self._moved, (args, kwargs))
                self.module(*args, **kwargs)
                advance(number + 1, total or number + 1)
                yield
        together.tell(False)

    def _moved(self, leaf: Any) -> Any:
        return leaf.to(self.device) if isinstance(leaf, Tensor) and self.device is not None else leaf

    def _refused(self, why: str) -> UsageError:
        return UsageError(f"batch {self.number} of the loader (the first is batch 0) {why}")


class _Together:
    """Whether all ranks have a batch now; only asked where batch norms (`norms`) may wait for other ranks."""

    def __init__(self, norms: Sequence[Norm]) -> None:
        self.norms, self.now = norms, bool(norms)
        self.kept: dict[Norm, tuple[Tensor | None, Tensor | None]] = {}

    def tell(self, more: bool) -> None:
        """Tell the other ranks whether this one has a batch, and hear of theirs."""
        if not self.now:
            return
        self.now = not _on_any_rank(not more, self.norms[0])
        if not self.now:
            # In eval mode without statistics, a batch norm takes its batch's own and waits for nobody.
            self.kept = {norm: (norm.running_mean, norm.running_var) for norm in self.norms}
            for norm in self.norms:
                norm.eval()
                norm.running_mean = norm.running_var = None

    def end(self) -> None:
        """Give the batch norms their statistics back."""
        for norm, (mean, var) in self.kept.items():
            norm.running_mean, norm.running_var = mean, var


def inputs_of(module: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a module, from a batch as loaders give them.

    1. A mapping, or one that is the first item: keyword arguments.
    2. A tuple or list: its first item, or as many as the module's forward has inputs without defaults. A
       first item of just so many items holds the inputs itself: ((x, lengths), labels).
    3. All else: the one input.

    Raises:
        UsageError: there are too few.
    """
    items = batch if isinstance(batch, (tuple, list)) else (batch,)
    first = items[0] if items else None
    if isinstance(first, Mapping):
        return (), dict(first)
    inputs = _inputs(inner(module))
    if inputs <= 1:
        return tuple(items[:1]), {}
    if isinstance(first, (tuple, list)) and len(first) == inputs:
        return tuple(first), {}
    if len(items) < inputs:
        raise UsageError(
            f"{type(module).__name__} takes {inputs} inputs, and the loader gives {len(items)}: let its "
            "batches be tuples of all inputs, or dicts of keyword arguments"
        )
    return tuple(items[:inputs]), {}


def _inputs(module: nn.Module) -> int:
    """How many inputs a module's forward must be given."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in _parameters(module))


def inner(module: nn.Module) -> nn.Module:
    """The module that a wrapper runs: the only submodule of one whose forward takes whatever it is given."""
    children = list(module.children())
    if len(children) == 1 and any(each.kind is each.VAR_POSITIONAL for each in _parameters(module)):
        return inner(children[0])
    return module


def _parameters(module: nn.Module) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # it is not written in Python
        return ()


def _as_written() -> Any:
    """Compiled modules run uncompiled: what was compiled before calls no hook that is new."""
    return torch.compiler.set_stance("force_eager")


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _on_any_rank(here: bool, norm: Norm) -> bool:
    """Whether something is so on this rank or another; told on the batch norm's device."""
    assert norm.running_mean is not None
    flag = torch.tensor(float(here), device=norm.running_mean.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _agree(failure: UsageError | None, norm: Norm) -> None:
    """Raise on all ranks what was refused on one."""
    if _on_any_rank(failure is not None, norm):
        raise failure or UsageError("another rank refused a batch of its loader, and says which")


def _nothing(norm: Norm) -> Moments:
    assert norm.running_mean is not None
    none = torch.zeros_like(norm.running_mean, dtype=torch.float64)
    return Moments(none.sum(), none, none)
