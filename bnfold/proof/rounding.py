"""How far the rounding of stored numbers moves what a region gives: they are moved by half a unit in the last
place each, up or down at random, some times. So the tolerance of an evaluation calibrates itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bnfold.proof.claims import Image
from bnfold.proof.operator import Array, precision_of, wide
from bnfold.proof.scope import Node, same_bits
from bnfold.proof.side import Side

__all__ = ["DRAWS", "new_attributes", "new_constants", "rounding"]

DRAWS = 16


def rounding(
    side: Side,
    feed: Mapping[str, Array],
    new: Mapping[str, Array],
    stated: Sequence[Node],
    output: Array,
    y: Image,
    rng: np.random.Generator,
) -> Array:
    """How far one more rounding of these constants, and of these nodes' attributes, moves y.p times the
    output, in the root mean square: for each channel of a map, else for each entry.
    """
    total = np.zeros(output.shape)
    signs = np.array([-1.0, 1.0])
    exact = {name: (wide(v), 1 + precision_of(v.dtype.name) * signs) for name, v in new.items()}
    for _ in range(DRAWS if new or stated else 0):
        moved = {k: v * factors[rng.integers(0, 2, v.shape, np.int8)] for k, (v, factors) in exact.items()}
        others = {node: node.operator.moved(rng) for node in stated}
        with np.errstate(all="ignore"):
            total = total + np.square(y.p * (side.run(feed, moved, others) - output)) / DRAWS
    found: Array = np.sqrt(np.nan_to_num(total, nan=0.0, posinf=0.0))
    if found.ndim > 2:
        found = np.asarray(found.max(tuple(range(2, found.ndim)), keepdims=True))
    return found


def new_constants(a: Side, b: Side) -> dict[str, Array]:
    """The constants that region `b` reads and `a` does not, by their bits: what was rounded."""
    old = list(a.constants().values())
    return {k: v for k, v in b.constants().items() if not any(same_bits(v, other) for other in old)}


def new_attributes(a: Side, b: Side) -> list[Node]:
    """The nodes of `b` that state a number which `a` does not."""
    old = {number for node in a.nodes for number in node.numbers().items()}
    return [node for node in b.nodes if any(number not in old for number in node.numbers().items())]
