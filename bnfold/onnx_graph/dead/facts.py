"""What is proven of each channel: the interval in which its values lie, whatever the model is fed.

Bounds flow forward through the graph, by one rule for each operator or role. No statistics are used: a
running variance of zero says what a channel did in training, and not what it can do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from bnfold.fold.graph import (
    Affine,
    Array,
    Clamp,
    Concat,
    Constant,
    Gate,
    Graph,
    Leaky,
    Linear,
    Map,
    Move,
    Node,
    Normalize,
    Pad,
    Product,
    Role,
    Split,
    Sum,
    Tensor,
)
from bnfold.fold.moves import Stuck
from bnfold.onnx_graph.dead.functions import FUNCTIONS, image
from bnfold.onnx_graph.dead.interval import Bounds, settled, unknown
from bnfold.onnx_graph.dead.weights import through
from bnfold.onnx_graph.facts import LARGEST
from bnfold.onnx_graph.site import FLOATS, Site

__all__ = ["Facts", "prove"]

Facts: TypeAlias = "dict[Tensor, Bounds]"
Rule: TypeAlias = "Callable[[Node, list[Bounds]], Bounds | list[Bounds]]"

# what a rule may stumble over in a node whose attributes or shapes do not match
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, ArithmeticError, Stuck)
_INTEGERS = {"bool": (0.0, 1.0), "uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}


def prove(graph: Graph, given: Mapping[str, Bounds] | None = None) -> Facts:
    """The bounds of all floating point tensors.

    Args:
        graph: nodes in the order in which they run.
        given: bounds of graph inputs that hold by agreement, by name.
    """
    facts: Facts = {}
    for node in graph.nodes:
        inputs = [_of(tensor, facts, given or {}) for tensor in node.inputs]
        found = _asked(node, inputs)
        for tensor, bounds in zip(node.outputs, found, strict=True):
            facts[tensor] = _kept(tensor, bounds)
    return facts


def _of(tensor: Tensor | None, facts: Facts, given: Mapping[str, Bounds]) -> Bounds:
    if tensor is None:
        return unknown(0)
    if tensor.constant is not None:
        return _stored(tensor.constant)
    found = facts.get(tensor)
    if found is None and tensor.producer is None:
        found = given.get(tensor.name)
    return unknown(tensor.rank) if found is None else found


def _stored(constant: Constant) -> Bounds:
    rank = len(constant.shape)
    if constant.dtype not in FLOATS or math.prod(constant.shape) > LARGEST:
        return unknown(rank)
    value = constant.load().astype(np.float64)
    if not np.isfinite(value).all():
        return unknown(rank)
    return Bounds(value, value)


def _asked(node: Node, inputs: list[Bounds]) -> list[Bounds]:
    site: Site = node.source
    count = len(node.outputs)
    nothing = [unknown(tensor.rank) for tensor in node.outputs]
    rule = BY_OP.get(node.op) or BY_ROLE.get(type(node.role))
    if rule is None or site.refers or site.scope.in_function:
        return nothing
    try:
        found = rule(node, inputs)
    except _DAMAGE:
        return nothing
    return found if isinstance(found, list) else [found, *nothing[1:count]]


def _kept(tensor: Tensor, bounds: Bounds) -> Bounds:
    """Of the tensor's rank and sizes, and not larger than is worth it."""
    shape = tensor.shape
    if shape is None or tensor.dtype not in FLOATS or any(a.ndim != len(shape) for a in bounds):
        return unknown(tensor.rank)
    for array in bounds:
        if any(n > 1 and n != size for n, size in zip(array.shape, shape, strict=True)):
            return unknown(tensor.rank)
    if max(array.size for array in bounds) > LARGEST:
        bounds = bounds.flat(range(tensor.rank))
    return settled(bounds, tensor.dtype)


# by role


def _linear(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Linear)
    return through(role, inputs[role.x], node.outputs[0].rank)


def _affine(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Affine)
    return inputs[role.x].scaled(role.scale).plus(Bounds(role.shift, role.shift))


def _leaky(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Leaky)
    x = inputs[0]
    ends = [np.where(end < 0, _times(end, role.slope), end) for end in x]
    zero = np.where((x.lo < 0) & (x.hi > 0), 0.0, ends[0])
    return Bounds(np.minimum.reduce([*ends, zero]), np.maximum.reduce([*ends, zero]))


