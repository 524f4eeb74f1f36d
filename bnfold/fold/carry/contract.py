"""Rules of two tensors that are multiplied and summed. One of them may be stored: an Einsum's weight, of any
number of input and output axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from bnfold.fold.affine import varying
from bnfold.fold.carry.layers import QUANTIZED, without_bias
from bnfold.fold.carry.spread import Alternative, Spread, same
from bnfold.fold.graph import Array, Node, Refused
from bnfold.fold.roles import Contract

__all__ = ["contract_scale", "contract_shift", "stored_operand", "through_stored"]

Places: TypeAlias = "tuple[int | None, ...]"


def contract_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    places = _places(node)
    if any(places[slot][axis] is None for axis in varying(f)):
        raise spread.fail(node, "sums over an axis along which the change varies")
    spread.plain(node)
    spread.later(node, lambda: _ways(spread, node, places))


def stored_operand(node: Node) -> int | None:
    """The slot of the operand that is stored; None: there is none."""
    return next((slot for slot in (0, 1) if node.at(slot).constant is not None), None)


def _places(node: Node) -> dict[int, Places]:
    """Where the axes of the operands and of y (slot -1) lie, in one space for all: y's axes, and behind them
    those that are summed over together with a stored operand.
    """
    role: Contract = node.role  # type: ignore[assignment]
    rank = node.outputs[0].rank
    axes = [list(role.axes[0]), list(role.axes[1])]
    if role.labels is not None and stored_operand(node) is not None:
        left, right, out = role.labels
        for axis, label in enumerate(left):
            other = right.find(label)
            if label in out or other < 0:
                continue
            sizes = {(node.at(slot).shape or ())[at] for slot, at in ((0, axis), (1, other))}
            if len(sizes) == 1 and isinstance(sizes.pop(), int):  # not broadcast
                axes[0][axis] = axes[1][other] = rank
                rank += 1
    return {0: tuple(axes[0]), 1: tuple(axes[1]), -1: tuple(range(node.outputs[0].rank))}


def _ways(spread: Spread, node: Node, places: dict[int, Places]) -> list[Alternative]:
    """What the operands carry, multiplied, is what the output carries; an open one takes the rest. What is
    stored takes it at once, and an operand nothing that the output could.
    """
    width = 1 + max(place for axes in places.values() for place in (*axes, -1) if place is not None)
    carried, open_slots = np.ones((1,) * width), []
    for slot, axes in places.items():
        value = spread.values.get(node.at(slot))
        if value is None:
            open_slots.append(slot)
        else:
            there = _rearranged(value, axes, width)
            carried = carried / there if slot < 0 else carried * there
    if same(carried, np.ones_like(carried), "scale"):
        return []
    ways: list[Alternative] = []
    for slot in sorted(open_slots, key=lambda slot: (node.at(slot).constant is None, slot)):
        constant = node.at(slot).constant
        if constant is None and slot >= 0 and -1 in open_slots:
            continue
        if constant is not None and constant.quantized is not None:
            continue
        back: list[int | None] = [None] * width
        for axis, place in enumerate(places[slot]):
            if place is not None:
                back[place] = axis
        if all(back[axis] is not None for axis in varying(carried)):
            value = _rearranged(carried if slot < 0 else 1.0 / carried, back, node.at(slot).rank)
            ways.append(partial(_give, spread, node, slot, value))
    stored = next((node.at(slot).constant for slot in (0, 1) if node.at(slot).constant), None)
    if not ways and stored is not None and stored.quantized is not None:
        raise spread.fail(
            node, "its weight is quantized, and takes a factor only where it is one matrix", QUANTIZED
        )
    if not ways:
        raise spread.fail(node, "no operand has all the axes along which the change varies")
    return ways


def _give(spread: Spread, node: Node, slot: int, value: Array, _: Array | None) -> None:
    spread.want(node.at(slot), value, node)


def contract_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Contract = node.role  # type: ignore[assignment]
    if role.stochastic is not None:
        _through_rows(spread, node, slot, d)
        return
    stored = stored_operand(node)
    if stored is None or role.labels is None:
        raise spread.fail(node, f"{node.op} of two tensors does not pass a shift")
    own = role.labels[2 if slot < 0 else slot]
    vary = varying(d)
    if slot == stored or any(own[axis] not in role.labels[stored] for axis in vary):
        raise spread.fail(node, f"can only take a shift along the axes of its weight, not along {vary}")
    if slot >= 0:
        _summands(node, stored, d)  # which refuses what cannot be counted

    def passed() -> Array:
        return through_stored(node, d, spread.scale_of(node.at(stored)))

    without_bias(spread, node, slot, role.bias_open, passed)


def through_stored(node: Node, v: Array, scale: Array | float = 1.0) -> Array:
    """What a product with a stored tensor makes of a constant input; of y's rank.

    v: of the input's rank, with one entry along axes along which it is the same. scale: of what is stored.

    Raises:
        Refused: it sums over an axis of a size that is not known.
    """
    role: Contract = node.role  # type: ignore[assignment]
    slot = stored_operand(node)
    assert slot is not None
    assert role.labels is not None
    constant = node.at(slot).constant
    assert constant is not None
    weight = constant.load().astype(np.float64) * scale
    left, right, out = role.labels
    factors = (v, weight) if slot == 1 else (weight, v)
    made: Array = np.einsum(f"{left},{right}->{out}", *factors) * _summands(node, slot, v)
    return made


def _summands(node: Node, stored: int, v: Array) -> int:
    """How many equal products are summed up where neither v nor what is stored varies."""
    role: Contract = node.role  # type: ignore[assignment]
    x, weight = node.at(1 - stored).shape or (), node.at(stored).shape or ()
    assert role.labels is not None
    data, own, out = role.labels[1 - stored], role.labels[stored], role.labels[2]
    count = 1
    for label, size, entries in zip(data, x, v.shape, strict=True):
        if label in out or entries > 1 or (label in own and weight[own.index(label)] != 1):
            continue
        if not isinstance(size, int):
            raise Refused("sums over an axis of a size that is not known")
        count *= size
    return count


def _through_rows(spread: Spread, node: Node, slot: int, d: Array) -> None:
    """Where the rows of one operand sum to one, a shift of the other passes."""
    role: Contract = node.role  # type: ignore[assignment]
    assert role.stochastic is not None
    other = 1 - role.stochastic
    if slot == role.stochastic:
        raise spread.fail(node, f"{node.op} needs weights that sum to one here")
    axes, y = role.axes[other], node.outputs[0]
    vary = varying(d)
    if slot >= 0:
        if any(axes[axis] is None for axis in vary):
            raise spread.fail(node, "sums over an axis along which the shift varies")
        spread.want(y, _rearranged(d, axes, y.rank), node)
        return
    back = {goal: axis for axis, goal in enumerate(axes) if goal is not None}
    if not set(vary) <= set(back):
        raise spread.fail(node, "the operand does not have the axis along which the shift varies")
    spread.want(node.at(other), _rearranged(d, [back.get(axis) for axis in range(y.rank)], len(axes)), node)


def _rearranged(f: Array, goals: Sequence[int | None], rank: int) -> Array:
    """Each axis along which it varies at its place among `rank`."""
    order = sorted(range(f.ndim), key=lambda axis: -1 if goals[axis] is None else goals[axis] or 0)
    shape = [1] * rank
    for axis in varying(f):
        goal = goals[axis]
        assert goal is not None
        shape[goal] = f.shape[axis]
    moved: Array = f.transpose(order).reshape(shape)
    return moved
