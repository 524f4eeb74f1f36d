"""Whether weights are still what was folded: the same tensors, the same memory, and not written into."""

from __future__ import annotations

import gc
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Weights"]


class _Seen(NamedTuple):
    """A tensor, and where it was and how often it had been written into when it was seen."""

    tensor: Tensor
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Seen:
        return cls(tensor, tensor.data_ptr(), tensor._version)

    def holds(self, tensor: Tensor) -> bool:
        return tensor is self.tensor and tensor._version == self.version and tensor.data_ptr() == self.address


class _Counter(NamedTuple):
    """How many batches a batch norm has seen: it tells of running statistics that training has moved, since
    torch's kernels write into them without counting that as a new version. buffers: of its module.
    """

    buffers: dict[str, Any]
    seen: _Seen

    def holds(self) -> bool:
        return self.seen.holds(self.buffers[_COUNTER])


_COUNTER = "num_batches_tracked"
_version = operator.attrgetter("_version")


class Weights:
    """Those of one fold, and the state that they were in.

    weights: in the order in which calls hand them over. statistics: those of them, or of what the graph
    itself holds, that batch norms read as running mean and variance. attributes: what the graph holds.
    """

    def __init__(
        self, weights: Sequence[Tensor], statistics: Sequence[Tensor], attributes: Sequence[Tensor]
    ) -> None:
        self.weights = [_Seen.of(each) for each in weights]
        self.tensors = [seen.tensor for seen in self.weights]
        self.addresses = [seen.address for seen in self.weights]
        self.versions = [seen.version for seen in self.weights]
        self.attributes = [_Seen.of(each) for each in attributes]
        self.counters = _counters(statistics)
        counted = {id(each) for counter in self.counters for each in counter.buffers.values()}
        # Where nobody counts the batches, the numbers themselves are compared.
        self.copies = [(each, _bytes(each).clone()) for each in statistics if id(each) not in counted]

    def hold(self, weights: Sequence[Tensor]) -> bool:
        """Whether a call with these may use what was folded."""
        # All in C, of what lies together: each call of a network comes here with all of its parameters.
        return (
            self.same_tensors(weights)
            and list(map(_version, weights)) == self.versions
            and list(map(Tensor.data_ptr, weights)) == self.addresses
            and self.unchanged()
        )

    def unchanged(self) -> bool:
        """Whether all that no call hands over is as it was."""
        return (
            all(seen.holds(seen.tensor) for seen in self.attributes)
            and all(counter.holds() for counter in self.counters)
            and all(torch.equal(_bytes(tensor), copy) for tensor, copy in self.copies)
        )

    def same_tensors(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, in whatever state."""
        return len(weights) == len(self.weights) and all(map(operator.is_, self.tensors, weights))

    def has_at(self, address: int) -> bool:
        """Whether one of them was there in memory."""
        return any(seen.address == address for seen in (*self.weights, *self.attributes))


def _counters(statistics: Sequence[Tensor]) -> list[_Counter]:
    """Of the modules that hold these tensors."""
    if not statistics:
        return []
    known = {id(each) for each in statistics}
    holders = (each for each in gc.get_referrers(*statistics) if isinstance(each, dict))
    return [
        _Counter(holder, _Seen.of(holder[_COUNTER]))
        for holder in holders
        if isinstance(holder.get(_COUNTER), Tensor) and any(id(value) in known for value in holder.values())
    ]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
