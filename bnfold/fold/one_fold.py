"""One fold: the ways to make one affine node vanish, the first that works, and what it commits.

A try moves the scale first (undone before the node, or after it), then the shift (likewise), so that the
two can go different ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import numpy as np

from bnfold.fold.affine import any_nonzero, compact
from bnfold.fold.carry.guard import check_precision, check_range
from bnfold.fold.carry.locks import Locks
from bnfold.fold.carry.spread import Conflict, Rule, Spread, State, TooWide
from bnfold.fold.graph import Array, Node, Tensor
from bnfold.fold.roles import Affine

__all__ = ["NARROW", "Run", "Taken", "ends", "fold", "pair"]

# undone before the node, or after it: before it first, since the node that makes a tensor loses no precision
SIDES = ("back", "forward")
NARROW = 4  # tensors that a try of the first pass may reach
Taken: TypeAlias = "tuple[str, tuple[Tensor, ...], tuple[Node, ...]]"  # side, what carries it, who took it in


@dataclass
class Run:
    """One pass over all affine nodes. routes: of each that vanished, the ways of its scale and its shift."""

    state: State = field(default_factory=State)
    into: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    kept: dict[Node, tuple[Conflict, Conflict]] = field(default_factory=dict)
    locks: Locks | None = None
    ways: Counter[str] = field(default_factory=Counter)
    routes: dict[Node, tuple[Taken, Taken]] = field(default_factory=dict)


def ends(node: Node) -> tuple[Tensor, Tensor]:
    assert isinstance(node.role, Affine)
    return node.at(node.role.x), node.outputs[0]


def pair(run: Run, node: Node, limit: int, rules: Mapping[str, Mapping[type, Rule]]) -> bool:
    """Most batch norms stand behind a layer that nobody else reads: if it takes both changes, all is done.

    No guard can object, and `fold` would find the same, in twice the time.
    """
    role: Affine = node.role  # type: ignore[assignment]
    (x, y), state = ends(node), run.state
    maker = x.producer
    if maker is None or maker in state.gone or x.fixed or len(x.readers) > 1:
        return False
    for changed in (state.p, state.q, state.frozen):
        if x in changed or y in changed:
            return False
    a, b = role.scale, role.shift  # which may still be nothing to do, or more than a rule expects
    if not role.plain and (np.count_nonzero(a) < a.size or not any_nonzero(b) or a.item(0) == 1.0):
        return False
    spread = Spread(state, node, "scale", rules["scale"], limit)
    if not _takes(spread, maker, x, a):
        return False
    spread.kind, spread.neutral, spread.rules, spread.factors = "shift", 0.0, rules["shift"], spread.values
    if not _takes(spread, maker, x, b):
        return False
    state.p[x], state.q[x] = a, b
    _gone(run, node, tuple(spread.absorbers))
    run.ways["scale back, shift back"] += 1
    run.routes[node] = (("back", (x,), (maker,)),) * 2
    return True


def _takes(spread: Spread, maker: Node, x: Tensor, change: Array) -> bool:
    """Whether the node that makes this tensor takes the change, and asks nobody else to follow."""
    spread.values = {x: change}
    spread.state.calls += 1
    try:
        spread.rule(maker, x.slot, change)
    except Conflict:
        return False
    if spread.waiting:
        spread.waiting.clear()  # its entries point back at the try
        return False
    return len(spread.values) == 1


def fold(run: Run, node: Node, limit: int, rules: Mapping[str, Mapping[type, Rule]]) -> bool:
    """Try the ways to make one node vanish, and commit the first that works."""
    scale_fails: dict[str, Conflict] = {}
    locked = _locked(run.state, node)
    shift_fails = dict(locked)
    for scale_side in SIDES if len(locked) < len(SIDES) else ():
        try:
            scale = _scale(run.state, node, scale_side, limit, rules["scale"])
        except Conflict as conflict:
            scale_fails[scale_side] = conflict.bare()
            continue
        for shift_side in SIDES if scale_side == "back" else SIDES[::-1]:  # the way of the scale first
            if shift_side in locked:
                continue
            try:
                shift = _shift(run.state, node, scale, scale_side, shift_side, limit, rules["shift"])
                check_range(run.state, scale)
                check_precision(run.state, node, scale, shift)
            except Conflict as conflict:
                shift_fails.setdefault(shift_side, conflict.bare())
                continue
            _commit(run, node, scale, shift)
            run.ways[f"scale {scale_side}, shift {shift_side}"] += 1
            run.routes[node] = _taken(node, scale, scale_side), _taken(node, shift, shift_side)
            if scale.zeros:
                run.ways[f"zero scale {scale_side}"] += 1
            return True
    failures = shift_fails if len(scale_fails) < len(SIDES) else scale_fails
    if limit > NARROW or not any(isinstance(conflict, TooWide) for conflict in failures.values()):
        run.kept[node] = (failures["back"], failures["forward"])
    return False


def _locked(state: State, node: Node) -> dict[str, Conflict]:
    """The sides to which the shift cannot go: asks the locks, before anything is tried."""
    found: dict[str, Conflict] = {}
    if state.locks is None:
        return found
    role: Affine = node.role  # type: ignore[assignment]
    x, y = ends(node)
    if not _invertible(state, x):
        return found
    for side, tensor in zip(SIDES, (x, y), strict=True):
        lock = state.locks["shift"].get(tensor)
        if lock is None or lock.where == node.name:  # it need not take in anything if it vanishes
            continue
        p, q_in, q_out = state.p.get(y, 1.0), state.q.get(x, 0.0), state.q.get(y, 0.0)
        gap = p * role.shift + q_out - p * role.scale / state.p.get(x, 1.0) * q_in
        if gap.any() if lock.whole else gap.all():
            found[side] = Conflict(lock.where, lock.reason, lock.folds, lock.cure)
    return found


def _invertible(state: State, tensor: Tensor) -> bool:
    return tensor not in state.p or np.count_nonzero(state.p[tensor]) == state.p[tensor].size


def _scale(state: State, node: Node, way: str, limit: int, rules: Mapping[type, Rule]) -> Spread:
    """Make `p_in = p_out * a` hold: a factor on the input's side ("back") or on the output's ("forward")."""
    role: Affine = node.role  # type: ignore[assignment]
    x, y = ends(node)
    for tensor in (x, y):
        if tensor in state.frozen or not _invertible(state, x):
            raise Conflict(tensor.name, "carries a zero scale already", state.zeroed.get(tensor, frozenset()))
    spread = Spread(state, node, "scale", rules, limit)
    ratio = role.scale
    if y in state.p:
        ratio = ratio * state.p[y]
    if x in state.p:
        ratio = ratio / state.p[x]
    ratio = compact(ratio, 1e-14)
    here, there = (x, y) if way == "back" else (y, x)
    if np.count_nonzero(ratio) < ratio.size:
        spread.zeros = "encode" if way == "back" else "decode"
    elif way == "forward":
        ratio = 1.0 / ratio
    spread.values[there] = _unchanged(1.0, x.rank)
    spread.via[there] = frozenset()
    spread.want(here, ratio, node)
    spread.run()
    if spread.zeros == "decode":
        _fresh(state, spread)
    return spread


@cache
def _unchanged(value: float, rank: int) -> Array:
    """The neutral change of a tensor of this rank."""
    return np.full((1,) * rank, value)


def _fresh(state: State, spread: Spread) -> None:
    """A decode form replaces what a tensor carries, and does not add to it."""
    for tensor in spread.values:
        if tensor in state.p or tensor in state.q:
            raise Conflict(tensor.name, "carries another change, to which a zero scale cannot be added")


def _shift(
    state: State, node: Node, scale: Spread, scale_way: str, way: str, limit: int, rules: Mapping[type, Rule]
) -> Spread:
    """Make `q_in = p_out * b + q_out` hold likewise."""
    role: Affine = node.role  # type: ignore[assignment]
    x, y = ends(node)
    spread = Spread(state, node, "shift", rules, limit)
    spread.factors, spread.zeros = scale.values, scale.zeros
    if scale.zeros and scale_way != way:
        raise Conflict(node.name, "a zero scale and its shift go the same way")
    if scale.zeros == "decode":
        gap = role.shift
    else:
        gap = spread.scale_of(y) * role.shift
        if x in state.q or y in state.q:
            q_in = state.q.get(x, 0.0) * scale.values.get(x, 1.0)
            q_out = state.q.get(y, 0.0) * scale.values.get(y, 1.0)
            gap = gap + q_out - q_in
            noise = 1e-14 * (np.abs(q_in).max() + np.abs(q_out).max())
            gap = np.where(np.abs(gap) <= noise, 0.0, gap)  # what is left of a cancellation is not a shift
        if way == "forward":
            gap = -gap
    here, there = (x, y) if way == "back" else (y, x)
    if any_nonzero(gap):
        spread.values[there] = _unchanged(0.0, x.rank)
        spread.via[there] = frozenset()
        spread.want(here, np.asarray(gap, np.float64), node)
        spread.run()
    if scale.zeros == "decode":
        _fresh(state, spread)
    return spread


def _commit(run: Run, node: Node, scale: Spread, shift: Spread) -> None:
    state = run.state
    if scale.zeros == "decode":
        state.frozen |= {t for t, f in scale.values.items() if (f != 1).any()}
        state.frozen |= {t for t, d in shift.values.items() if d.any()}
    if scale.zeros == "decode":
        for tensor in {**scale.values, **shift.values}:
            none = np.zeros((1,) * tensor.rank)
            state.u[tensor], state.v[tensor] = (
                scale.values.get(tensor, none + 1),
                shift.values.get(tensor, none),
            )
    else:
        _multiply(state, scale.values)
        for tensor, extra in shift.values.items():
            if extra.size > 1 or extra.item() != 0.0:
                state.q[tensor] = state.q[tensor] + extra if tensor in state.q else extra
    if scale.zeros:
        number = frozenset((len(run.into),))
        state.zeroed |= {t: number for t, f in scale.values.items() if not f.all()}
    state.new_biases |= shift.new_biases
    holders = [*_holders(scale), *_holders(shift)]
    _gone(run, node, _once([*scale.absorbers, *shift.absorbers, *holders]))


def _taken(node: Node, spread: Spread, side: str) -> Taken:
    """The way of a change. On the node's other side nothing has changed."""
    still = ends(node)[side == "back"]
    tensors = tuple(tensor for tensor in spread.values if tensor is not still and tensor.constant is None)
    return side, tensors, _once([*spread.absorbers, *_holders(spread)])


def _once(nodes: Iterable[Node]) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(nodes))


def _holders(spread: Spread) -> Iterator[Node]:
    """The readers of constant operands that change."""
    for tensor, value in spread.values.items():
        if tensor.constant is not None and (value != spread.neutral).any():
            yield tensor.readers[0][0]


def _gone(run: Run, node: Node, into: tuple[Node, ...]) -> None:
    number = len(run.into)
    run.state.gone[node] = number
    run.into[node] = into
    run.kept.pop(node, None)
    if run.locks is not None:
        run.locks.link(node, number)


def _multiply(state: State, factors: Mapping[Tensor, Array]) -> None:
    for tensor, factor in factors.items():
        if factor.size == 1 and factor.item() == 1.0:
            continue
        state.p[tensor] = state.p[tensor] * factor if tensor in state.p else factor
        if tensor in state.q:
            state.q[tensor] = state.q[tensor] * factor
