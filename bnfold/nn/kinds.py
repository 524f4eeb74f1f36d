"""What a module has decided for tensors of some kinds, kept for its next calls.

A kind of a tensor is its class, device, type, sizes and strides, whether it requires a gradient, and where
torch's dispatcher leads operations on it: autocast, inference mode, torch.func. All tensors of a call are
compared by one call of what torch.compile guards its code with, which takes a fifth of the time that it takes
to ask each of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Decisions", "same_kinds"]

MOST = 8  # decisions of a module: for its modes, and a few shapes
Decision = TypeVar("Decision")
_modes = torch._C._len_torch_dispatch_stack  # looked up once: it is asked at each call


class Entry(NamedTuple):
    """A decision, and what it was made for."""

    settings: tuple[Any, ...]
    classes: tuple[type, ...]  # of the tensors; some may be absent
    same: Callable[..., bool]
    decision: Any


class Decisions(Generic[Decision]):
    """The latest of a module. Threads may share them."""

    def __init__(self) -> None:
        self._entries: tuple[Entry, ...] = ()

    def find(self, settings: tuple[Any, ...], tensors: Sequence[Tensor | None]) -> Decision | None:
        """That for tensors of these kinds, if there is one. settings: what else it depends on."""
        if _modes() or forward_ad._current_level >= 0:  # of which a tensor's kind does not always tell
            return None
        classes = tuple(map(type, tensors))
        given = [each for each in tensors if each is not None]
        for known, wanted, same, decision in self._entries:
            if known == settings and wanted == classes and same(*given):
                found: Decision = decision
                return found
        return None

    def note(self, settings: tuple[Any, ...], tensors: Sequence[Tensor | None], decision: Decision) -> None:
        """Keeps a decision, if no tensor is there twice; of more than a few, the oldest go."""
        given = [each for each in tensors if each is not None]
        same = same_kinds(given)
        if same is not None and same(*given):
            entry = Entry(settings, tuple(map(type, tensors)), same, decision)
            self._entries = (entry, *self._entries[: MOST - 1])


def same_kinds(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Tells whether as many tensors are of the same kinds as these, and none is another of them.

    None where this torch cannot tell.
    """
    return _guard(tensors) if _guards_work() else None


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    library: Any = torch._C._dynamo.guards
    sizes, strides = [list(each.shape) for each in tensors], [list(each.stride()) for each in tensors]
    guards = library.TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    found: Callable[..., bool] = guards.check
    return found


@functools.cache
def _guards_work() -> bool:
    """Whether this torch has them as they are known here: they are no part of its documented interface."""
    x = torch.zeros(2, 3)
    others = (x.double(), x[:1], x.t().contiguous().t(), x.clone().requires_grad_(), torch.nn.Parameter(x))
    try:
        same = _guard([x, x])
        return same(x.clone(), x) is True and not any(same(x, each) or same(each, x) for each in others)
    except (AttributeError, TypeError, ValueError):
        return False