def _times(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(b == 0, 0.0, a * b))


def _clamp(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Clamp)
    return inputs[0].each(lambda end: np.clip(end, role.low, role.high))


def _gate(node: Node, inputs: list[Bounds]) -> Bounds:
    role, x = node.role, inputs[0]
    assert isinstance(role, Gate)
    if role.beta is not None:
        beta = np.full((1,) * x.lo.ndim, role.beta)
        line = x.scaled(np.full((1,) * x.lo.ndim, role.alpha)).plus(Bounds(beta, beta))
        return line.each(lambda end: np.clip(end, 0.0, 1.0))
    if role.alpha <= 0:
        return unknown(x.lo.ndim)
    return x.each(lambda end: np.where(end > 0, end, role.alpha * np.expm1(np.minimum(end, 0) / role.alpha)))


def _move(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Move)
    x, y = inputs[role.x], node.outputs[0]
    try:
        return x.each(role.move.push)
    except Stuck:
        whole = x.flat(range(x.lo.ndim))
        return whole.each(lambda end: end.reshape((1,) * y.rank))


def _pad(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Pad)
    x = inputs[0].flat(role.axes)
    return x if role.fill is None else x.with_value(role.fill)


def _split(node: Node, inputs: list[Bounds]) -> list[Bounds]:
    role, x = node.role, inputs[0]
    assert isinstance(role, Split)
    if x.lo.shape[role.axis] == x.hi.shape[role.axis] == 1:
        return [x] * len(node.outputs)
    lo, hi = np.broadcast_arrays(*x)
    cuts = np.cumsum(role.sizes)[:-1]
    parts = zip(np.split(lo, cuts, role.axis), np.split(hi, cuts, role.axis), strict=True)
    return [Bounds(*part) for part in parts]


def _concat(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Concat)
    if None in role.sizes:
        others = [x.flat([role.axis]) for x in inputs]
        result = others[0]
        for other in others[1:]:
            result = result.hull(other)
        return result
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


def _sum(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Sum)
    terms = [x.scaled(np.asarray(c)) for x, c in zip(inputs, role.coefficients, strict=True)]
    result = terms[0]
    for term in terms[1:]:
        result = result.plus(term)
    return result


def _product(node: Node, inputs: list[Bounds]) -> Bounds:
    role = node.role
    assert isinstance(role, Product)
    result = _power(inputs[0], role.powers[0])
    for x, power in zip(inputs[1:], role.powers[1:], strict=True):
        result = result.times(_power(x, power))
    return result


def _power(x: Bounds, power: int) -> Bounds:
    if power == 1:
        return x
    away = (x.lo > 0) | (x.hi < 0)  # from zero
    with np.errstate(divide="ignore"):
        lo, hi = 1 / x.hi, 1 / x.lo
    if not away.all():  # zero divided by zero is no number
        raise ValueError("may divide by zero")
    return Bounds(np.where(away, lo, -np.inf), np.where(away, hi, np.inf))


def _normalize(node: Node, inputs: list[Bounds]) -> Bounds:
    """Only a scale of zero is known to give something constant: the bias."""
    role, y = node.role, node.outputs[0]
    assert isinstance(role, Normalize)
    if role.scale is None or role.groups:
        return unknown(y.rank)
    shape = [1] * y.rank
    for axis, size in zip(role.axes, role.scale.shape, strict=True):
        shape[axis] = size
    scale = role.scale.load().astype(np.float64).reshape(shape)
    bias = np.zeros(shape) if role.bias is None else role.bias.load().astype(np.float64).reshape(shape)
    zero = scale == 0
    return Bounds(np.where(zero, bias, -np.inf), np.where(zero, bias, np.inf))


# by operator


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
    lo, hi = inputs[1].hull(inputs[2])
    rank = node.outputs[0].rank
    return Bounds(lo.reshape((1,) * (rank - lo.ndim) + lo.shape), hi.reshape((1,) * (rank - hi.ndim) + hi.shape))


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


def _cast(node: Node, inputs: list[Bounds]) -> Bounds:
    known = _INTEGERS.get(node.source.dtype(0))
    if known is None:
        return _move(node, inputs)
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

BY_ROLE: dict[type[Role], Rule] = {
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
