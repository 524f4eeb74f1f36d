"""Batch norms that are left in a graph, as scale and shift: known, known at run time, or of the batch itself.

1. Frozen: mean and variance are constant; scale and bias may be known at run time.
2. `training_mode=1`, or before opset 14 more outputs than one: normalizes by its batch, whatever mean and
   variance it is given.
3. Written out: mean and variance are ReduceMean of the input and of its squared deviations, as exporters
   write a batch norm without running statistics.
4. Any other mean and variance that are known at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.onnx_graph.ops.facts import EPSILON
from bnfold.onnx_graph.site import Site, Value
from bnfold.passes.deploy.terms import Computed, Known, Read, Term, add, known, multiply

__all__ = ["Norm", "read_norm", "trains", "why_left"]

# How large `cancels` may be: numbers of that size are rounded by 2 and 10 percent of what comes out.
MOST_CANCELLED = {"float16": 20.0, "bfloat16": 12.0}


@dataclass
class Norm:
    """`x*scale + shift`, of x or, where `epsilon` is given, of x normalized by its own statistics.

    momentum: of the running statistics that others read, or None. cancels: how many times larger scale*mean
    may be than what comes out, where that is known.
    """

    site: Site
    x: Value
    channels: int
    scale: Term
    shift: Term
    epsilon: float | None = None
    momentum: float | None = None
    cancels: float = 0.0

    @property
    def is_steady(self) -> bool:
        """In a half type, `x*scale + shift` rounds two numbers of the size of scale*mean, unlike `x - mean`.

        float32 has the bits for that, and runtimes compute a frozen batch norm so anyway.
        """
        return self.cancels <= MOST_CANCELLED.get(self.x.dtype, np.inf)


def trains(site: Site) -> bool:
    """A batch norm by its batch's own statistics. Before opset 14 its outputs said so, before 7 `is_test`."""
    if site.op != "BatchNormalization":
        return False
    if site.opset >= 14:
        return bool(site.attr("training_mode", 0))
    return any(site.node.output[1:]) if site.opset >= 7 else not site.attr("is_test", 0)


def why_left(site: Site) -> str:
    """Why one by its batch's own statistics stays as it is."""
    if site.opset < 7:
        return "of an opset before 7"
    if site.opset < 14 and any(site.used(index) for index in range(1, len(site.outputs))):
        return "for its statistics are read, which opset 14 was the first to settle"
    return "for shapes or types are not known"


def read_norm(site: Site) -> Norm | None:
    """A BatchNormalization of opset 7 or later, or None if not enough is known of it."""
    x = site.values[0] if len(site.values) == 5 else None
    if x is None or site.op != "BatchNormalization" or site.opset < 7 or site.refers:
        return None
    if x.shape is None or len(x.shape) < 2 or any(value is None for value in site.values):
        return None
    channels = _channels(site)
    if channels is None or (site.opset < 9 and not site.attr("spatial", 1)):
        return None
    rank, epsilon = len(x.shape), float(site.attr("epsilon", EPSILON))
    if any(site.shape(slot) not in (None, (channels,)) for slot in range(1, 5)):
        return None
    gamma, beta, mean, var = (_term(site, slot, rank, channels) for slot in range(1, 5))
    used = any(site.used(index) for index in range(1, len(site.outputs)))
    if used and site.opset < 14:
        return None  # what they are was not settled then
    if trains(site):
        momentum = float(site.attr("momentum", 0.9)) if used else None
        return Norm(site, x, channels, gamma, beta, epsilon, momentum)
    if used:
        return None
    if _is_own_mean(site, 3, x) and _is_own_variance(site, x):
        return Norm(site, x, channels, gamma, beta, epsilon)
    inverse: Term
    if isinstance(var, Known):
        if not (var.array >= 0).all():
            return None
        with np.errstate(all="ignore"):  # a scale that is not finite fits no type: the norm stays
            inverse = Known(1 / np.sqrt(var.array + epsilon))
    else:
        radicand = add(var, known(np.array(epsilon), rank))
        inverse = Computed("Reciprocal", (Computed("Sqrt", (radicand,)),))
    scale = multiply(gamma, inverse)
    offset = multiply(scale, multiply(mean, known(np.array(-1.0), rank)))
    return Norm(site, x, channels, scale, add(beta, offset), cancels=_cancels(offset, gamma, beta))


def _cancels(offset: Term, gamma: Term, beta: Term) -> float:
    if not (isinstance(offset, Known) and isinstance(gamma, Known) and isinstance(beta, Known)):
        return 0.0
    with np.errstate(all="ignore"):
        made = (np.abs(gamma.array) + np.abs(beta.array)).max(initial=0)
        return float(np.abs(offset.array).max(initial=0) / made) if made > 0 else 0.0


def _channels(site: Site) -> int | None:
    for slot, axis in ((0, 1), (1, 0), (2, 0), (3, 0), (4, 0)):
        shape = site.shape(slot)
        if shape is not None and len(shape) > axis and isinstance(shape[axis], int):
            return int(shape[axis] or 0) or None
    return None


def _term(site: Site, slot: int, rank: int, channels: int) -> Term:
    constant = site.constant(slot)
    if constant is not None and not constant.locked:
        return known(constant.load(), rank)
    value = site.values[slot]
    assert value is not None
    return Read(value, (1, channels) + (1,) * (rank - 2))


# Written-out statistics


def _is_own_mean(site: Site, slot: int, x: Value) -> bool:
    """Input `slot` is the mean of x over all axes but 1, without the axes that are gone."""
    reduce = site.producer(slot)
    return reduce is not None and _reduces(reduce, x, x, keepdims=False)


def _is_own_variance(site: Site, x: Value) -> bool:
    """Input 4 is the mean of (x - mean(x))^2."""
    reduce = site.producer(4)
    square = None if reduce is None else reduce.producer(0)
    centered = None if square is None else square.producer(0)
    mean = None if centered is None else centered.producer(1)
    if reduce is None or square is None or centered is None or mean is None:
        return False
    if not (_reduces(reduce, square.outputs[0], x, keepdims=False) and _squares(square)):
        return False
    return centered.op == "Sub" and centered.values[:1] == [x] and _reduces(mean, x, x, keepdims=True)


def _squares(site: Site) -> bool:
    if site.op == "Pow":
        power = site.value(1)
        return power is not None and bool((power == 2).all())
    return site.op == "Mul" and site.values == site.values[:1] * 2


def _reduces(site: Site, value: Value | None, x: Value, keepdims: bool) -> bool:
    """A ReduceMean of a value over all axes of x but 1."""
    if site.op != "ReduceMean" or site.values[:1] != [value] or x.shape is None:
        return False
    axes = site.value(1) if site.has(1) else site.attr("axes")
    if axes is None or bool(site.attr("keepdims", 1)) != keepdims:
        return False
    rank = len(x.shape)
    return sorted(int(axis) % rank for axis in np.asarray(axes).reshape(-1)) == [0, *range(2, rank)]
