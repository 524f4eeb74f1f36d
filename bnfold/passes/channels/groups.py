"""Sets of channels that can only leave together, and why some of them must stay.

A tensor has at most one axis of channels, from the layer that makes it on. A channel is an index on that axis
and belongs to a set. What rearranges data rearranges the numbers of the sets; what joins tensors unites them.
A linear layer ends sets and begins new ones: whether it can do without an input channel depends on its
weights and on what is proven of the channel, and is decided later (`choose.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array, Constant, Node, Tensor
from bnfold.onnx_graph.site import FLOATS, Value

__all__ = ["Channels", "Groups", "Reason", "why_not_cut"]


class Reason(NamedTuple):
    """Why a channel stays, and the node or tensor that keeps it."""

    text: str
    where: str


class DisjointSets:
    """Union and find: numbers from 0 on, each in a set that the root among its numbers stands for."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reasons: dict[int, Reason] = {}  # the first one, of the roots whose sets must stay

    def new(self, count: int) -> Array:
        """So many sets of one number each."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        parent = self.parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def roots(self, numbers: Array) -> Array:
        """`root` of each number of an array of any shape."""
        flat = [self.root(number) for number in numbers.reshape(-1).tolist()]
        return np.asarray(flat, np.int64).reshape(numbers.shape)

    def unite(self, left: Array, right: Array) -> None:
        """Each number of the left with the one of the right at the same index."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.root(a), self.root(b)
            if a == b:
                continue
            a, b = min(a, b), max(a, b)
            self.parent[b] = a
            reason = self.reasons.pop(b, None)
            if reason is not None:
                self.reasons.setdefault(a, reason)

    def lock(self, numbers: Array, text: str, where: str) -> None:
        """The sets of these numbers must stay."""
        for number in numbers.tolist():
            self.reasons.setdefault(self.root(number), Reason(text, where))


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor: their axis, and the set of each."""

    axis: int
    sets: Array


class Groups:
    """What was found: the channels of each tensor that has some, and the linear layers that read them."""

    def __init__(self) -> None:
        self.sets = DisjointSets()
        self.channels: dict[Tensor, Channels] = {}
        self.readers: list[Node] = []  # linear, with all inputs in one group

    def of(self, tensor: Tensor | None) -> Channels | None:
        return None if tensor is None else self.channels.get(tensor)

    def keep(self, tensor: Tensor | None, node: Node, text: str) -> None:
        """No channel of the tensor may leave."""
        found = self.of(tensor)
        if found is not None:
            self.sets.lock(found.sets, text, node.name)

    def keep_all(self, node: Node, text: str) -> None:
        """No channel of what the node reads may leave."""
        for tensor in node.inputs:
            self.keep(tensor, node, text)

    def give(self, node: Node, slot: int, found: Channels) -> None:
        """Output `slot` has these channels."""
        y, axis = node.outputs[slot], found.axis
        size = y.shape[axis] if y.shape is not None and axis < len(y.shape) else None
        if size != len(found.sets):
            self.sets.lock(found.sets, "the sizes behind it are not known", node.name)
            return
        self.channels[y] = found
        if y.fixed:
            self.sets.lock(found.sets, f"is a {y.fixed}", y.name)

    def needs(self, node: Node, sets: Array, constants: Sequence[Constant | None]) -> None:
        """The channels can leave only if these stored values can be cut."""
        for constant in constants:
            reason = "" if constant is None else why_not_cut(constant)
            if reason:
                self.sets.lock(sets, reason, node.name)


def why_not_cut(constant: Constant) -> str:
    """Why entries cannot be taken out of a stored value; "" if they can."""
    if constant.locked:
        return f"{constant.store} {constant.locked}"
    if constant.quantized is not None:
        return f"{constant.store} is quantized"
    if constant.dtype not in FLOATS:
        return f"{constant.store} is not of a floating point type"
    if sum(size > 1 for size in constant.shape) > 1 and _is_shared(constant.view):
        return f"{constant.store} is shared with other nodes"  # a cut copy would make the file larger
    return ""


def _is_shared(value: Value, depth: int = 100) -> bool:
    """It, or what it is computed from, has several readers."""
    if value.count > 1 or value.is_output or depth == 0:
        return True
    sources = [] if value.site is None else value.site.values
    return any(source is not None and _is_shared(source, depth - 1) for source in sources)
