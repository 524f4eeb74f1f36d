"""Operators that jump, and are flat in between: what they give says next to nothing of what they read.

Two models whose Floor, Greater or ArgMax give the same on random numbers may read different numbers all the
same, and jump at different places. So both have to have the same operator, and it has to read the same: that
is what two functions that are not flat can show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from bnfold.proof.graph import Node
from bnfold.proof.operator import Array, is_float

__all__ = ["Step", "step", "unlike"]

Step: TypeAlias = "tuple[Node, list[Array]]"  # and the floating numbers that decide where it jumps

JUMPS = frozenset({"Ceil", "Floor", "Hardmax", "Range", "Round", "Shrink", "Sign", "ThresholdedRelu"})
SHAPES = frozenset({"Shape", "Size"})
# Those whose first input is data, and the others choose what is taken of it.
CHOOSING = frozenset({"GridSample", "RoiAlign"})
CLOSE = 1e-10  # as in evaluate.py, where nothing is rounded


def step(node: Node, given: Sequence[Array | None], outputs: Sequence[Array]) -> Step | None:
    """What a node reads, if it jumps; None if it does not. outputs: those that somebody reads."""
    floats = [x for x in given if x is not None and not isinstance(x, list) and is_float(x)]
    whole = any(not isinstance(y, list) and y.size and not is_float(y) for y in outputs)
    if node.op in CHOOSING:
        mode = node.attribute("mode", b"")
        if node.op == "GridSample" and mode != b"nearest":
            return None
        floats = floats[1:]
    elif not (node.op in JUMPS or node.op.startswith("ai.onnx.ml.") or (whole and node.op not in SHAPES)):
        return None
    return (node, floats) if floats else None


def unlike(a: Iterable[Step], b: Iterable[Step]) -> str:
    """Which of them has no counterpart that reads the same, in words; "" if all have one."""
    ours, theirs = list(a), list(b)
    for some, others in ((ours, theirs), (theirs, ours)):
        for node, given in some:
            if not any(node.key == other.key and _same(given, read) for other, read in others):
                return f"{node.name} ({node.op}) jumps, and it cannot be told whether it reads the same"
    return ""


def _same(given: Sequence[Array], read: Sequence[Array]) -> bool:
    if [x.shape for x in given] != [x.shape for x in read]:
        return False
    with np.errstate(all="ignore"):
        for x, y in zip(given, read, strict=True):
            allowed = CLOSE * np.abs(x) + 1e-13 * np.abs(x[np.isfinite(x)]).max(initial=0.0)
            if not ((np.abs(x - y) <= allowed) | (x == y) | (np.isnan(x) & np.isnan(y))).all():
                return False
    return True
