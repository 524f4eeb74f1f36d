"""The new weights of linear layers: `W' = p_y W u_x`, one at a time, or many small ones together.

Deep nets have hundreds of layers with a few thousand weights each, for which a dozen calls of numpy take
longer than the arithmetic. Layers of the same shape are stacked and scaled together, in the same float64
arithmetic; what does not fit its type is left to the way one at a time, which says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from bnfold.fold.absorb.store import store
from bnfold.fold.affine import line
from bnfold.fold.carry.spread import State, same
from bnfold.fold.edits import SetValue
from bnfold.fold.graph import Array, Node
from bnfold.fold.roles import Linear

__all__ = ["Scaled", "both_sides", "decode", "encode", "per_channel", "scale_alone", "scale_together"]

FLOAT32 = np.dtype(np.float32)
TINY_FLOAT32 = np.finfo(np.float32).tiny
SMALL = 1 << 14  # weights of a layer for which stacking pays
AT_ONCE = 1 << 15  # weights in one stack: it stays in a cache

Job = tuple[Node, Array, Any, Any, Any]  # a layer, its weight, the factors of its inputs and outputs, a bias
Scaled = tuple[Array, Any]  # a new weight, and a bias where there was none, or None


def encode(state: State, tensor: Any) -> tuple[Any, Any]:
    """p and q of `t' = p*t + q`."""
    return state.p.get(tensor, 1.0), state.q.get(tensor, 0.0)


def decode(state: State, tensor: Any) -> tuple[Any, Any]:
    """u and v of `t = u*t' + v`; not finite where a scale of zero has lost t."""
    if tensor in state.u:
        return state.u[tensor], state.v[tensor]
    if tensor not in state.p:
        return 1.0, (-state.q[tensor] if tensor in state.q else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = 1.0 / state.p[tensor]
        return u, (-state.q[tensor] * u if tensor in state.q else 0.0)


def per_channel(value: Any, axis: int, size: int) -> Any:
    """One number per channel, or one number.

    Raises:
        ValueError: it varies along another axis, or has another number of channels.
    """
    if isinstance(value, float):
        return value
    if value.shape[axis] == size and value.size == size:
        return value.reshape(size)
    if value.size == 1:
        return value.reshape(())
    first = line(value, axis)
    if value.shape[axis] not in (1, size) or not same(value, first, "scale"):
        raise ValueError("varies along more than its channels")
    return first.reshape(size if first.size > 1 else ())


def both_sides(state: State, node: Node, role: Linear) -> tuple[Any, Any, Any, Any]:
    """The changes of a linear node: u and v of its input (v of the input's rank), p and q of its output.

    Raises:
        ValueError: no weight makes them true.
    """
    x, y, inside, outside = node.at(role.x), node.outputs[0], role.in_axis, role.out_axis
    (u, v), (p, q) = decode(state, x), encode(state, y)
    if (not isinstance(u, float) and u.size > u.shape[inside]) or (
        not isinstance(p, float) and p.size > p.shape[outside]
    ):
        u, v, p = _at_one_place(role, u, v, p, y.rank)
    if not isinstance(u, float):
        u = per_channel(u, inside, role.inputs)
    outputs = role.outputs
    return u, v, per_channel(p, outside, outputs), per_channel(q, outside, outputs)


def _at_one_place(role: Linear, u: Any, v: Any, p: Any, rank: int) -> tuple[Any, Any, Any]:
    """u, v and p of the first place. What passes along free axes is on both sides, and takes itself off."""
    ways = (u, role.in_axis, role.free), (p, role.out_axis, [(goal, goal) for _, goal in role.free])
    passing: Any = 1.0
    for value, axis, free in ways:
        if isinstance(value, float):
            continue
        along = value.take([np.abs(line(value, axis)).argmax()], axis)
        along = along / line(along, axis)
        shape = [1] * rank
        for source, goal in free:
            shape[goal] = value.shape[source]
        if not same(value, along * line(value, axis), "scale"):
            raise ValueError("has other factors at each place")
        passing = passing * along.reshape(shape)
    if not same(np.ones(()), np.asarray(passing), "scale"):
        raise ValueError("passes a change that its other side does not have")
    u, p = line(u, role.in_axis), line(p, role.out_axis)
    if np.size(u) == np.size(p) == 1 and same(np.ones(()), np.asarray(u * p), "scale"):
        u, p = 1.0, 1.0  # the weight stays as it is
    return u, line(v, role.in_axis), p


def factor(role: Linear, u: Any, p: Any, stack: int = 0) -> Any:
    """The factors of inputs and outputs against `role.matrices`.

    u, p: one number, or one for each channel; for a stack of layers with an axis in front (stack=1).
    """
    return _against(role, u, (role.groups, 1, -1), stack) * _against(role, p, (role.groups, -1, 1), stack)


def _against(role: Linear, numbers: Any, where: tuple[int, int, int], stack: int) -> Any:
    if isinstance(numbers, float):
        return numbers
    shape = where if numbers.ndim > stack else (1, 1, 1)
    return numbers.reshape(numbers.shape[:stack] + shape + (1,) * len(role.rest))


def _channel_axis(role: Linear) -> int:
    """The stored axis that runs along the output channels (of one group, for ConvTranspose)."""
    return role.w_out - 1 if role.w_group is not None else role.w_out


def scale_alone(node: Node, role: Linear, factor: Any) -> SetValue:
    """The weight times the factor, computed in float64; raises `OutOfRange` if it does not fit its type."""
    weight = role.weight.value
    if weight.dtype == FLOAT32:
        # numpy widens a small buffer at a time: large weights need no copy in float64
        new = np.empty(weight.shape, FLOAT32)
        goal = role.matrices(new)
        np.multiply(role.matrices(weight), factor, goal, dtype=np.float64, casting="same_kind")
        axes = tuple(axis for axis in range(new.ndim) if axis != _channel_axis(role))
        if np.vdot(new, new) < np.inf and new.max(axes).min(initial=np.inf) >= TINY_FLOAT32:
            return SetValue(node, role.weight_slot, new, role.weight)
    exact = weight.astype(np.float64)
    goal = role.matrices(exact)
    goal *= factor
    return store(node, role.weight_slot, exact, role.weight, axis=_channel_axis(role))


def scale_together(state: State, nodes: Iterable[Node]) -> dict[Node, Scaled]:
    """The new weights of the small layers among these nodes, but for those that may not fit their type."""
    done: dict[Node, Scaled] = {}
    wide = np.empty(AT_ONCE + SMALL)  # one for all stacks: fresh memory takes longer than the arithmetic
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for node in nodes:
        role = node.role
        if not isinstance(role, Linear):
            continue
        weight = role.weight
        size = math.prod(weight.shape)
        if not 0 < size <= SMALL or weight.dtype != "float32" or weight.quantized is not None:
            continue
        try:
            u, v, p, q = both_sides(state, node, role)
        except (IndexError, ValueError):  # contradicting shapes: `absorb` says so
            continue
        if isinstance(u, float) and isinstance(p, float):  # the weight does not change
            continue
        # all that such a layer's bias will be is the shift of its output
        simple = role.bias is None and role.w_group is not None and isinstance(v, float) and _rank(q) == 1
        layout = (weight.shape, role.split, role.w_in, role.w_out, _rank(u), _rank(p), simple)
        group = groups.setdefault(layout, [])
        group.append((node, weight.value, u, p, q if simple else ()))
        if len(group) * size >= AT_ONCE:
            _stack(groups.pop(layout), wide, done)
    for group in groups.values():
        _stack(group, wide, done)
    return done


def _rank(vector: Any) -> int:
    return 0 if isinstance(vector, float) else vector.ndim


def _stack(jobs: list[Job], wide: Array, done: dict[Node, Scaled]) -> None:
    if len(jobs) == 1:
        return
    nodes, weights, us, ps, qs = zip(*jobs, strict=True)
    role: Linear = nodes[0].role
    count, shape = len(jobs), weights[0].shape
    wide = wide[: count * weights[0].size]
    exact = np.concatenate(weights, axis=None, out=wide).reshape(count, *shape)
    goal = role.matrices(exact)
    goal *= factor(role, _stacked(us), _stacked(ps), stack=1)
    new = exact.astype(FLOAT32)
    axes = tuple(axis for axis in range(1, new.ndim) if axis != _channel_axis(role) + 1)
    fits = np.isfinite(new).all(tuple(range(1, new.ndim)))
    fits &= new.max(axes).min(1, initial=np.inf) >= TINY_FLOAT32
    biases: Any = np.array(qs, FLOAT32)
    if biases.size:
        fits &= np.isfinite(biases).all(1) & biases.any(1)
    else:
        biases = [None] * count
    made = zip(nodes, new, biases, fits.tolist(), strict=True)
    done.update((node, (weight, bias)) for node, weight, bias, fit in made if fit)


def _stacked(vectors: tuple[Any, ...]) -> Array:
    return np.concatenate(vectors).reshape(len(vectors), -1) if _rank(vectors[0]) else np.array(vectors)
