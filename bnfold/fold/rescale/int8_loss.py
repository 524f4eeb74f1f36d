"""How well each channel of a layer uses one int8 scale: the largest weight against the largest of its row.

One scale for a whole weight lets its largest entry have 7 bits and a sign. A channel whose own largest entry
is 2^-k of that has 7 - k: it loses k bits. An output channel that loses bits is rounded coarsely itself; an
input channel that loses bits reaches all outputs coarsely. Both are counted, and so is what carrying does
to the numbers that the layer reads, which have one scale as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.absorb.linear import decode, encode, per_channel
from bnfold.fold.affine import line
from bnfold.fold.carry.spread import State
from bnfold.fold.graph import Array, Node
from bnfold.fold.roles import Linear, Recurrent

__all__ = ["BITS", "WeightSizes", "weight_sizes", "lost"]

BITS = 7.0  # of an int8 beside the sign: a channel cannot lose more


@dataclass(eq=False)
class WeightSizes:
    """The sizes of a layer's weights, (groups, outputs of one, inputs of one), and where its channels lie."""

    node: Node
    sizes: Array
    in_axis: int
    out_axis: int | None  # None: the outputs are closed

    def ranges(self, state: State) -> tuple[Array, Array]:
        """The largest weight of each output and of each input channel, as they are carried."""
        sizes, (groups, _, inputs) = self.sizes, self.sizes.shape
        u, _ = decode(state, self.node.at(getattr(self.node.role, "x", 0)))
        u = per_channel(line(u, self.in_axis), self.in_axis, groups * inputs)
        if not isinstance(u, float):
            sizes = sizes * u.reshape((groups, 1, inputs) if u.size > 1 else ())
        if self.out_axis is not None:
            p, _ = encode(state, self.node.outputs[0])
            p = per_channel(line(p, self.out_axis), self.out_axis, groups * sizes.shape[1])
            if not isinstance(p, float):
                sizes = sizes * p.reshape((groups, sizes.shape[1], 1) if p.size > 1 else ())
        return sizes.max(2, initial=0.0).reshape(-1), sizes.max(1, initial=0.0).reshape(-1)

    def lost(self, state: State) -> float:
        """Bits lost, in the mean over the channels: by the outputs of the weight, by its inputs, and by what
        the layer reads, whose channels are taken to use one scale equally well where nothing is carried.
        """
        rows, columns = self.ranges(state)
        p = state.p.get(self.node.at(getattr(self.node.role, "x", 0)))
        read = 0.0 if p is None else float(np.log2(p.max()) - np.log2(p).mean())
        return lost(rows) + lost(columns) + read


def lost(ranges: Array) -> float:
    """The mean over the channels that are not zero."""
    own = ranges[ranges > 0]
    if not own.size:
        return 0.0
    return float(np.minimum(np.log2(own.max() / own), BITS).mean())


def weight_sizes(node: Node) -> WeightSizes | None:
    """None for a node without a floating point weight that mixes channels."""
    role: Any = node.role
    if isinstance(role, Linear) and role.weight.quantized is None:
        weight = role.matrices(np.abs(role.weight.value))
        sizes = weight.reshape(*weight.shape[:3], -1).max(3, initial=0.0).astype(np.float64)
        return WeightSizes(node, sizes, role.in_axis, role.out_axis) if np.isfinite(sizes).all() else None
    if isinstance(role, Recurrent) and role.weight.quantized is None:
        weight = np.abs(role.weight.value)
        sizes = weight.reshape(1, -1, weight.shape[2]).astype(np.float64)
        return WeightSizes(node, sizes, role.axis, None) if np.isfinite(sizes).all() else None
    return None
