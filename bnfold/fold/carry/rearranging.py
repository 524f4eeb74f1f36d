"""Rules of operators that rearrange, join or add tensors, or multiply them entry by entry."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from bnfold.fold import moves
from bnfold.fold.carry import equation
from bnfold.fold.carry.common import data_slot, flat, other_side, positive
from bnfold.fold.carry.spread import Spread
from bnfold.fold.graph import Array, Node, Refused, Tensor
from bnfold.fold.roles import Concat, Move, Same, Split

SMALL = 1 << 12  # elements of a constant that is looked at to see whether it is zero


def move(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Move = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    try:
        moved = role.move.push(f) if slot >= 0 else role.move.pull(f)
    except Refused as refused:
        raise spread.fail(node, str(refused)) from None
    spread.want(other_side(node, slot, role.x), moved, node, slot < 0)


def split(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Split = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    axis, sizes = role.axis, role.sizes
    if slot >= 0:
        offset = 0
        for output, size in zip(node.outputs, sizes, strict=True):
            part = _part(f, axis, offset, size)
            spread.want(output, part.squeeze(axis) if role.drops else part, node)
            offset += size
        return
    f = np.expand_dims(f, axis) if role.drops else f
    if _is_spatial(f, axis):
        spread.want(node.at(0), f, node)
        return
    whole = _whole(f, axis, sum(sizes[: -1 - slot]), sizes[-1 - slot], sum(sizes))
    spread.want(node.at(0), whole, node, True)


def concat(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Concat = node.role  # type: ignore[assignment]
    axis, sizes = role.axis, role.sizes
    f = np.expand_dims(f, axis) if role.adds and slot >= 0 else f
    if None in sizes or (slot >= 0 and _is_spatial(f, axis)):
        even = flat(spread, node, f, (axis,))
        for index in range(len(sizes)):
            spread.want(node.at(index), even.squeeze(axis) if role.adds else even, node)
        spread.want(node.outputs[0], even, node)
        return
    if slot >= 0:
        *starts, total = _offsets(sizes)
        whole = _whole(f, axis, starts[slot], sizes[slot] or 0, total)
        spread.want(node.outputs[0], whole, node, True)
        return
    offset = 0
    for index, size in enumerate(sizes):
        if size:
            part = _part(f, axis, offset, size)
            spread.want(node.at(index), part.squeeze(axis) if role.adds else part, node)
            offset += size


@lru_cache(1024)
def _offsets(sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    """Where each part begins, and where the last one ends."""
    return tuple(accumulate([size or 0 for size in sizes], initial=0))


def _is_spatial(f: Array, axis: int) -> bool:
    """The parts are joined in space, not in channels: what changes one changes all of them."""
    return bool(f.shape[axis] == 1 and (f.size > 1 or axis > 1))


def _part(f: Array, axis: int, offset: int, size: int) -> Array:
    if f.shape[axis] == 1:
        return f
    where: list[Any] = [slice(None)] * f.ndim
    where[axis] = slice(offset, offset + size)
    part: Array = f[tuple(where)]
    return part


def _whole(f: Array, axis: int, offset: int, size: int, total: int) -> Array:
    shape = list(f.shape)
    shape[axis] = total
    moves.check_size(shape)
    whole = np.full(shape, np.nan)
    where: list[Any] = [slice(None)] * f.ndim
    where[axis] = slice(offset, offset + size)
    whole[tuple(where)] = f
    return whole


def same(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Same = node.role  # type: ignore[assignment]
    if slot >= 0 and slot not in role.slots:
        raise spread.fail(node, f"{node.op} reads it as a condition")
    slots = role.slots
    if spread.kind == "scale":  # which leaves a constant of zeros as it is
        slots = tuple(other for other in slots if not _is_zero(spread, node.at(other)))
        if role.sign == "positive":
            positive(spread, node, f)
    if spread.kind == "shift" or len(slots) > 1:
        spread.plain(node)
    equation.share(spread, node, slots, slot, f)


def _is_zero(spread: Spread, tensor: Tensor) -> bool:
    """A stored zero that no fold has shifted so far."""
    constant = tensor.constant
    if constant is None or tensor in spread.state.q:
        return False
    return math.prod(constant.shape) <= SMALL and not np.any(constant.load())


def sum_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    equation.share(spread, node, tuple(range(len(node.inputs))), slot, f)


def sum_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    if spread.zeros == "encode":
        spread.plain(node)
    equation.balance(spread, node)


def product_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    spread.plain(node)
    equation.balance(spread, node)


def product_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    raise spread.fail(node, f"a product ({node.op} of two tensors) does not pass a shift")
