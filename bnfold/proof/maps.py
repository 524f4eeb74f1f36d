"""Maps of each channel by itself, y = scale * x + shift: batch norms by stored statistics, and constants.

One that vanished has nothing in the folded model: what its input and its output are there is one tensor. So

    t' = p_x * x + q_x   and   t' = p_y * (scale * x + shift) + q_y

must be one, for all x: p_x = p_y * scale and q_x = p_y * shift + q_y, in every channel. No number is rounded.

One that stayed has a map in the folded model, of x' = (x - q_x) / p_x, whose stored numbers were rounded.
Both are known in every channel, so that nothing has to be run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnfold.proof.claims import Entry, Image, Wrong
from bnfold.proof.operator import Array, is_float, precision_of, wide
from bnfold.proof.scope import Node, Scope

__all__ = [
    "Channels",
    "Map",
    "along_channels",
    "decoded",
    "map_of",
    "per_channel",
    "size_of",
    "stayed",
    "vanished",
]

# Relative, of numbers that float64 makes on different ways; `certificate.rounds` may add to it.
EXACT = 1e-10
LEFT = 16  # how much larger than the largest of what is left what has cancelled may have been


class Channels(NamedTuple):
    """Where the channels of a tensor are: its axis from the end, how many, and the tensor's rank, at least.

    norm: the axis from the end that a batch norm takes for them, if that is known.
    """

    axis: int
    size: int
    rank: int
    norm: int | None


def along_channels(scope: Scope, node: Node, x: str, at: Channels) -> tuple[Array, Array] | None:
    """What a node that reads x does to each channel, y -> scale * y + shift; None if it is not that."""
    one, zero = np.ones(()), np.zeros(())
    if node.op == "Identity":
        return one, zero
    if node.op == "BatchNormalization":
        return _batch_norm(scope, node, x, at)
    if node.op not in ("Add", "Sub", "Sum", "Mul", "Div") or len(node.inputs) != 2:
        return None
    constant = scope.constant(node.inputs[1 - node.inputs.index(x)])
    if (
        constant is None or not is_float(constant) or constant.ndim > at.rank
    ):  # y may be of a higher rank than x
        return None
    c = per_channel(wide(constant), at.axis, at.size)
    if c is None:
        return None
    if node.op in ("Add", "Sum"):
        return one, c
    if node.op == "Mul":
        return c, zero
    if node.op == "Sub":
        return (one, -c) if node.inputs[0] == x else (-one, c)
    return (1 / c, zero) if node.inputs[0] == x and c.all() else None


def _batch_norm(scope: Scope, node: Node, x: str, at: Channels) -> tuple[Array, Array] | None:
    """By stored statistics. Its channels are axis 1."""
    if node.operator.since < 7 or node.attribute("training_mode", 0) or node.attribute("spatial", 1) != 1:
        return None
    if any(node.outputs[1:]) or len(node.inputs) != 5 or node.inputs[0] != x or at.norm != at.axis:
        return None
    values = [scope.constant(name) for name in node.inputs[1:]]
    if any(value is None or value.ndim != 1 for value in values):
        return None
    scale, shift, mean, var = (wide(value) for value in values if value is not None)
    spread = var + float(node.attribute("epsilon", np.float32(1e-5)))
    if not (spread > 0).all() or scale.size != at.size:
        return None
    factor = scale / np.sqrt(spread)
    return factor, shift - factor * mean


def decoded(image: Image, axis: int, size: int) -> tuple[Array, Array] | None:
    """What a tensor is of its counterpart, u*t' + v, as u and v of each channel; None if it is not that."""
    p, q = (per_channel(value, axis, size) for value in (image.p, image.q))
    if p is None or q is None or image.cut is not None:
        return None
    if image.decoded:
        return p, q
    return (1 / p, -q / p) if p.all() else None


def per_channel(value: Array | float, axis: int, size: int) -> Array | None:
    """One number a channel, of what varies along no other axis (counted from the end); else None."""
    value = np.asarray(value, np.float64)
    if value.size == 1:
        return np.full(size, value.item())
    if value.ndim < -axis or value.shape[axis] != value.size or value.size != size:
        return None
    return value.reshape(-1)


