"""The new weights and biases, in float64, from the changes that were committed.

For every tensor `t' = p*t + q`, so `t = u*t' + v` with u = 1/p, v = -q/p. A linear layer `y = W x + b`
becomes `y' = (p_y W u_x) x' + p_y (b + W v_x) + q_y`; the other roles follow in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bnfold.fold.absorb.linear import (
    Scaled,
    both_sides,
    decode,
    encode,
    factor,
    per_channel,
    scale_alone,
    scale_together,
)
from bnfold.fold.absorb.store import OutOfRange, as_float, in_type, store, to_disk
from bnfold.fold.affine import any_nonzero, at_axis, compact
from bnfold.fold.carry.contract import stored_operand, through_stored
from bnfold.fold.carry.equation import through_weight
from bnfold.fold.carry.spread import ODD_SHAPES, State
from bnfold.fold.edits import AddBias, Bypass, Edit, Rescale, Retype, SetValue
from bnfold.fold.graph import Array, Graph, Node
from bnfold.fold.roles import (
    Affine,
    Clamp,
    Contract,
    Gate,
    Leaky,
    Linear,
    Map,
    Normalize,
    Pad,
    Recurrent,
    Sampled,
)

__all__ = ["OutOfRange", "absorb"]

ROUNDING = 1e-14  # of float64, as much as a few operations leave


def absorb(graph: Graph, state: State, most: int = 1) -> list[Edit]:
    """All edits that make the committed changes true; raises `OutOfRange` for the first that cannot be
    stored, or `most` of them.
    """
    failed: list[OutOfRange] = []

    def edits() -> Iterator[Edit]:
        for node in nodes:
            try:
                yield from _edits(state, node, known.get(node))
            except OutOfRange as error:
                failed.append(error)
                if len(failed) == most:
                    return

    touched = set(state.gone) | state.new_biases
    for changed in {**state.p, **state.q, **state.u}:
        if changed.producer is not None:
            touched.add(changed.producer)
        for node, _ in changed.readers:
            touched.add(node)
    nodes = [node for node in graph.nodes if node in touched]
    with np.errstate(over="ignore"):  # `in_type` finds and reports what leaves its range
        known = scale_together(state, nodes)
        made = to_disk(edits())
    if failed:
        failed[0].all = failed
        raise failed[0]
    return made


def _edits(state: State, node: Node, known: Scaled | None) -> Iterator[Edit]:
    """The edits of one node; `known`: what `scale_together` has found for it."""
    if node in state.gone:
        yield Bypass(node)
        return
    for slot, tensor in enumerate(node.inputs):
        if tensor is not None and tensor.constant is not None and (tensor in state.p or tensor in state.q):
            p, q = encode(state, tensor)
            old = as_float(tensor.constant)
            new = _like(compact(p * old + q, lines=True), old.shape)
            if new.shape != old.shape or not np.array_equal(new, old):
                yield store(node, slot, new, tensor.constant)
    make = ABSORB.get(type(node.role))
    if make is not None:
        try:
            yield from make(state, node) if known is None else _linear(state, node, known)
        except (IndexError, ValueError, MemoryError):  # a file may declare shapes that no run would give
            raise OutOfRange(node, ODD_SHAPES) from None


def _linear(state: State, node: Node, known: Scaled | None = None) -> Iterator[Edit]:
    role: Linear = node.role  # type: ignore[assignment]
    dtype: Any = None
    if known is not None:
        weight, bias = known
        dtype = weight.dtype
        yield SetValue(node, role.weight_slot, weight, role.weight)
        if bias is not None:
            yield AddBias(node, bias)
            return
    x, y = node.at(role.x), node.outputs[0]
    u, v, p, q = both_sides(state, node, role)
    if known is None and not (isinstance(u, float) and isinstance(p, float)):
        both = factor(role, u, p)
        if role.weight.quantized is not None:
            yield _rescale(node, role, both)
        else:
            scaled = scale_alone(node, role, both)
            dtype = scaled.value.dtype
            yield scaled
    if role.bias is None and role.costs and node not in state.new_biases:
        return  # a shift of the input was carried to the output: what the bias would be is zero
    moved = not isinstance(v, float) and any_nonzero(v)
    added: Any = through_weight(role, v, x.rank) if moved else 0.0
    if role.bias is not None:
        before = as_float(role.bias) * role.beta
        if before.ndim > 1:  # Gemm: C of shape (M, N), (M, 1) or (1, N)
            p, q, added = (
                at_axis(a, role.out_axis, y.rank) if np.ndim(a) else a for a in (p, q, np.asarray(added))
            )
        after = p * (before + added) + q
        if moved or y in state.p or y in state.q:
            if before.ndim == 0:
                after = np.asarray(after).reshape(-1) if np.ndim(after) else after
            assert role.bias_slot is not None
            yield store(node, role.bias_slot, after / role.beta, role.bias)
    else:
        after = p * added + q if moved else q
        if any_nonzero(after):
            dtype = role.weight.value.dtype if dtype is None else dtype
            if np.size(after) != role.outputs:
                after = np.broadcast_to(after, (role.outputs,))
            if role.w_group is None and role.out_axis < y.rank - 1:  # a bias along rows: (M, 1)
                after = after.reshape((role.outputs,) + (1,) * (y.rank - 1 - role.out_axis))
            yield AddBias(node, in_type(node, after, None, dtype))


def _contract(state: State, node: Node) -> Iterator[Edit]:
    """A stored operand is set with all others; what is left is the addition behind it."""
    if node not in state.new_biases:
        return
    slot = stored_operand(node)
    assert slot is not None
    (_, v), (p, q) = decode(state, node.at(1 - slot)), encode(state, node.outputs[0])
    constant = node.at(slot).constant
    assert constant is not None
    came: Any = 0.0 if isinstance(v, float) else through_stored(node, v)
    after = np.asarray(p * came + q)
    if any_nonzero(after):
        after = compact(after.reshape((1,) * (node.outputs[0].rank - after.ndim) + after.shape), lines=True)
        yield AddBias(node, in_type(node, after, None, constant.load().dtype))


def _rescale(node: Node, role: Linear, factor: Array) -> Rescale:
    stored = np.empty(role.weight.shape)
    role.matrices(stored)[...] = factor
    for axis in range(stored.ndim):
        first = stored.take([0], axis)
        if np.array_equal(np.broadcast_to(first, stored.shape), stored):
            stored = first
    return Rescale(node, role.weight_slot, stored, role.weight)


def _affine(state: State, node: Node) -> Iterator[Edit]:
    role: Affine = node.role  # type: ignore[assignment]
    (u, v), (p, q) = decode(state, node.at(role.x)), encode(state, node.outputs[0])
    if role.kind != "norm":
        slot, constant = role.constants["value"]
        if role.kind == "scale":
            new = compact(p * role.scale * u, ROUNDING, lines=True)  # what it passes on cancels
            new, old = (1.0 / new, 1.0 / role.scale) if role.form == "x/c" else (new, role.scale)
        else:
            came, goes = p * role.scale * v, q
            moved = np.asarray(came + goes)
            moved = np.where(np.abs(moved) <= ROUNDING * (np.abs(came) + np.abs(goes)), 0.0, moved)
            new, old = compact(p * role.shift + moved, lines=True), role.shift
            new, old = (-new, -old) if role.form == "x-c" else (new, old)
        if not (np.abs(new - old) <= ROUNDING * np.abs(old)).all():
            yield store(node, slot, _like(new, constant.shape), constant)
        return
    # keep the running statistics in the units of the new input, so that nothing is subtracted that is not
    # small
    parts = {name: as_float(constant) for name, (_, constant) in role.constants.items()}
    axis = 1 if node.at(role.x).rank > 1 else 0
    u, v, p, q = (per_channel(a, axis, parts["mean"].size) for a in (u, v, p, q))
    mean, lost = parts["mean"], np.isinf(u)
    if np.any(lost):  # its own scale is zero there, and what it reads is of no account
        u, v = np.where(lost, 1.0, u), np.where(lost, 0.0, v)
    if np.all(u):
        mean = (mean - v) / u
        shift = p * parts["beta"] + q
    else:
        scale = parts["gamma"] / np.sqrt(parts["var"] + role.eps)
        shift = p * (parts["beta"] + scale * (v - parts["mean"] + u * mean)) + q
    for name, new in (("gamma", p * parts["gamma"] * u), ("beta", shift), ("mean", mean)):
        if not np.array_equal(new, parts[name]):
            slot, constant = role.constants[name]
            yield store(node, slot, np.broadcast_to(new, constant.shape), constant)


def _like(value: Array, shape: tuple[int, ...]) -> Array:
    """The value in the shape of the constant it replaces, if it varies along none of its axes of size 1."""
    extra = max(value.ndim - len(shape), 0)
    if all(size == 1 for size in value.shape[:extra]):
        value = value.reshape(value.shape[extra:])
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    fits = len(padded) == len(shape) and all(a in (1, b) for a, b in zip(padded, shape, strict=True))
    return np.broadcast_to(value, shape) if fits else value


def _recurrent(state: State, node: Node) -> Iterator[Edit]:
    role: Recurrent = node.role  # type: ignore[assignment]
    u, v = decode(state, node.at(role.x))
    inputs = role.weight.shape[-1]
    u, v = per_channel(u, role.axis, inputs), per_channel(v, role.axis, inputs)
    for constant, slot, bias, bias_slot in role.directions:
        weight = as_float(constant)  # (directions, gates * hidden, inputs), or of one direction
        yield store(node, slot, weight * u, constant, axis=weight.ndim - 2)
        if np.any(v):
            added = (weight * v).sum(-1)
            gates = added.shape[-1]
            before = np.zeros((*added.shape[:-1], 2 * gates)) if bias is None else as_float(bias).copy()
            before[..., :gates] += added
            assert bias_slot is not None
            yield store(node, bias_slot, before, bias, constant.value.dtype)


def _sampled(state: State, node: Node) -> Iterator[Edit]:
    role: Sampled = node.role  # type: ignore[assignment]
    y, outputs = node.outputs[0], role.weight.shape[0]
    p, q = (per_channel(value, 1, outputs) for value in encode(state, y))
    if y in state.p:
        factor = np.asarray(p).reshape((-1,) + (1,) * (len(role.weight.shape) - 1))
        yield store(node, role.weight_slot, factor * as_float(role.weight), role.weight, axis=0)
    if role.bias is not None:
        if y in state.p or y in state.q:
            yield store(node, role.bias_slot, p * as_float(role.bias) + q, role.bias)
    elif np.any(q):
        bias = np.zeros(outputs) + q
        yield store(node, role.bias_slot, bias, None, role.weight.value.dtype)


def _leaky(state: State, node: Node) -> Iterator[Edit]:
    role: Leaky = node.role  # type: ignore[assignment]
    p, _ = encode(state, node.at(0))
    if np.all(np.asarray(p) > 0):
        return
    slope = np.where(np.asarray(p) > 0, role.slope, 1.0 / role.slope)
    if role.constant is not None:
        yield store(node, role.key, _like(slope, role.constant.shape), role.constant)
    else:
        yield SetValue(node, role.key, np.float32(slope.reshape(-1)[0]))


def _clamp(state: State, node: Node) -> Iterator[Edit]:
    role: Clamp = node.role  # type: ignore[assignment]
    p, q = (np.asarray(a, np.float64) for a in encode(state, node.at(0)))
    if not q.any() and (p > 0).all() and role.low in (0, -np.inf) and role.high in (0, np.inf):
        return
    factor, shift = float(p.reshape(-1)[0]), float(q.reshape(-1)[0])
    # No bound stays none: zero times infinity is no number.
    low, high = (x * factor + shift if np.isfinite(x) else x for x in (role.low, role.high))
    if factor < 0:
        low, high = (x if np.isfinite(x) else -x for x in (high, low))
    for key, new, old in zip(role.keys, (low, high), (role.low, role.high), strict=True):
        if new != old:
            yield SetValue(node, key, np.asarray(new, np.float64))


def _gate(state: State, node: Node) -> Iterator[Edit]:
    role: Gate = node.role  # type: ignore[assignment]
    u, v = (float(np.asarray(a).reshape(-1)[0]) for a in decode(state, node.at(0)))
    if role.beta is None:
        yield SetValue(node, "alpha", np.float32(role.alpha / u))
    else:
        yield SetValue(node, "alpha", np.float32(role.alpha * u))
        yield SetValue(node, "beta", np.float32(role.beta + role.alpha * v))


def _pad(state: State, node: Node) -> Iterator[Edit]:
    role: Pad = node.role  # type: ignore[assignment]
    if role.fill is None:
        return
    p, q = (np.asarray(a, np.float64).reshape(-1)[0] for a in encode(state, node.at(role.x)))
    new = float(p * role.fill + q)
    if new != role.fill:
        yield SetValue(node, role.key, np.asarray(new, np.float64))


def _map(state: State, node: Node) -> Iterator[Edit]:
    role: Map = node.role  # type: ignore[assignment]
    if role.flip and bool((np.asarray(encode(state, node.at(role.x))[0]) < 0).all()):
        yield Retype(node, role.flip)


def _normalize(state: State, node: Node) -> Iterator[Edit]:
    role: Normalize = node.role  # type: ignore[assignment]
    y = node.outputs[0]
    p, q = encode(state, y)
    if y in state.p or y in state.q:
        p, q = (_own(a, role) for a in (p, q))
        if role.scale is not None and y in state.p:
            yield store(node, role.scale_slot, p * as_float(role.scale), role.scale)
        if role.bias is not None:
            yield store(node, role.bias_slot or 0, p * as_float(role.bias) + q, role.bias)
        elif role.scale is not None and role.bias_slot is not None and np.any(q):
            bias = np.zeros(role.scale.shape) + q
            yield store(node, role.bias_slot, bias, None, role.scale.value.dtype)
    u, _ = decode(state, node.at(0))
    factor = float(np.asarray(u).reshape(-1)[0])
    if factor != 1.0:
        yield SetValue(node, "epsilon", np.float32(role.eps / factor**2))


def _own(value: Any, role: Normalize) -> Any:
    """A change of the output in the layout of the operator's own parameters."""
    if not np.ndim(value):
        return value
    vector = np.asarray(value).reshape([value.shape[axis] for axis in role.axes])
    if role.groups and vector.size > 1:
        return vector.reshape(role.groups, -1)[:, 0]
    return vector.reshape(()) if vector.size == 1 else vector


ABSORB: dict[type, Callable[[State, Node], Iterator[Edit]]] = {
    Linear: _linear,
    Affine: _affine,
    Contract: _contract,
    Recurrent: _recurrent,
    Sampled: _sampled,
    Leaky: _leaky,
    Clamp: _clamp,
    Gate: _gate,
    Pad: _pad,
    Map: _map,
    Normalize: _normalize,
}
