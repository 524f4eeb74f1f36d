"""Carry a positive scale on any tensor, if all around it can carry or absorb it.

This is the freedom that folding uses (`t' = p*t`), without a batch norm to make vanish: the node that makes
the tensor multiplies by p, its readers divide by it, and the model computes what it did. With powers of two
nothing is even rounded, short of the type's range. Several such changes add up in one `State`;
`absorb.absorb` then gives the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bnfold.fold.affine import varying
from bnfold.fold.carry import table
from bnfold.fold.carry.guard import CARRIED
from bnfold.fold.carry.spread import Conflict, Rule, Spread, State
from bnfold.fold.graph import Array, Graph, Node, Tensor
from bnfold.fold.roles import Affine, Closed, Linear, Recurrent

_SEED = Node("the rescaling", "", Closed(), [], [])  # stands where a spread names the node that it is for
WIDEST = 1 << 60


def carry(
    state: State,
    tensor: Tensor,
    factor: Array,
    *,
    rules: Mapping[type, Rule] = table.SCALE,
    limit: int = WIDEST,
) -> Spread:
    """Find out what carrying `factor * t` instead of t asks of the tensors around; nothing is committed.

    Args:
        state: what has been committed so far. Its `locks`, where there are some, end hopeless tries at once.
        tensor: the tensor to rescale.
        factor: positive, of the tensor's rank; each axis is 1 or the tensor's size.
        rules: what the roles answer.
        limit: how many tensors the change may reach.

    Returns:
        The spread, for `commit`; `spread.values` holds the factor of each tensor that follows.

    Raises:
        Conflict: a tensor or node around cannot take it; it says which, and why.
        ValueError: the factor is not positive.
    """
    if not bool((factor > 0).all()):
        raise ValueError("a scale that is carried is positive")
    spread = Spread(state, _SEED, "scale", rules, limit)
    spread.want(tensor, np.asarray(factor, np.float64), _SEED)
    spread.run()
    for reached, change in spread.values.items():
        bound = CARRIED.get(reached.dtype)
        size = change * state.p.get(reached, 1.0)
        if (
            bound is not None
            and reached.constant is None
            and not 1 / bound <= size.min() <= size.max() <= bound
        ):
            raise Conflict(reached.name, f"would be carried at {size.max():.3g} times its size")
    return spread


def improve_all(graph: Graph, improve: Callable[[Tensor], bool], rounds: int) -> None:
    """Let `improve` try every tensor, again and again, until it improves none; at most so many rounds."""
    for _ in range(rounds):
        if not sum([improve(tensor) for tensor in graph.tensors]):
            return


def neighbours(tensor: Tensor) -> list[tuple[Node, int]]:
    """The nodes that make and read a tensor, with the slot where they do."""
    made = [] if tensor.producer is None else [(tensor.producer, tensor.slot)]
    return made + tensor.readers


def channel_axis(node: Node, slot: int, maps: bool = False) -> int | None:
    """The axis of the tensor at a node's slot along which the node has weights for each channel, if any.

    maps: whether per-channel maps count, not only layers.
    """
    role = node.role
    if isinstance(role, Linear) and slot in (-1, role.x):
        return role.in_axis if slot >= 0 else role.out_axis
    if isinstance(role, Recurrent):
        return role.axis if slot == role.x else None
    vary = varying(role.scale) if maps and isinstance(role, Affine) else []
    return vary[0] if len(vary) == 1 else None


def axis_of(tensor: Tensor, maps: bool = False) -> int | None:
    """Where the channels of a tensor lie, for the first node around it that has weights for them."""
    axes = (channel_axis(node, slot, maps) for node, slot in neighbours(tensor))
    return next((axis for axis in axes if axis is not None and axis < tensor.rank), None)


def carried_at(state: State, tensor: Tensor, axis: int) -> Array:
    """The factors that channels are carried at: one for each, or one for all."""
    p = state.p.get(tensor, np.ones(()))
    return p.reshape(-1) if p.ndim and p.size == p.shape[axis] else p.max()


def commit(state: State, spread: Spread) -> None:
    """Make a spread's factors part of the state."""
    for tensor, factor in spread.values.items():
        if (factor != 1).any():
            state.p[tensor] = state.p[tensor] * factor if tensor in state.p else factor


def undo(state: State, spread: Spread) -> None:
    """Take a committed spread of powers of two back."""
    for tensor, factor in spread.values.items():
        if (factor != 1).any():
            state.p[tensor] = state.p[tensor] / factor
            if (state.p[tensor] == 1).all():
                del state.p[tensor]
