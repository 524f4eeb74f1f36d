"""Bounds through the roles that linear layers, arithmetic and rearrangements of data have."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from bnfold.fold.graph import Array, Node, Refused, Role
from bnfold.fold.roles import (
    Affine,
    Clamp,
    Concat,
    Gate,
    Leaky,
    Linear,
    Move,
    Normalize,
    Pad,
    Product,
    Split,
    Sum,
)
from bnfold.onnx_graph.ops.interval import Bounds, unknown
from bnfold.passes.channels.matrices import through

__all__ = ["BY_ROLE"]

# as `Operator.bounds`, for the role of the node, which comes first
RoleRule: TypeAlias = "Callable[[Any, Node, list[Bounds]], Bounds | list[Bounds]]"


def _linear(role: Linear, node: Node, inputs: list[Bounds]) -> Bounds:
    return through(role, inputs[role.x], node.outputs[0].rank)


def _affine(role: Affine, node: Node, inputs: list[Bounds]) -> Bounds:
    return inputs[role.x].scaled(role.scale).plus(Bounds(role.shift, role.shift))


def _leaky(role: Leaky, node: Node, inputs: list[Bounds]) -> Bounds:
    x = inputs[0]
    ends = [np.where(end < 0, _times(end, role.slope), end) for end in x]
    zero = np.where((x.lo < 0) & (x.hi > 0), 0.0, ends[0])
    return Bounds(np.minimum.reduce([*ends, zero]), np.maximum.reduce([*ends, zero]))


def _times(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == 0, 0.0, a * b))


def _clamp(role: Clamp, node: Node, inputs: list[Bounds]) -> Bounds:
    return inputs[0].each(lambda end: np.clip(end, role.low, role.high))


def _gate(role: Gate, node: Node, inputs: list[Bounds]) -> Bounds:
    x = inputs[0]
    if role.beta is not None:
        beta = np.full((1,) * x.lo.ndim, role.beta)
        line = x.scaled(np.full((1,) * x.lo.ndim, role.alpha)).plus(Bounds(beta, beta))
        return line.each(lambda end: np.clip(end, 0.0, 1.0))
    if role.alpha <= 0:
        return unknown(x.lo.ndim)
    return x.each(lambda end: np.where(end > 0, end, role.alpha * np.expm1(np.minimum(end, 0) / role.alpha)))


def _move(role: Move, node: Node, inputs: list[Bounds]) -> Bounds:
    x = inputs[role.x]
    try:
        return x.each(role.move.push)
    except Refused:
        whole = x.flat(range(x.lo.ndim))
        return whole.each(lambda end: end.reshape((1,) * node.outputs[0].rank))


def _pad(role: Pad, node: Node, inputs: list[Bounds]) -> Bounds:
    x = inputs[0].flat(role.axes)
    return x if role.fill is None else x.with_value(role.fill)


def _split(role: Split, node: Node, inputs: list[Bounds]) -> list[Bounds]:
    x = inputs[0]
    if x.lo.shape[role.axis] == x.hi.shape[role.axis] == 1:
        return [x] * len(node.outputs)
    cuts = np.cumsum(role.sizes)[:-1]
    return list(map(Bounds, *(np.split(end, cuts, role.axis) for end in np.broadcast_arrays(*x))))


def _concat(role: Concat, node: Node, inputs: list[Bounds]) -> Bounds:
    if None in role.sizes:
        return reduce(Bounds.hull, [x.flat([role.axis]) for x in inputs])
    return Bounds(*(_side_by_side([x[i] for x in inputs], role) for i in (0, 1)))


def _side_by_side(parts: list[Array], role: Concat) -> Array:
    """Joined along the axis, after each is spelt out along the axes where any of them varies."""
    shapes = [[*part.shape] for part in parts]
    for shape, size in zip(shapes, role.sizes, strict=True):
        shape[role.axis] = size or 0
    full = [max(sizes) for sizes in zip(*shapes, strict=True)]
    spelt = []
    for part, shape in zip(parts, shapes, strict=True):
        wanted = [n if i == role.axis else m for i, (n, m) in enumerate(zip(shape, full, strict=True))]
        spelt.append(np.broadcast_to(part, wanted))
    return np.concatenate(spelt, role.axis)


def _sum(role: Sum, node: Node, inputs: list[Bounds]) -> Bounds:
    terms = [x.scaled(np.asarray(c)) for x, c in zip(inputs, role.coefficients, strict=True)]
    return reduce(Bounds.plus, terms)


def _product(role: Product, node: Node, inputs: list[Bounds]) -> Bounds:
    return reduce(Bounds.times, [_power(x, n) for x, n in zip(inputs, role.powers, strict=True)])


def _power(x: Bounds, power: int) -> Bounds:
    if power == 1:
        return x
    away = (x.lo > 0) | (x.hi < 0)  # from zero
    with np.errstate(divide="ignore"):
        lo, hi = 1 / x.hi, 1 / x.lo
    if not away.all():  # zero divided by zero is no number
        raise ValueError("may divide by zero")
    return Bounds(np.where(away, lo, -np.inf), np.where(away, hi, np.inf))


def _normalize(role: Normalize, node: Node, inputs: list[Bounds]) -> Bounds:
    """Only a scale of zero is known to give something constant: the bias."""
    y = node.outputs[0]
    if role.scale is None or role.groups:
        return unknown(y.rank)
    shape = [1] * y.rank
    for axis, size in zip(role.axes, role.scale.shape, strict=True):
        shape[axis] = size
    scale = role.scale.load().astype(np.float64).reshape(shape)
    bias = np.zeros(shape) if role.bias is None else role.bias.load().astype(np.float64).reshape(shape)
    zero = scale == 0
    return Bounds(np.where(zero, bias, -np.inf), np.where(zero, bias, np.inf))


BY_ROLE: dict[type[Role], RoleRule] = {
    Affine: _affine,
    Clamp: _clamp,
    Concat: _concat,
    Gate: _gate,
    Leaky: _leaky,
    Linear: _linear,
    Move: _move,
    Normalize: _normalize,
    Pad: _pad,
    Product: _product,
    Split: _split,
    Sum: _sum,
}
