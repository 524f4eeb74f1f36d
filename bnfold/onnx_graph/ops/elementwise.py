"""Rows for the elementwise operators: arithmetic with constants and between tensors, activations, choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from bnfold.fold.affine import MAPS
from bnfold.fold.graph import Role
from bnfold.fold.roles import Affine, Clamp, Gate, Leaky, Map, Product, Same, Sum
from bnfold.onnx_graph.model.site import Site
from bnfold.onnx_graph.ops.facts import (
    Refused,
    broadcast,
    fits,
    number,
    out_shape_of,
    rank_of,
    shape_of,
)

__all__ = ["ELEMENTWISE"]

# with a constant: the kind of affine map, and how the constant enters on the left and on the right
_FORMS = {
    "Add": ("shift", "x+c", "x+c"),
    "Sub": ("shift", "c-x", "x-c"),
    "Mul": ("scale", "x*c", "x*c"),
    "Div": ("scale", "", "x/c"),
}
# of two tensors
_BETWEEN: dict[str, Role] = {
    "Add": Sum((1.0, 1.0)),
    "Sub": Sum((1.0, -1.0)),
    "Mul": Product((1, 1)),
    "Div": Product((1, -1)),
}
# the largest number of each type: a bound there bounds nothing
_TOP = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.797e308}


def _arithmetic(site: Site) -> Role:
    """Add, Sub, Mul, Div: an affine map if one side is a constant that fits the other."""
    op = site.op
    if site.opset < 7 and site.attr("broadcast", 0):
        raise Refused("broadcasts in the way of opset 6, along an axis of its own")
    left, right = site.constant(0), site.constant(1)
    constant, slot = (right, 1) if right is not None else (left, 0)
    if constant is None:
        return _between(site)
    if left is not None and right is not None:
        raise Refused("computes a constant")
    kind, form = _FORMS[op][0], _FORMS[op][1 + slot]
    if not form:
        raise Refused("divides by its input")
    shape = shape_of(site, 1 - slot)
    if not fits(constant.shape, shape):
        return _between(site)
    c = broadcast(site, constant, slot, shape)
    if not np.isfinite(c).all():
        raise Refused("its constant is not finite")
    if not c.size:
        raise Refused("its constant is empty")
    if form == "x/c" and not c.all():
        raise Refused("divides by zero")
    scale, shift = MAPS[form](c)
    return Affine(scale, shift, kind, x=1 - slot, constants={"value": (slot, constant)}, form=form)


def _between(site: Site) -> Role:
    """Of two tensors; a constant that makes the other one larger is a tensor too."""
    shape_of(site, 0), shape_of(site, 1)
    return _BETWEEN[site.op]


def _operands(site: Site) -> int:
    """The number of operands, all of known rank."""
    count = len(site.node.input)
    for slot in range(count):
        shape_of(site, slot)
    return count


def _sum(site: Site) -> Role:
    return Sum((1.0,) * _operands(site))


def _mean(site: Site) -> Role:
    count = _operands(site)
    return Sum((1.0 / count,) * count)


def _negative(site: Site) -> Role:
    rank_of(site, 0)
    return Sum((-1.0,))


def _extreme(site: Site) -> Role:
    """Max, Min. Against zero they are a Relu, whose scale may differ from channel to channel."""
    zero = site.constant(1) if len(site.node.input) == 2 else None
    if zero is not None and math.prod(zero.shape) == 1 and fits(zero.shape, shape_of(site, 0)):
        value = site.value(1)
        if value is not None and not np.any(value):
            return Map(shift=_no_shift(site))
    return Same(tuple(range(_operands(site))))


def _where(site: Site) -> Role:
    shape_of(site, 1), shape_of(site, 2)
    return Same((1, 2), sign="any")


def _no_shift(site: Site) -> str:
    return f"{site.op} does not pass a shift"


def _map(sign: str, site: Site) -> Role:
    """What keeps zero where it is: Relu, Abs."""
    rank_of(site, 0)
    return _carries(site.op, sign)


@cache
def _carries(op: str, sign: str) -> Map:
    return Map(sign, f"{op} does not pass a shift")


def _leaky_relu(site: Site) -> Role:
    slope = number(site, "alpha", None, 0.01)
    return Leaky(np.full((1,) * rank_of(site, 0), slope))


def _prelu(site: Site) -> Role:
    shape, constant = shape_of(site, 0), site.constant(1)
    if constant is None:
        return Map(shift=_no_shift(site))
    if site.opset < 7 and math.prod(constant.shape) != 1:
        raise Refused("broadcasts its slope in the way of opset 6")
    slope = broadcast(site, constant, 1, shape)
    if not np.isfinite(slope).all():
        raise Refused("its slope is not finite")
    return Leaky(slope, constant, 1)


def _clip(site: Site) -> Role:
    rank_of(site, 0)
    by_input = site.opset >= 11
    low = number(site, "min", 1 if by_input else None, -math.inf)
    high = number(site, "max", 2 if by_input else None, math.inf)
    top = _TOP[site.dtype(0)]
    low, high = (-math.inf if low <= -top else low), (math.inf if high >= top else high)
    if not low <= high:
        raise Refused("its bounds are crossed, or not numbers")
    return Clamp(low, high, (1, 2) if by_input else ("min", "max"))


def _hard_sigmoid(site: Site) -> Role:
    rank_of(site, 0)
    return Gate(number(site, "alpha", None, 0.2), number(site, "beta", None, 0.5))


def _celu(site: Site) -> Role:
    rank_of(site, 0)
    return Gate(number(site, "alpha", None, 1.0), None)


def _trilu(site: Site) -> Role:
    """Sets entries of each matrix to zero: which, is the same for all matrices."""
    rank = len(out_shape_of(site))
    rank_of(site, 0)
    return Map("any", "sets a triangle to zero, where a shift would not be seen", flat=(rank - 2, rank - 1))


ELEMENTWISE: dict[str, Callable[[Site], Role]] = {
    "Abs": partial(_map, "absolute"),
    "Add": _arithmetic,
    "Celu": _celu,
    "Clip": _clip,
    "Div": _arithmetic,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "Max": _extreme,
    "Mean": _mean,
    "Min": _extreme,
    "Mul": _arithmetic,
    "Neg": _negative,
    "PRelu": _prelu,
    "Relu": partial(_map, "positive"),
    "Sub": _arithmetic,
    "Sum": _sum,
    "Trilu": _trilu,
    "Where": _where,
}
