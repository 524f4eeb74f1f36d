"""Zero scales, which are no linear equation: what has lost its value must be needed by nobody.

A node with a zero scale that vanishes either makes its input a constant there (backward), and with it all
that carries the same scale, or lets its output be scaled by zero (forward).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, product

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array, Graph, Node
from tests.fold.laws import Laws

READ = (roles.Normalize, roles.SoftmaxInput)  # pass no zero from what they read
REFUSE = (roles.Leaky, roles.Gate, roles.Product, roles.Contract, *READ)  # pass none
CLOSE = 1e-9
NOBODY: frozenset[int] = frozenset()


def lost(graph: Graph, laws: Laws, names: Array, shifts: Array) -> Iterator[frozenset[int]]:
    """Sets of candidates that cannot vanish together.

    names: of unknowns, those of equal |u| share one. shifts: likewise those of equal v.
    """
    fixed = int(names[0])
    refused = {name for node in graph.nodes if _refuses(node) for name in _around(laws, node, names)}
    closed = {fixed} | refused  # what no zero comes out of
    affines = [(node, *_entries(laws, node)) for node in graph.nodes if isinstance(node.role, roles.Affine)]
    needed = closed | {name for node in graph.nodes for name in _read(laws, node, names)}
    passed = [
        (x, y)
        for _, xs, ys, a, _ in affines
        for x, y in zip(names[xs[a != 0]], names[ys[a != 0]], strict=True)
    ]
    while more := {int(x) for x, y in passed if y in needed} - needed:
        needed |= more
    numbers = {node: number for number, node in enumerate(laws.candidates)}
    vanishing = [(numbers[node], *rest) for node, *rest in affines if node in numbers]
    before, behind = _blocks(needed), _blocks(closed)
    for number, xs, ys, a, _ in vanishing:  # what vanishes hands on that a value is needed, or no zero passes
        for x, y in zip(names[xs[a != 0]].tolist(), names[ys[a != 0]].tolist(), strict=True):
            if x in needed and y not in needed:
                before[y].add(frozenset({number}))
            if y in closed and x not in closed:
                behind[x].add(frozenset({number}))
    becomes: dict[int, dict[int, float]] = {}  # a tensor's entry: by candidate, the constant that it becomes
    for number, xs, ys, a, b in vanishing:
        for x, y, constant in zip(xs[a == 0], ys[a == 0], b[a == 0], strict=True):
            shifted = shifts[y] == shifts[0] and abs(constant) > CLOSE  # forward, all that is left is a shift
            forward = {NOBODY} if shifted else behind[int(names[y])]
            if names[y] in closed:
                becomes.setdefault(int(x), {})[number] = float(constant)
            yield from (frozenset({number}) | f | b for f, b in product(forward, before[int(names[x])]))
    for known in becomes.values():
        for (first, one), (second, other) in combinations(known.items(), 2):
            if abs(one - other) > CLOSE:
                yield frozenset({first, second})


def _blocks(names: set[int]) -> dict[int, set[frozenset[int]]]:
    """By name, the sets of candidates whose vanishing stands in the way; at first, that of nobody."""
    found: dict[int, set[frozenset[int]]] = defaultdict(set)
    found.update((name, {NOBODY}) for name in names)
    return found


def _refuses(node: Node) -> bool:
    """Whether it passes no zero: all but a Relu among those with bounds."""
    role = node.role
    bounded = isinstance(role, roles.Clamp) and not (role.low in (0, -np.inf) and role.high in (0, np.inf))
    return bounded or isinstance(role, REFUSE)


def _around(laws: Laws, node: Node, names: Array) -> set[int]:
    data = [t for slot, t in enumerate(node.inputs) if t is not None and roles.is_data(node.role, slot)]
    around = data if isinstance(node.role, READ) else [*data, *node.outputs]
    return {int(name) for tensor in around if tensor is not None for name in names[laws.ids[tensor]].flat}


def _read(laws: Laws, node: Node, names: Array) -> set[int]:
    """What a layer needs to know of its input."""
    role = node.role
    if not isinstance(role, roles.Linear):
        return set()
    weight = role.matrices(role.weight.load().astype(np.float64))
    used = (weight != 0).any(tuple(axis for axis in range(weight.ndim) if axis not in (0, 2))).reshape(-1)
    ids = laws.ids[node.at(role.x)]
    if ids.shape[role.in_axis] > 1:
        ids = ids.compress(used, role.in_axis)
    return {int(name) for name in names[ids].flat} if used.any() else set()


def _entries(laws: Laws, node: Node) -> tuple[Array, ...]:
    """The unknowns of the entries of an affine node's input and output, with their scales and shifts."""
    role: roles.Affine = node.role  # type: ignore[assignment]
    arrays = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]], role.scale, role.shift
    return tuple(array.ravel() for array in np.broadcast_arrays(*arrays))
