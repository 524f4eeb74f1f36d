"""Elementwise operators of several tensors: arithmetic with constants and between tensors, and choices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np

from bnfold.fold.affine import MAPS, align
from bnfold.fold.graph import Array, Node, Refused, Role
from bnfold.fold.role_builders import ARITHMETIC
from bnfold.fold.roles import Affine, Same, Sum
from bnfold.onnx_graph.ops.facts import broadcast, broadcast_shapes, check_size, fits, shape_of
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Evaluate, Half, Inputs, Operator, Shape
from bnfold.onnx_graph.site import Site

__all__ = ["ELEMENTWISE"]

Binary: TypeAlias = "Callable[[Array, Array], Array]"


def _arithmetic(site: Site) -> Role:
    """Add, Sub, Mul, Div: an affine map if one side is a constant that fits the other.

    A constant that makes the other side larger is a tensor too.
    """
    kind, forms, between = ARITHMETIC[site.op.lower()]
    if site.opset < 7 and site.attr("broadcast", 0):
        raise Refused("broadcasts in the way of opset 6, along an axis of its own")
    left, right = site.constant(0), site.constant(1)
    constant, slot = (right, 1) if right is not None else (left, 0)
    if constant is None:
        shape_of(site, 0), shape_of(site, 1)
        return between
    if left is not None and right is not None:
        raise Refused("computes a constant")
    form = forms[slot]
    if not form:
        raise Refused("divides by its input")
    shape = shape_of(site, 1 - slot)
    if not fits(constant.shape, shape):
        shape_of(site, slot)
        return between
    c = broadcast(site, constant, slot, shape)
    if not np.isfinite(c).all():
        raise Refused("its constant is not finite")
    if not c.size:
        raise Refused("its constant is empty")
    if form == "x/c" and not c.all():
        raise Refused("divides by zero")
    scale, shift = MAPS[form](c)
    return Affine(scale, shift, kind, x=1 - slot, constants={"value": (slot, constant)}, form=form)


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


def _extreme(site: Site) -> Role:
    """Max, Min."""
    return Same(tuple(range(_operands(site))))


def _where(site: Site) -> Role:
    shape_of(site, 1), shape_of(site, 2)
    return Same((1, 2), sign="any")


# Shapes.


def _broadcast(site: Site) -> Shape | None:
    result: Shape | None = None
    for slot in range(len(site.values)):
        shape = site.shape(slot)
        if shape is None:
            return None
        if result is None:
            result = shape
        elif site.opset >= 7 and (result != shape or None in shape):
            result = broadcast_shapes(result, shape)
    return result


# Constants.


def _computed(function: Binary, compares: bool = False) -> Evaluate:
    def evaluate(site: Site, inputs: Inputs) -> Any:
        a, b = inputs
        own = not site.attr("broadcast", 0) or site.attr("axis") is not None
        if site.opset < 7 and a.shape != b.shape and own:
            raise ValueError("not numpy's broadcasting")
        if a.dtype != b.dtype and site.op != "Pow":
            raise ValueError("two types")
        check_size(np.broadcast_shapes(a.shape, b.shape), a.itemsize)
        result = np.asarray(function(a, b))
        return result if compares else result.astype(a.dtype, copy=False)

    return evaluate


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ValueError("an integer is divided by zero")
    quotient = np.floor_divide(np.abs(a), np.abs(b))  # ONNX rounds towards zero
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))


def _chosen(site: Site, inputs: Inputs) -> Any:
    check_size(np.broadcast_shapes(*(array.shape for array in inputs)), inputs[1].itemsize)
    return np.where(*inputs)


# Bounds.


def _extreme_bounds(choose: Binary, node: Node, inputs: list[Bounds]) -> Bounds:
    return Bounds(*(reduce(choose, ends) for ends in zip(*inputs, strict=True)))


def _either(node: Node, inputs: list[Bounds]) -> Bounds:
    return inputs[1].hull(inputs[2]).each(lambda end: align(end, node.outputs[0].rank))


_among = partial(Operator, shape=_broadcast)
_ROOT = Half.SINGULAR | Half.COUNTS


def _calculates(function: Binary, half: Half = Half.COUNTS) -> Operator:
    return _among(role=_arithmetic, evaluate=_computed(function), half=half)


def _chooses(function: Binary) -> Operator:
    bounds = partial(_extreme_bounds, function)
    return _among(role=_extreme, evaluate=_computed(function), bounds=bounds, half=Half.MOVES)


ELEMENTWISE: dict[str, Operator] = {
    "Add": _calculates(np.add),
    "Div": _calculates(_divide, half=_ROOT),
    "Equal": Operator(evaluate=_computed(np.equal, compares=True)),
    "Max": _chooses(np.maximum),
    "Mean": _among(role=_mean, half=Half.SUMS),
    "Min": _chooses(np.minimum),
    "Mod": Operator(half=Half.COUNTS),
    "Mul": _calculates(np.multiply),
    "Pow": _among(evaluate=_computed(np.power), half=_ROOT),
    "Sub": _calculates(np.subtract),
    "Sum": _among(role=_sum),
    "Where": Operator(role=_where, data=1, evaluate=_chosen, bounds=_either, half=Half.COUNTS),
}
