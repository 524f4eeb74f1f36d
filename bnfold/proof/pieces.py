"""Which pieces of a piecewise function were met by the numbers that a region was computed on.

Where an operator is one function below a bound and another above it, numbers that lie on one side of the
bound say nothing about the other: a Clip at 1e4 is no Clip at all for most inputs. Where it is nearly flat,
as Tanh is far from zero, they say nearly nothing. So what a region's evaluation decides counts only if each
such operator in it has had numbers on both sides, or where it is steep: at every place along every axis,
since what another channel has met says nothing about this one. A place whose input never changes has nothing
to meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.proof.graph import Node
from bnfold.proof.operator import Array, is_float

__all__ = ["Met", "along", "bounds_of"]

Values: TypeAlias = "Sequence[Array | None]"

# Beyond this a bound stands for "no bound": exporters write the largest float32.
NO_BOUND = 1e37
ZERO = frozenset({"Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu", "Sign", "Softsign"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
# Where they are steep enough that a difference shows: for inputs between these.
STEEP = {"Atan": (-100.0, 100.0), "Erf": (-1.5, 1.5), "Exp": (-8.0, 80.0), "Gelu": (-2.5, 2.5)}
STEEP |= {"Mish": (-4.0, 4.0), "Sigmoid": (-4.0, 4.0), "Softplus": (-4.0, math.inf), "Tanh": (-2.5, 2.5)}
STEEP |= {"Swish": (-4.0, math.inf)} | dict.fromkeys(("Celu", "Elu", "Selu"), (-3.0, 3.0))
# Of what counts only the largest entry, or nearly so: the share that each must have had, of an equal one.
SHARE = 1e-2
SOFT, HARD = frozenset({"LogSoftmax", "ReduceLogSumExp", "Softmax"}), {"ReduceMax": 1.0, "ReduceMin": -1.0}


class Met:
    """What one node has met so far, of each piece by its name: at which places, along each axis in turn."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.places: dict[str, Array] = {}
        self.low: Array | None = None
        self.high: Array | None = None

    def look(self, fixed: Sequence[bool], values: Values, outputs: Sequence[Array]) -> None:
        """One evaluation. fixed: which inputs are constants."""
        x = values[0] if values else None
        if x is None or isinstance(x, list) or not x.size:
            return
        pieces = dict(_pieces(self.node, fixed, values, outputs))
        if not pieces:
            return
        for what, hit in pieces.items():
            found = along(np.broadcast_to(hit, x.shape) if hit.size == 1 else hit, np.any)
            self.places[what] = self.places[what] | found if what in self.places else found
        changing = values[fixed.index(False)] if False in fixed else x
        if changing is not None and changing.shape == next(iter(pieces.values())).shape:
            low, high = along(changing, np.min), along(changing, np.max)
            self.low = low if self.low is None else np.minimum(self.low, low)
            self.high = high if self.high is None else np.maximum(self.high, high)

    def missed(self, strict: bool) -> str:
        """What has not been met, at some place if `strict`, else at none, in words; "" if nothing."""
        for what, places in self.places.items():
            still = ~places if strict or not places.any() else np.zeros(1, bool)
            if self.low is not None and self.high is not None and self.low.shape == still.shape:
                still = still & (self.low != self.high)
            if still.any():
                return what
        return ""


def bounds_of(node: Node, values: Values) -> list[float]:
    """The bounds of what an operator does with its first input."""
    if node.op in ZERO:
        return [0.0]
    make = _BOUNDS.get(node.op)
    found = [] if make is None else make(node, values)
    return [bound for bound in found if abs(bound) < NO_BOUND]


def _pieces(
    node: Node, fixed: Sequence[bool], values: Values, outputs: Sequence[Array]
) -> Iterator[tuple[str, Array]]:
    """Each piece in words that say that it was never met, and where it is met."""
    x = values[0]
    assert x is not None
    if node.op.startswith("Gather") and fixed[0] and not fixed[1]:
        yield "of a stored table only those entries are met that one run reads", np.zeros(x.shape, bool)
    elif (node.op == "Where" and not fixed[0]) or node.op in COMPARISONS:
        truth = outputs[0] if node.op in COMPARISONS else x
        yield "it is never true", truth.astype(bool)
        yield "it is never false", ~truth.astype(bool)
    elif node.op in ("Max", "Min"):
        given = [np.broadcast_to(v, outputs[0].shape) for v in values if v is not None]
        for i, v in enumerate(given if len(given) > 1 else ()):
            if all((other != v).any() for other in given if other is not v):
                yield f"its input {i} never wins", v == outputs[0]
    elif node.op in SOFT or node.op in HARD:
        axes = _axes(node, values, x.ndim)
        size = math.prod(x.shape[axis] for axis in axes)
        if size > 1:  # of one entry nothing is to be told
            yield "an entry never counts", _counts(node.op, x, axes, SHARE / size)
    else:
        for bound in bounds_of(node, values):
            yield f"nothing is below {bound:g}", x < bound
            yield f"nothing is above {bound:g}", x > bound
        if node.op in STEEP:
            low, high = STEEP[node.op]
            yield "nothing is where it is steep", (x > low) & (x < high)


def _axes(node: Node, values: Values, rank: int) -> tuple[int, ...]:
    """Those that a reduction or a Softmax runs over."""
    if node.op in ("LogSoftmax", "Softmax"):
        newer = node.operator.since >= 13
        axis = int(node.attribute("axis", -1 if newer else 1)) % rank
        return (axis,) if newer else tuple(range(axis, rank))
    stated = node.attribute("axes")
    if stated is None and len(values) > 1 and values[1] is not None:
        stated = values[1].reshape(-1).tolist()
    return tuple(int(axis) % rank for axis in stated) if stated else tuple(range(rank))


def _counts(op: str, x: Array, axes: tuple[int, ...], share: float) -> Array:
    """Which entries make a difference: the largest one, or those with some share of the sum."""
    if op in HARD:
        return np.asarray(HARD[op] * x == (HARD[op] * x).max(axes, keepdims=True))
    with np.errstate(all="ignore"):
        part = np.exp(x - x.max(axes, keepdims=True))
        part = part / part.sum(axes, keepdims=True)
    return np.asarray((part > share) & (part.max(axes, keepdims=True) < 0.99))


def along(x: Array, how: Callable[..., Array]) -> Array:
    """What is left of an array along each of its axes but the first, one after the other."""
    if x.ndim < 2:
        return np.atleast_1d(x)
    axes = range(x.ndim)
    return np.concatenate([how(x, axis=tuple(a for a in axes if a != axis)).reshape(-1) for axis in axes[1:]])


def _clip(node: Node, values: Values) -> list[float]:
    stated = [float(a.f) for a in node.proto.attribute if a.name in ("min", "max")]
    given = [float(v.reshape(-1)[0]) for v in values[1:3] if v is not None and v.size and is_float(v)]
    return stated + given


def _hard_sigmoid(node: Node, _: Values) -> list[float]:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    return [-beta / alpha, (1 - beta) / alpha] if alpha else []


def _shrink(node: Node, _: Values) -> list[float]:
    edge = float(node.attribute("lambd", 0.5))
    return [-edge, edge]


_BOUNDS: dict[str, Callable[[Node, Values], list[float]]] = {
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _node, _values: [-3.0, 3.0],
    "Shrink": _shrink,
    "ThresholdedRelu": lambda node, _values: [float(node.attribute("alpha", 1.0))],
}
