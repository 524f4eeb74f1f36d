"""What a narrower floating point type would do to a folded model: which channels it cannot hold.

A number below the type's smallest normal one keeps an absolute precision only, half the spacing of the
subnormals. Whether that matters is a question of what it is added to: a weight of 1e-7 beside a bias of 1 may
go, and a channel of 1e-7 whose reader multiplies it by 1e6 may not. So errors are bounded where sums are
formed, at linear layers and per-channel maps, against the sum itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.absorb.linear import both_sides, decode, encode, factor, per_channel
from bnfold.fold.affine import varying
from bnfold.fold.carry.spread import State
from bnfold.fold.graph import Array, Node, Tensor
from bnfold.fold.roles import Affine, Linear, Recurrent

__all__ = ["BFLOAT16", "FLOAT16", "LIMIT", "Headroom", "Narrow", "Seen", "headroom"]

Seen = Callable[[Tensor, int], "Array | None"]  # max|x| for each channel along an axis, as measured; or None

LIMIT = 2.0**-10  # of the sum: a unit in the last place of float16, which rounding the sum costs anyway


@dataclass(frozen=True)
class Narrow:
    """A type: its largest number, its smallest normal one, the spacing of its subnormals."""

    name: str
    largest: float
    tiny: float
    spacing: float


FLOAT16 = Narrow("float16", 65504.0, 2.0**-14, 2.0**-24)
BFLOAT16 = Narrow("bfloat16", (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133)


@dataclass
class Headroom:
    """One linear layer or per-channel map as the narrow type sees it; arrays over all its channels.

    rows: the largest weight of each output channel. columns: of each input channel. vanishing: outputs whose
    own weights vanish. overflowing: outputs with a weight that is too large. fading: inputs that are too
    small for what this layer makes of them.
    """

    rows: Array
    columns: Array
    vanishing: Array
    overflowing: Array
    fading: Array

    @property
    def troubles(self) -> int:
        """How many channels the type cannot hold."""
        return int(self.vanishing.sum() + self.overflowing.sum() + self.fading.sum())


def headroom(node: Node, state: State, seen: Seen, narrow: Narrow) -> Headroom | None:
    """What of a node's weights and inputs the type cannot hold; None for a node without such weights."""
    role = node.role
    try:
        if isinstance(role, Linear) and role.weight.quantized is None:
            return _linear(node, role, state, seen, narrow)
        if isinstance(role, Affine) and role.kind != "shift":
            return _affine(node, role, state, seen, narrow)
        if isinstance(role, Recurrent) and role.weight.quantized is None:
            return _recurrent(node, role, state, seen, narrow)
    except (IndexError, ValueError):  # a file may declare shapes that no run would give
        return None
    return None


def _linear(node: Node, role: Linear, state: State, seen: Seen, narrow: Narrow) -> Headroom:
    x, y = node.at(role.x), node.outputs[0]
    size: Any = role.matrices(np.abs(role.weight.value))
    if x in state.p or y in state.p:
        u, _, p, _ = both_sides(state, node, role)
        size = size * np.abs(factor(role, u, p))
    size = size.reshape(*size.shape[:3], -1)
    given = _seen(seen, state, x, role.in_axis, role.inputs, 1.0).reshape(role.groups, 1, -1)
    made = _seen(seen, state, y, role.out_axis, role.outputs, 0.0).reshape(role.groups, -1)
    return _judge(size, given, made, narrow)


def _recurrent(node: Node, role: Recurrent, state: State, seen: Seen, narrow: Narrow) -> Headroom:
    """The weights of its inputs, (directions, gates * hidden, inputs); what they make is not seen."""
    x, inputs = node.at(role.x), role.weight.shape[2]
    u, _ = decode(state, x)
    size = np.abs(role.weight.value * per_channel(u, role.axis, inputs)).reshape(1, -1, inputs, 1)
    given = _seen(seen, state, x, role.axis, inputs, 1.0).reshape(1, 1, -1)
    return _judge(size, given, np.zeros((1, 1)), narrow)


def _affine(node: Node, role: Affine, state: State, seen: Seen, narrow: Narrow) -> Headroom | None:
    x, y = node.at(role.x), node.outputs[0]
    vary = varying(role.scale)
    if len(vary) > 1:
        return None
    axis = vary[0] if vary else min(1, role.scale.ndim - 1)
    if axis < 0:
        return None
    count = role.scale.size
    (u, _), (p, _) = decode(state, x), encode(state, y)
    scale = np.abs(role.scale.reshape(-1) * per_channel(u, axis, count) * per_channel(p, axis, count))
    given = _seen(seen, state, x, axis, count, 1.0).reshape(-1, 1, 1)
    made = _seen(seen, state, y, axis, count, 0.0).reshape(-1, 1)
    return _judge(scale.reshape(-1, 1, 1, 1), given, made, narrow)


def _seen(seen: Seen, state: State, tensor: Tensor, axis: int, count: int, unknown: float) -> Array:
    """The size of each of `count` channels as it is carried, where it was measured; else `unknown`."""
    found = seen(tensor, axis)
    if found is None:
        return np.full(count, unknown)
    p, _ = encode(state, tensor)
    carried: Array = found * np.abs(per_channel(p, axis, found.size))
    return carried if carried.size == count else np.full(count, carried.max(initial=0.0))


def _judge(weights: Array, x: Array, y: Array, narrow: Narrow) -> Headroom:
    """weights: sizes, (groups, outputs, inputs, taps); x: (groups, 1, inputs); y: (groups, outputs)."""
    largest = weights.max(3, initial=0.0)
    rows, columns = largest.max(2, initial=0.0), largest.max(1, initial=0.0)
    overflowing = rows > narrow.largest
    small = (weights < narrow.tiny) & (weights > 0)
    fades = (x < narrow.tiny) & (x > 0)
    vanishing, fading = np.zeros(rows.shape, bool), np.zeros(columns.shape, bool)
    if small.any() or fades.any():
        total = weights.sum(3, dtype=np.float64)
        # what is less than the output's own rounding is lost anyway; its readers are asked if that matters
        whole = np.maximum(np.maximum((total * x).sum(2), y) * LIMIT, narrow.spacing / 2)
        lost = np.where(small, np.minimum(weights, narrow.spacing / 2), 0).sum(3, dtype=np.float64)
        vanishing = (lost * x).sum(2) > whole
        dim = np.where(fades, np.minimum(x, narrow.spacing / 2), 0)
        fading = ((total * dim).sum(2, keepdims=True) > whole[..., None]) & (total * dim > 0)
        fading = fading.any(1)
    return Headroom(*(a.reshape(-1) for a in (rows, columns, vanishing, overflowing, fading)))
