"""Products of two tensors, one of which may be stored; and all products that have no place for a bias.

A shift of what those read comes out as one, or an addition behind them takes it. There are no more additions
than nodes vanish that are none themselves, or the graph would grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array, Graph, Node, Tensor

if TYPE_CHECKING:
    from tests.fold.laws import Laws

LARGEST = 1 << 20  # numbers of an equation system: a larger product may get its addition for nothing

Map = tuple[Array, Array, Array]  # unknowns that are read (n,), that come out (m,), and the matrix (m, n)


def contract(laws: Laws, node: Node) -> None:
    """What it asks of a change: see laws.py."""
    role: roles.Contract = node.role  # type: ignore[assignment]
    y = node.outputs[0]
    stored, summed_together = by_stored(node)
    rank = y.rank + len(summed_together)  # the axes of y, and those that are summed over with what is stored
    terms: list[tuple[Array, Any]] = [
        (laws.ids[y].reshape(*laws.ids[y].shape, *(1 for _ in summed_together)), 1.0)
    ]
    for slot in (0, 1):
        tensor, axes = node.at(slot), list(role.axes[slot])
        for number, pair in enumerate(summed_together):
            axes[pair[slot]] = y.rank + number
        summed = [axis for axis, goal in enumerate(axes) if goal is None]
        kept = laws.even("LS", laws.ids[tensor], summed).squeeze(tuple(summed))
        goals = [goal for goal in axes if goal is not None]
        kept = kept.transpose(np.argsort(goals, kind="stable"))
        shape = [1] * rank
        for goal, size in zip(sorted(goals), kept.shape, strict=True):
            shape[goal] = size
        terms.append((kept.reshape(shape), -1.0))
        if role.stochastic is not None and slot != role.stochastic:
            laws.even("V", laws.ids[tensor], summed)
            laws.same("V", kept.reshape(shape), laws.ids[y])
        elif stored is None or slot == stored:
            laws.still("V", tensor)
    if stored is not None:  # along its axes, an addition takes a shift
        for tensor, own in ((node.at(1 - stored), role.labels[1 - stored]), (y, role.labels[2])):
            laws.even(
                "V", laws.ids[tensor], [i for i, label in enumerate(own) if label not in role.labels[stored]]
            )
    elif role.stochastic is None:
        laws.still("V", y)
    for kind in "LS":
        laws.row(kind, terms)


def by_stored(node: Node) -> tuple[int | None, list[tuple[int, int]]]:
    """The operand of a product that is stored, and the pairs of axes that are summed over, of one size."""
    role: roles.Contract = node.role  # type: ignore[assignment]
    stored = next((slot for slot in (0, 1) if node.at(slot).constant is not None), None)
    if stored is None or role.labels is None:
        return None, []
    left, right, out = role.labels
    shapes = [node.at(slot).shape or () for slot in (0, 1)]
    pairs = [(left.index(label), right.index(label)) for label in sorted({*left} & {*right} - {*out})]
    return stored, [
        (a, b) for a, b in pairs if isinstance(shapes[0][a], int) and shapes[0][a] == shapes[1][b]
    ]


def without_place(graph: Graph, ids: dict[Tensor, Array]) -> Iterator[tuple[Node, Array, Array]]:
    """The products that would need an addition for a shift, and what holds without one.

    ids: of tensors. Gives unknowns and factors, (m, 1 + n), by row: sum(factor * unknown) = 0.
    """
    for node in graph.nodes:
        found = None
        if isinstance(node.role, roles.Linear):
            found = _matrix(node, node.role, ids)
        elif isinstance(node.role, roles.Contract):
            found = _equation(node, node.role, ids)
        if found is not None:
            x, y, matrix = found
            unknowns = np.concatenate([y[:, None], np.broadcast_to(x, matrix.shape)], 1)
            yield node, unknowns, np.concatenate([np.ones((len(y), 1)), -matrix], 1)


def _matrix(node: Node, role: roles.Linear, ids: dict[Tensor, Array]) -> Map | None:
    open_ = role.bias is None and role.costs and not (role.padded or role.bias_open)
    if not open_ or role.outputs * role.inputs > LARGEST:
        return None
    weight = role.matrices(role.weight.load().astype(np.float64)).reshape(role.outputs, role.inputs)
    x, y = _line(ids[node.at(role.x)], role.in_axis), _line(ids[node.outputs[0]], role.out_axis)
    return np.resize(x, role.inputs), np.resize(y, role.outputs), weight * role.alpha


def _equation(node: Node, role: roles.Contract, ids: dict[Tensor, Array]) -> Map | None:
    slot, _ = by_stored(node)
    constant = None if slot is None else node.at(slot).constant
    if slot is None or constant is None or role.labels is None:
        return None
    data, own, out = role.labels[1 - slot], role.labels[slot], role.labels[2]
    weight = constant.load().astype(np.float64)
    sizes = dict(zip(own, weight.shape, strict=True))
    for label, size in zip(data, node.at(1 - slot).shape or (), strict=True):
        if not isinstance(size, int) and label not in out:
            return None
        if label not in out or label in own:
            sizes[label] = max(sizes.get(label, 1), size if isinstance(size, int) else 1)
    read = [label for label in data if label in sizes]
    made = [label for label in out if label in sizes]
    count = [int(np.prod([sizes[label] for label in labels])) for labels in (read, made)]
    if count[0] * count[1] > LARGEST:
        return None
    unit = np.eye(count[0]).reshape(count[0], *(sizes[label] for label in read))
    matrix = np.einsum(f"Z{''.join(read)},{own}->{''.join(made)}Z", unit, weight)
    x = _shaped(ids[node.at(1 - slot)], data, read, sizes)
    y = _shaped(ids[node.outputs[0]], out, made, sizes)
    return x, y, matrix.reshape(count[1], count[0])


def _line(ids: Array, axis: int) -> Array:
    """Along one axis: along the others, all are equal."""
    line: Array = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]
    return line


def _shaped(ids: Array, labels: str, kept: list[str], sizes: dict[str, int]) -> Array:
    """The unknowns along these axes: along the others, all are equal."""
    part = ids[tuple(slice(None) if label in kept else 0 for label in labels)]
    full: Array = np.broadcast_to(part, [sizes[label] for label in kept])
    return full.ravel()
