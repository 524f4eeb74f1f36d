"""Which pieces of a piecewise function were met by the numbers that a region was computed on.

Where an operator is one function below a bound and another above it, numbers that lie on one side of the
bound say nothing about the other: a Clip at 1e4 is no Clip at all for most inputs. So what a region's
evaluation decides counts only if each such operator in it has had numbers on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.proof.graph import Node
from bnfold.proof.operator import Array, is_float

__all__ = ["bounds_of", "missed"]

Values: TypeAlias = "Sequence[Array | None]"

# Beyond this a bound stands for "no bound": exporters write the largest float32.
NO_BOUND = 1e37
ZERO = frozenset({"Abs", "Celu", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu", "Sign", "Softsign"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def bounds_of(node: Node, values: Values) -> list[float]:
    """The bounds of what an operator does with its first input."""
    if node.op in ZERO:
        return [0.0]
    make = _BOUNDS.get(node.op)
    found = [] if make is None else make(node, values)
    return [bound for bound in found if abs(bound) < NO_BOUND]


def missed(node: Node, fixed: Sequence[bool], values: Values, outputs: Sequence[Array]) -> set[str]:
    """What of a node's pieces these inputs do not meet, in words. fixed: which inputs are constants."""
    x = values[0] if values else None
    if x is None or isinstance(x, list) or not x.size:
        return set()
    if node.op.startswith("Gather") and fixed[0] and not fixed[1]:
        return {"of a stored table only those entries are met that one run reads"}
    if (node.op == "Where" and not fixed[0]) or node.op in COMPARISONS:
        truth = outputs[0] if node.op in COMPARISONS else x
        return {f"it is never {str(v).lower()}" for v in (True, False) if not (truth == v).any()}
    if node.op in ("Max", "Min"):
        return _losers(node.op, values, outputs[0])
    found = set()
    for bound in bounds_of(node, values):
        if not (x < bound).any():
            found.add(f"nothing is below {bound:g}")
        if not (x > bound).any():
            found.add(f"nothing is above {bound:g}")
    return found


def _losers(op: str, values: Values, output: Array) -> set[str]:
    """Of a Max or Min: inputs that never win. Of one input nothing can be missed."""
    given = [np.broadcast_to(v, output.shape) for v in values if v is not None]
    if len(given) < 2:
        return set()
    alone = [all((other != v).any() for other in given if other is not v) for v in given]
    return {f"its input {i} never wins" for i, v in enumerate(given) if alone[i] and not (v == output).any()}


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
