"""Operators with several tensors: all share one change, or an equation says how it is split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.fold.affine import align, at_axis, varying
from bnfold.fold.carry.spread import Alternative, Mismatch, Spread, same
from bnfold.fold.graph import Array, Node, Tensor
from bnfold.fold.roles import Linear, Product, Sum

__all__ = ["LARGEST", "balance", "fit", "share", "through_weight"]

LARGEST = 1 << 22  # elements that a constant operand may grow to


def fit(spread: Spread, node: Node, array: Array, tensor: Tensor) -> Array:
    """As this operand sees it (numpy broadcasting): of its rank, not varying where it is broadcast.

    A constant may grow instead, as far as the result goes, unless it is rigid.
    """
    own = tensor.constant
    if own is not None and not own.rigid and own.quantized is None and not own.locked:
        rank = max(array.ndim, len(own.shape))
        pairs = [*zip(align(array, rank).shape, (1,) * (rank - len(own.shape)) + own.shape, strict=True)]
        fits = all(a == b or 1 in (a, b) for a, b in pairs)
        if fits and math.prod(map(max, pairs)) <= LARGEST:
            return array
    try:
        array = align(array, tensor.rank)
    except ValueError as error:
        raise spread.fail(node, f"an operand is broadcast, and the change {error}") from None
    shape = tensor.shape or ()
    for axis, size in enumerate(array.shape):
        if size > 1 and shape[axis] != size:
            raise spread.fail(node, "an operand is broadcast along the axis along which the change varies")
    return array


def share(spread: Spread, node: Node, slots: tuple[int, ...], slot: int, f: Array) -> None:
    """The same change on every operand and on the output."""
    for other in (*slots, -1):
        if other != slot:
            tensor = node.at(other)
            spread.want(tensor, fit(spread, node, f, tensor), node)


def balance(spread: Spread, node: Node) -> None:
    """A sum splits a shift among its operands, a product a scale; which one takes it is a choice, made late.

    1. All tensors set: the equation must hold.
    2. One open: it takes what is missing. Equations of this kind go first.
    3. Several open: each that may change is tried, those first that absorb at once, and of these the one
    whose bias stays smallest.
    """
    spread.later(node, lambda: _ways(spread, node))


def _ways(spread: Spread, node: Node) -> list[Alternative]:
    open_slots, missing = _missing(spread, node)
    if _holds(spread, node, missing):
        return []
    if not open_slots:
        raise Mismatch(node, missing, spread.folds)
    tensors: dict[Tensor, list[int]] = {}
    # if none may change, the first says why
    for slot in [slot for slot in open_slots if spread.is_open(node.at(slot))] or open_slots:
        tensors.setdefault(node.at(slot), []).append(slot)
    ranked = sorted(tensors.items(), key=lambda item: _cost(spread, item[0], item[1], missing))
    return [_way(spread, node, slots, missing) for _, slots in ranked]


def _way(spread: Spread, node: Node, slots: list[int], missing: Array) -> Alternative:
    """Let one tensor (which may fill several slots) take what is missing."""
    weight = sum(_weights(node)[slot] for slot in slots)

    def take(residual: Array | None) -> None:
        value = missing
        if (
            residual is not None
        ):  # it came back to this node by another way: the equation is linear, so one step does
            value = _secant(spread, missing, residual)
        if weight == 0:
            raise spread.fail(node, "its operands cancel")
        value = value / weight if spread.kind == "shift" else _root(spread, node, value, weight)
        spread.want(node.at(slots[0]), fit(spread, node, value, node.at(slots[0])), node)
        spread.later(node, lambda: _check(spread, node))

    return take


def _check(spread: Spread, node: Node) -> list[Alternative]:
    _, missing = _missing(spread, node)
    if not _holds(spread, node, missing):
        raise Mismatch(node, missing, spread.folds)
    return []


def _holds(spread: Spread, node: Node, missing: Array) -> bool:
    if spread.kind == "scale":
        return same(np.ones_like(missing), missing, "scale")
    sizes = [np.abs(spread.values[t]).max() for t in {*node.inputs, node.outputs[0]} if t in spread.values]
    return bool(np.abs(missing).max(initial=0.0) <= 1e-9 * max(sizes, default=0.0))


def _weights(node: Node) -> dict[int, float]:
    """The equation `sum(weight * d) = 0` (or the same with powers): the output has weight -1."""
    role = node.role
    if isinstance(role, Product):
        return {**dict(enumerate(map(float, role.powers))), -1: -1.0}
    assert isinstance(role, Sum)
    return {**dict(enumerate(role.coefficients)), -1: -1.0}


def _missing(spread: Spread, node: Node) -> tuple[list[int], Array]:
    """The slots that are not set yet, and what one slot of weight 1 would have to take."""
    rank = node.outputs[0].rank
    open_slots: list[int] = []
    total: Any = np.full((1,) * rank, spread.neutral)
    for slot, weight in _weights(node).items():
        value = spread.values.get(node.at(slot))
        if value is None:
            open_slots.append(slot)
        elif spread.kind == "shift":
            total = total - weight * align(value, rank)
        else:
            total = total * align(value, rank) ** -weight
    return open_slots, total


def _root(spread: Spread, node: Node, value: Array, weight: float) -> Array:
    if weight in (1.0, -1.0):
        return value**weight
    if (value <= 0).any():
        raise spread.fail(node, "a negative scale has no square root")
    return np.asarray(value ** (1.0 / weight))


def _secant(spread: Spread, missing: Array, residual: Array) -> Array:
    if spread.kind == "scale":
        with np.errstate(all="ignore"):
            power = np.log(np.abs(missing)) / (np.log(np.abs(missing)) - np.log(np.abs(residual)))
            return np.where(np.isfinite(power), np.abs(missing) ** power, np.nan_to_num(missing))
    gap = missing - residual
    return np.where(gap == 0, 0.0, missing * (missing / np.where(gap == 0, 1.0, gap)))


def _cost(spread: Spread, tensor: Tensor, slots: list[int], missing: Array) -> tuple[int, float]:
    locks = spread.state.locks
    if tensor.fixed or (
        locks is not None and tensor in locks[spread.kind] and locks[spread.kind][tensor].whole
    ):
        return 9, 0.0
    if varying(missing) and any(
        size > 1
        and (tensor.rank - missing.ndim + axis < 0 or (tensor.shape or ())[axis - missing.ndim] != size)
        for axis, size in enumerate(missing.shape)
    ):
        return 8, 0.0
    if tensor.constant is not None:
        return 1, 0.0
    producer = tensor.producer
    if producer is None or len(tensor.readers) > len(slots) or slots == [-1]:
        return (3 if slots == [-1] else 4), 0.0
    if isinstance(producer.role, Linear) and producer.role.costs == 0:
        return 2, _bias_size(spread, producer, tensor, missing) if spread.kind == "shift" else 0.0
    return 5, 0.0


def _bias_size(spread: Spread, producer: Node, tensor: Tensor, missing: Array) -> float:
    """How large the bias would become, in the units of the original tensor."""
    role: Linear = producer.role  # type: ignore[assignment]
    extra: Any = (missing + spread.state.q.get(tensor, 0.0)) / spread.scale_of(tensor)
    bias: Any = 0.0
    if role.bias is not None and extra.ndim > role.out_axis:
        value = np.asarray(role.bias.value, np.float64)
        if value.ndim == 1 and extra.shape[role.out_axis] in (1, value.size):
            bias = at_axis(value, role.out_axis, extra.ndim)
    return float(np.abs(extra + bias).max(initial=0.0))


def through_weight(role: Linear, v: Array, rank: int) -> Array:
    """`W v` for a constant input v that varies along the input axis only: one number per output channel."""
    weight = role.matrices(np.array(role.weight.value, np.float64))  # our own: multiplied in place
    vector = np.broadcast_to(v.reshape(v.shape[role.in_axis] if v.ndim == rank else v.size), (role.inputs,))
    weight *= vector.reshape(role.groups, 1, -1, *(1,) * len(role.rest))
    out: Array = weight.sum(tuple(range(2, weight.ndim)))
    return out.reshape(-1) * role.alpha
