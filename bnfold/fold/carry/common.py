"""What the rules have in common."""

from __future__ import annotations

from typing import Any

from bnfold.fold import moves
from bnfold.fold.carry.spread import Spread
from bnfold.fold.graph import Array, Node, Refused


def flat(spread: Spread, node: Node, array: Array, axes: tuple[int, ...]) -> Array:
    try:
        return moves.flatten(array, axes)
    except Refused as refused:
        raise spread.fail(node, f"needs the same change along the axis, but it {refused}") from None


def uniform(spread: Spread, node: Node, array: Array) -> Array:
    return flat(spread, node, array, tuple(range(array.ndim)))


def positive(spread: Spread, node: Node, f: Array) -> None:
    low = f.min()  # NaN never gets here: partial changes are completed first
    if low < 0 or (low == 0 and not spread.zeros):
        raise spread.fail(
            node, f"{node.op} does not pass a negative scale", "make the batch norm's weight positive"
        )


def other_side(node: Node, slot: int, x: int = 0) -> Any:
    """The tensor on the other side of a one-in, one-out node."""
    return node.outputs[0] if slot >= 0 else node.at(x)


def data_slot(spread: Spread, node: Node, slot: int, x: int = 0) -> None:
    if slot >= 0 and slot != x:
        raise spread.fail(node, f"{node.op} reads it as a parameter computed at run time")
