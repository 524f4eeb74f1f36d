"""Bring channels into the range of a narrower type: powers of two, carried where they can be absorbed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.fold.affine import at_axis
from bnfold.fold.carry import table
from bnfold.fold.carry.locks import Locks
from bnfold.fold.carry.spread import Conflict, State
from bnfold.fold.graph import Array, Graph, Node, Tensor
from bnfold.fold.rescale.carry_scale import (
    axis_of,
    carried_at,
    carry,
    channel_axis,
    commit,
    improve_all,
    neighbours,
    undo,
)
from bnfold.fold.rescale.headroom import Headroom, Narrow, Seen, headroom
from bnfold.fold.roles import Clamp, Concat, Leaky, Linear, Map, Move, Pad, Same, Split, Sum

__all__ = ["Fit", "RescaledTensor", "fit", "makers", "troubled"]

# What is too small is brought up to these, as parts of the span from the smallest normal number to 1.
WEIGHTS, VALUES = 0.5, 0.4
ROOM = 4.0  # a weight may come as near as that to the largest number
PASSES = 3  # over all tensors: a change may leave its readers something to do


_PASS = (Map, Leaky, Clamp, Move, Pad, Split, Concat, Sum, Same)


@dataclass
class RescaledTensor:
    """One tensor whose channels were rescaled; the largest value and weight of each of them, (before, after).

    factors: of the channels listed, powers of two. weights: of the node that makes the tensor, if it has any.
    """

    tensor: Tensor
    axis: int
    channels: list[int]
    factors: Array
    values: tuple[Array, Array] | None = None
    weights: tuple[Array, Array] | None = None


@dataclass
class Fit:
    """The changes to make, and what could not be brought into range: tensor name and reason."""

    state: State = field(default_factory=State)
    moved: list[RescaledTensor] = field(default_factory=list)
    stuck: list[tuple[str, str]] = field(default_factory=list)


def troubled(graph: Graph, state: State, seen: Seen, narrow: Narrow) -> dict[Node, Headroom]:
    """The nodes with weights or inputs that the type cannot hold."""
    found = {}
    for node in graph.nodes:
        head = headroom(node, state, seen, narrow)
        if head is not None and head.troubles:
            found[node] = head
    return found


def makers(node: Node) -> list[Node]:
    """The nodes that make the numbers which a node reads: past those that only pass them on, to the sums."""
    found: dict[Node, None] = {}
    pending = [node.inputs[getattr(node.role, "x", 0)]]
    while pending:
        tensor = pending.pop()
        maker = None if tensor is None else tensor.producer
        if maker is None or maker in found:
            continue
        found[maker] = None
        role, axis = maker.role, getattr(node.role, "in_axis", None)
        if isinstance(role, _PASS):
            pending += maker.inputs
        elif isinstance(role, Linear) and axis in dict(role.free).values():
            pending.append(maker.inputs[role.x])  # a product along another axis: channels pass
    return list(found)


def fit(graph: Graph, seen: Seen, narrow: Narrow, margin: float) -> Fit:
    """Choose the factors.

    Args:
        graph: a folded model.
        seen: the largest value of each channel, as measured.
        narrow: the type to come.
        margin: how many times larger than measured a value may become.
    """
    search = _Search(graph, seen, narrow, margin)
    result = search.result
    if not troubled(graph, result.state, seen, narrow) and not any(map(search.overflows, graph.tensors)):
        return result
    result.state.locks = Locks(graph, result.state, {"scale": table.SCALE, "shift": table.SHIFT}).locks
    improve_all(graph, search.improve, PASSES)
    result.stuck = list(search.stuck.items())
    search.report()
    return result


class _Search:
    def __init__(self, graph: Graph, seen: Seen, narrow: Narrow, margin: float) -> None:
        self.graph, self.seen, self.narrow, self.margin = graph, seen, narrow, margin
        self.result = Fit()
        self.stuck: dict[str, str] = {}
        self.seeds: dict[Tensor, int] = {}  # and the axis of their channels
        self.heads: dict[Node, Headroom | None] = {}

    def head(self, node: Node) -> Headroom | None:
        if node not in self.heads:
            self.heads[node] = headroom(node, self.result.state, self.seen, self.narrow)
        return self.heads[node]

    def values(self, tensor: Tensor, axis: int) -> Array | None:
        """The largest value of each channel, as it is carried by now."""
        found = self.seen(tensor, axis)
        return None if found is None else found * carried_at(self.result.state, tensor, axis)

    def overflows(self, tensor: Tensor) -> int:
        """How many channels could leave the type's range."""
        axis = _axis(tensor)
        values = None if axis is None else self.values(tensor, axis)
        return 0 if values is None else int((values * self.margin > self.narrow.largest).sum())

    def improve(self, tensor: Tensor) -> bool:
        """Rescale one tensor if that leaves fewer channels in trouble."""
        self.stuck.pop(tensor.name, None)
        axis = _axis(tensor)
        if axis is None or tensor.constant is not None or tensor.dtype != "float32":
            return False
        size = (tensor.shape or ())[axis]
        if not isinstance(size, int) or size < 1:
            return False
        low, high = self.bounds(tensor, axis, size)
        if not ((low > 0) | (high < 0)).any():
            return False
        if tensor.fixed:
            self.stuck[tensor.name] = tensor.fixed
            return False
        with np.errstate(invalid="ignore"):  # infinities of both signs meet only where low <= high
            middle = np.round((low + high) / 2)
        each = np.where(low <= high, np.clip(0, low, np.maximum(low, high)), middle)
        whole = low.max()
        one = np.full((1,) * tensor.rank, 2.0 ** (whole if whole > 0 else min(0.0, high.min())))
        why = ""
        for factor in (at_axis(np.exp2(each), axis, tensor.rank), one):
            if (factor == 1).all():
                continue
            try:
                if self.better(tensor, axis, factor):
                    return True
                why = why or "another channel would leave the range instead"
            except Conflict as conflict:
                why = (
                    why or (f"{conflict.where}: " if conflict.where != tensor.name else "") + conflict.reason
                )
        self.stuck[tensor.name] = why
        return False

    def better(self, tensor: Tensor, axis: int, factor: Array) -> bool:
        state = self.result.state
        spread = carry(state, tensor, factor)
        around = {node for reached in spread.values for node, _ in neighbours(reached)}
        before = self.score(around, spread.values)
        commit(state, spread)
        kept = {node: self.heads.pop(node, None) for node in around}
        if self.score(around, spread.values) < before:
            self.seeds.setdefault(tensor, axis)
            return True
        undo(state, spread)
        self.heads.update(kept)
        return False

    def score(self, nodes: set[Node], tensors: Any) -> int:
        heads = [self.head(node) for node in nodes]
        return sum(head.troubles for head in heads if head is not None) + sum(map(self.overflows, tensors))

    def bounds(self, tensor: Tensor, axis: int, size: int) -> tuple[Array, Array]:
        """Between which powers of two each channel's factor should lie; 0 between them: nothing to do."""
        narrow = self.narrow
        low, high = np.full(size, -np.inf), np.full(size, np.inf)
        values = self.values(tensor, axis)
        limit = np.log2(narrow.largest / self.margin)
        with np.errstate(divide="ignore"):
            if values is not None:
                high = np.minimum(high, np.floor(limit - np.log2(values)))
            for node, slot in neighbours(tensor):
                head = self.head(node)
                if head is None or channel_axis(node, slot, maps=True) != axis:
                    continue
                if slot < 0 and head.rows.size == size:
                    rows = np.log2(head.rows)
                    high = np.minimum(high, np.floor(np.log2(narrow.largest / ROOM) - rows))
                    up = np.ceil(np.log2(narrow.tiny) * WEIGHTS - rows)
                    low = np.where(head.vanishing, np.maximum(low, up), low)
                if slot < 0 or head.columns.size != size:
                    continue
                heavy = head.columns > narrow.largest
                down = np.ceil(np.log2(head.columns) - np.log2(narrow.largest / ROOM))
                low = np.where(heavy, np.maximum(low, down), low)
                if values is not None:
                    up = np.ceil(np.log2(narrow.tiny) * VALUES - np.log2(values))
                    low = np.where(head.fading, np.maximum(low, up), low)
        return low, high

    def report(self) -> None:
        """List what was rescaled, with the ranges before and after."""
        neutral = State()
        for tensor, axis in self.seeds.items():
            if tensor not in self.result.state.p:
                continue
            size: Any = (tensor.shape or ())[axis]
            factors = np.broadcast_to(carried_at(self.result.state, tensor, axis), (size,))
            which = np.flatnonzero(factors != 1)
            moved = RescaledTensor(tensor, axis, which.tolist(), factors[which])
            seen = self.seen(tensor, axis)
            if seen is not None and seen.size == factors.size:
                moved.values = (seen[which], (seen * factors)[which])
            maker = tensor.producer
            if maker is not None and channel_axis(maker, tensor.slot, maps=True) == axis:
                before = headroom(maker, neutral, self.seen, self.narrow)
                after = headroom(maker, self.result.state, self.seen, self.narrow)
                if before is not None and after is not None and before.rows.size == factors.size:
                    moved.weights = (before.rows[which], after.rows[which])
            self.result.moved.append(moved)


def _axis(tensor: Tensor) -> int | None:
    """Where the channels of a tensor lie, if it has any: on axis 1, unless there are weights for others."""
    axis = axis_of(tensor, maps=True) if tensor.rank > 1 else None
    return 1 if axis is None and tensor.rank > 1 else axis
