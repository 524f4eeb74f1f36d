"""Balance weight ranges between layers by powers of two that are carried on the tensors between them.

A region is a tensor and all those that have to follow it, channel by channel: through maps, pools, sums,
concatenations. Each of its channels may be carried at any positive size; the layers that make it multiply
their weights by that, those that read it divide. The size that brings both nearest to the largest weights of
their tensors is the square root of what the readers have left over what the makers have (Nagel et al., 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", for one maker and one reader).

What is judged is the sum over all layers of the bits that int8 scales for whole tensors lose
(`int8_loss.WeightSizes.lost`). A step that does not lower the sum is not taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnfold.fold.affine import at_axis
from bnfold.fold.carry import table
from bnfold.fold.carry.common import other_side, positive
from bnfold.fold.carry.guard import CARRIED
from bnfold.fold.carry.locks import Locks
from bnfold.fold.carry.spread import Conflict, Rule, Spread, State
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
from bnfold.fold.rescale.int8_loss import WeightSizes, weight_sizes
from bnfold.fold.roles import Clamp

__all__ = ["ENOUGH", "Equalized", "Region", "NotRescaled", "equalize"]

ROUNDS = 32  # over all regions
DEAD = 2.0**-20  # of the largest: such a channel has no range to speak of
FARTHEST = 2.0**16  # that a channel is carried from its own size
PARTS = (1.0, 0.75, 0.5, 0.25)  # of the exponents of two, tried in turn
LEAST = 1e-3  # bits that a step must save
CLOSE = 1e-8
ENOUGH = "no powers of two leave fewer bits lost"


@dataclass(eq=False)
class Region:
    """A tensor that is carried at another size, with those that follow it.

    factors: for each channel of `tensor`, along `axis`.
    """

    tensor: Tensor
    axis: int
    factors: Array
    members: list[Tensor]
    made_by: list[Node]
    read_by: list[Node]


@dataclass(frozen=True)
class NotRescaled:
    """A tensor that stays as it is, though a layer makes or reads it."""

    tensor: str
    blocked_by: str
    reason: str
    clip: bool = False  # bounds for each channel would let it go


@dataclass
class Equalized:
    """The changes to make; `before` and `after` are bits lost, the mean over the layers."""

    state: State = field(default_factory=State)
    layers: list[WeightSizes] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    stuck: list[NotRescaled] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0


@dataclass(eq=False)
class _Shared:
    """One region: which of its channels each end of it has, -1 for others."""

    axis: int
    size: int
    ends: list[tuple[WeightSizes, bool, Array]]  # with whether the layer reads it
    spread: Spread


def equalize(
    graph: Graph, *, split: Collection[Node] = (), barred: Mapping[Node, str] | None = None
) -> Equalized:
    """Choose the factors, all powers of two.

    Args:
        graph: a folded model.
        split: the Clips that may get bounds for each channel; elsewhere they want one factor for all.
        barred: layers whose weights must stay, and why.
    """
    search = _Search(graph, frozenset(split), barred or {})
    before = search.total()
    improve_all(graph, search.improve, ROUNDS)
    return search.result(before)


class _Search:
    def __init__(self, graph: Graph, split: frozenset[Node], barred: Mapping[Node, str]) -> None:
        self.graph, self.barred, self.state = graph, barred, State()
        self.layers = {node: layer for node in graph.nodes if (layer := weight_sizes(node)) is not None}
        self.rules: dict[type, Rule] = {**table.SCALE, Clamp: _clamp_rule(split)}
        self.state.locks = Locks(graph, self.state, {"scale": self.rules, "shift": table.SHIFT}).locks
        self.stuck: dict[Tensor, NotRescaled] = {}
        self.owner: dict[Tensor, Tensor] = {}  # the tensor that stands for the region of this one
        self.moved: dict[Tensor, _Shared] = {}

    def total(self) -> float:
        """The mean over the layers."""
        return sum(layer.lost(self.state) for layer in self.layers.values()) / max(len(self.layers), 1)

    def improve(self, tensor: Tensor) -> bool:
        """Rescale one region if that saves bits."""
        if self.owner.get(tensor, tensor) is not tensor or not self.at_a_layer(tensor):
            return False
        self.stuck.pop(tensor, None)
        try:
            found = self.shared(tensor)
            if found is None or not found.ends:
                return False
            exponents = self.exponents(tensor, found)
            for part in PARTS:
                each = np.trunc(exponents * part)
                factor = at_axis(np.exp2(each), found.axis, tensor.rank)
                if each.any() and self.better(tensor, factor, found):
                    self.moved.setdefault(tensor, found)
                    return True
            self.stuck[tensor] = NotRescaled(tensor.name, "", ENOUGH)
        except Conflict as conflict:
            clip = any(n.name == conflict.where and isinstance(n.role, Clamp) for n in self.graph.nodes)
            self.stuck[tensor] = NotRescaled(tensor.name, conflict.where, conflict.reason, clip)
        return False

    def at_a_layer(self, tensor: Tensor) -> bool:
        return tensor.constant is None and any(node in self.layers for node, _ in neighbours(tensor))

    def shared(self, tensor: Tensor) -> _Shared | None:
        """Follow a different number on each channel, and see where each of them arrives."""
        axis = axis_of(tensor)
        size = None if axis is None else (tensor.shape or ())[axis]
        if axis is None or not isinstance(size, int):
            raise Conflict(tensor.name, "the number of its channels is not known")
        if size < 2:
            return None
        marks = 1 + (np.arange(size) + np.random.default_rng(size).uniform(0.25, 0.75, size)) / size
        spread = carry(self.state, tensor, at_axis(marks, axis, tensor.rank), rules=self.rules)
        ends = []
        for reached, value in spread.values.items():
            if value.size < 2:
                continue
            flat = value.reshape(-1)
            where = np.clip(np.searchsorted(marks, flat * (1 - CLOSE)), 0, size - 1)
            known = np.abs(marks[where] - flat) < CLOSE * 2
            if not (known | (flat == 1)).all():
                raise Conflict(tensor.name, "reaches a tensor at a power or product of its own size")
            if value.size == size and known.all() and reached not in self.owner:
                self.owner[reached] = tensor
            for layer, reads, along in self.around(reached):
                if along is not None and value.shape[along] == value.size:
                    if layer.node in self.barred:
                        raise Conflict(layer.node.name, self.barred[layer.node])
                    ends.append((layer, reads, np.where(known, where, -1)))
        return _Shared(axis, size, ends, spread)

    def around(self, tensor: Tensor) -> list[tuple[WeightSizes, bool, int | None]]:
        """The layers that make and read a tensor, and the axis of it that they take for its channels."""
        return [
            (self.layers[node], slot >= 0, channel_axis(node, slot))
            for node, slot in neighbours(tensor)
            if node in self.layers and (slot < 0 or slot == getattr(node.role, "x", 0))
        ]

    def exponents(self, tensor: Tensor, found: _Shared) -> Array:
        """Of two, for each channel: half of what its readers have left over what its makers have."""
        total, count = np.zeros((2, found.size)), np.zeros((2, found.size))
        for layer, reads, where in found.ends:
            own = layer.ranges(self.state)[int(reads)]
            largest = own.max(initial=0.0)
            alive = (where >= 0) & (own > DEAD * largest)
            np.add.at(total[int(reads)], where[alive], np.log2(own[alive] / largest))
            np.add.at(count[int(reads)], where[alive], 1)
        both = (count > 0).all(0)
        if not both.any():
            return np.zeros(found.size)
        mean = total / np.maximum(count, 1)
        wanted = np.round((mean[1] - mean[0]) / 2)
        wanted = np.where(both, wanted - np.round(np.median(wanted[both])), 0.0)
        so_far = np.log2(carried_at(self.state, tensor, found.axis))
        most = np.log2(min(FARTHEST, CARRIED.get(tensor.dtype, FARTHEST)))
        exponents: Array = np.clip(so_far + wanted, -most, most) - so_far
        return exponents

    def better(self, tensor: Tensor, factor: Array, found: _Shared) -> bool:
        spread = carry(self.state, tensor, factor, rules=self.rules)
        layers = {layer for layer, _, _ in found.ends}
        before = sum(layer.lost(self.state) for layer in layers)
        commit(self.state, spread)
        if sum(layer.lost(self.state) for layer in layers) < before - LEAST:
            return True
        undo(self.state, spread)
        return False

    def result(self, before: float) -> Equalized:
        regions = []
        for tensor, found in self.moved.items():
            if tensor not in self.state.p:
                continue
            makers = [layer.node for layer, reads, _ in found.ends if not reads]
            readers = [layer.node for layer, reads, _ in found.ends if reads]
            members = [t for t, value in found.spread.values.items() if (value != 1).any()]
            factors = np.broadcast_to(carried_at(self.state, tensor, found.axis), (found.size,))
            regions.append(Region(tensor, found.axis, factors, members, makers, readers))
        stuck = [entry for tensor, entry in self.stuck.items() if tensor not in self.moved]
        return Equalized(self.state, list(self.layers.values()), regions, stuck, before, self.total())


def _clamp_rule(split: frozenset[Node]) -> Rule:
    """That of Clip, without its demand for one factor where bounds may differ from channel to channel."""

    def rule(spread: Spread, node: Node, slot: int, f: Array) -> None:
        if node not in split:
            table.SCALE[Clamp](spread, node, slot, f)
            return
        positive(spread, node, f)
        spread.want(other_side(node, slot), f, node)

    return rule