class Map(NamedTuple):
    """Scale and shift of each channel.

    size: the sum of the absolute values of what makes up each shift. half: relative, what each stored number
    may be off by its rounding, all together.
    """

    scale: Array
    shift: Array
    size: Array
    half: float


def map_of(scope: Scope, nodes: Sequence[Node], x: str, out: str, at: Channels) -> Map | None:
    """A region that is one such map of x; None for any other."""
    found = Map(np.ones(at.size), np.zeros(at.size), np.zeros(at.size), 0.0)
    for node in nodes:
        one = along_channels(scope, node, x, at) if list(node.reads()).count(x) == 1 else None
        if one is None or node.outputs[0] == "":
            return None
        scale, shift = one
        size = found.size * np.abs(scale) + size_of(scope, node, shift)
        half = found.half + max(
            (precision_of(value.dtype.name) for value in _constants(scope, node)), default=0.0
        )
        found, x = Map(found.scale * scale, found.shift * scale + shift, size, half), node.outputs[0]
    return found if x == out else None


def _constants(scope: Scope, node: Node) -> list[Array]:
    values = (scope.constant(name) for name in node.inputs if name)
    return [value for value in values if value is not None and is_float(value)]


def size_of(scope: Scope, node: Node, shift: Array) -> Array:
    """The sum of the absolute values of what makes up a shift: that of a batch norm is a difference."""
    beta = scope.constant(node.inputs[2]) if node.op == "BatchNormalization" else None
    return np.abs(shift) if beta is None else np.abs(wide(beta)) + np.abs(wide(beta) - shift)


def stayed(a: Map, b: Map, x: Image, y: Image, at: Channels, rounds: int) -> bool:
    """Whether map `b` is map `a` between the images of what is read and of what comes out.

    rounds: how often the numbers of `b` may have been rounded.

    Returns:
        False if it cannot be told, or is off by more than that.
    """
    ends = decoded(x, at.axis, at.size)
    py, qy = (per_channel(value, at.axis, at.size) for value in (y.p, y.q))
    if ends is None or py is None or qy is None or y.decoded:
        return False
    u, v = ends
    scale, shift = py * a.scale * u, py * (a.scale * v + a.shift) + qy
    terms = np.abs(py) * (np.abs(a.scale * v) + a.size) + np.abs(qy)
    slack = rounds * b.half + EXACT
    with np.errstate(invalid="ignore"):
        near = np.abs(b.scale - scale) <= slack * np.abs(scale)
        # the shift of a batch norm has a product of two stored numbers
        near &= np.abs(b.shift - shift) <= 2 * slack * terms
    return bool(near.all())


def vanished(found: Map, x: Image, y: Image, at: Channels, where: str, looser: float = 0.0) -> bool:
    """Whether nothing does in the folded model what this map does in the original.

    looser: relative, what numbers may be off beside what float64 makes of them, where they were rounded more
    than once. Large ones may have cancelled by now: how large they were is not known.

    Returns:
        False if it cannot be told: x or y varies along other axes, or is given as what it decodes to; or a
        channel is off by what may be left of what has cancelled.

    Raises:
        Wrong: a channel is another one.
    """
    if x.decoded or y.decoded:
        return False
    px, qx, py, qy = (per_channel(value, at.axis, at.size) for value in (x.p, x.q, y.p, y.q))
    if px is None or qx is None or py is None or qy is None:
        return False
    scale, shift = found.scale, py * found.shift
    for what, got, want, size in (
        ("scale", px, py * scale, np.abs(px)),
        ("shift", qx, shift + qy, np.abs(qx) + np.abs(shift) + np.abs(qy)),
    ):
        error = np.abs(got - want)
        wrong = ~(error <= (EXACT + looser) * size)
        if wrong.any():
            if looser and error.max() <= LEFT * looser * size.max():  # not where one is NaN
                return False
            channel = int(np.where(np.isnan(error), np.inf, error).argmax())
            entry = Entry(f"{what} of {where}", (channel,), float(got[channel]), float(want[channel]))
            near = float(error[channel]) < 1e-3 * max(float(size.max()), 1e-300)
            raise Wrong("what vanished is not what its tensors say", entry, final=near)
    return True
