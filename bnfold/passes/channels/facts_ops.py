"""Bounds through operators that their role does not tell enough of: functions, maxima, pools, casts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.fold.graph import Array, Node
from bnfold.fold.roles import Map, Move
from bnfold.passes.channels.bounds_roles import BY_ROLE, Rule
from bnfold.passes.channels.functions import FUNCTIONS, image
from bnfold.passes.channels.interval import Bounds

__all__ = ["BY_OP"]

_INTEGERS = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


def _function(node: Node, inputs: list[Bounds]) -> Bounds:
    return image(FUNCTIONS[node.op], node.source, inputs[0])


def _largest(node: Node, inputs: list[Bounds]) -> Bounds:
    return Bounds(_reduced(np.maximum, inputs, 0), _reduced(np.maximum, inputs, 1))


def _smallest(node: Node, inputs: list[Bounds]) -> Bounds:
    return Bounds(_reduced(np.minimum, inputs, 0), _reduced(np.minimum, inputs, 1))


def _reduced(function: Callable[[Array, Array], Array], inputs: list[Bounds], end: int) -> Array:
    result = inputs[0][end]
    for x in inputs[1:]:
        result = function(result, x[end])
    return result


def _where(node: Node, inputs: list[Bounds]) -> Bounds:
    mask = node.source.shape(0)
    assert mask is not None
    rank = node.outputs[0].rank
    return inputs[1].hull(inputs[2]).each(lambda end: end.reshape((1,) * (rank - end.ndim) + end.shape))


def _softmax(node: Node, inputs: list[Bounds]) -> Bounds:
    shape = (1,) * node.outputs[0].rank
    return Bounds(np.zeros(shape), np.ones(shape))


def _mean(node: Node, inputs: list[Bounds]) -> Bounds:
    """Of some of the entries along the flat axes, or the largest of them; zeros count where a row says so."""
    role = node.role
    if not isinstance(role, Map):
        raise ValueError("its axes are not known")
    x = inputs[0].flat(role.flat)
    if role.shift and node.op != "MaxPool":
        x = x.with_value(0.0)
    return _squeezed(role, x)


def _squeezed(role: Map, x: Bounds) -> Bounds:
    return x.each(lambda end: end.squeeze(role.squeezed)) if role.squeezed else x


def _reduce_sum(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    if not isinstance(role, Map):
        raise ValueError("its axes are not known")
    x = inputs[0].flat(role.flat)
    count = Bounds(np.asarray(role.gain), np.asarray(role.gain)) if role.gain else _SOME
    return _squeezed(role, x.times(count))


_SOME = Bounds(np.asarray(0.0), np.asarray(np.inf))  # summands, so many that nobody knows


def _length(node: Node, inputs: list[Bounds]) -> Bounds:
    """A norm: zero for zeros, and never negative."""
    role = node.role
    if not isinstance(role, Map):
        raise ValueError("its axes are not known")
    x = inputs[0].flat(role.flat)
    zero = (x.lo == 0) & (x.hi == 0)
    return _squeezed(role, Bounds(np.zeros(zero.shape), np.where(zero, 0.0, np.inf)))


def _resize(node: Node, inputs: list[Bounds]) -> Bounds:
    """Weights sum to one; those of the cubic modes may be negative, so that only one value is sure."""
    role = node.role
    if not isinstance(role, Map):
        raise ValueError("its axes are not known")
    x, mode = inputs[0].flat(role.flat), node.source.attr("mode", "")
    if role.shift:
        x = x.with_value(0.0)
    if mode in ("", "nearest", "linear", "bilinear"):
        return x
    one = x.constant
    return Bounds(np.where(one, x.lo, -np.inf), np.where(one, x.hi, np.inf))


def _cast(node: Node, inputs: list[Bounds]) -> Bounds | list[Bounds]:
    if isinstance(node.role, Move):
        return BY_ROLE[Move](node, inputs)
    known = _INTEGERS[node.source.dtype(0)]
    shape = (1,) * node.outputs[0].rank
    return Bounds(np.full(shape, known[0]), np.full(shape, known[1]))


BY_OP: dict[str, Rule] = {
    **dict.fromkeys(FUNCTIONS, _function),
    **dict.fromkeys(
        (
            *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "Trilu"),
        ),
        _mean,
    ),
    **dict.fromkeys(("GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2"), _length),
    **dict.fromkeys(("GridSample", "Resize", "Upsample"), _resize),
    "Cast": _cast,
    "Max": _largest,
    "Min": _smallest,
    "ReduceSum": _reduce_sum,
    "Softmax": _softmax,
    "Where": _where,
}
