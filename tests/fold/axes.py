"""The axes of tensors along which a change may vary: tied to one along which some scale or shift does,
or along which tensors stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array, Graph, Node, Refused, Tensor
from tests.fold.products import by_stored


def varying(graph: Graph) -> dict[Tensor, set[int]]:
    """Axes along which a tensor's change may vary: tied to one along which a scale or a shift does."""
    tensors = {t: set[int]() for node in graph.nodes for t in (*node.inputs, *node.outputs) if t is not None}
    ties: dict[tuple[Tensor, int], set[tuple[Tensor, int]]] = {}
    todo: list[tuple[Tensor, int]] = []
    for node in graph.nodes:
        for group in _tied(node):
            sized = {place for place in group if _is_axis(*place)}
            for place in sized:
                ties.setdefault(place, set()).update(sized)
        if isinstance(node.role, roles.Affine):
            for array in (node.role.scale, node.role.shift):
                todo += [(node.at(node.role.x), axis) for axis, size in enumerate(array.shape) if size > 1]
        if isinstance(node.role, (roles.Split, roles.Concat)):  # parts may change by numbers of their own
            whole = node.at(0) if isinstance(node.role, roles.Split) else node.outputs[0]
            todo.append((whole, node.role.axis))
    while todo:
        tensor, axis = todo.pop()
        if axis not in tensors[tensor] and _is_axis(tensor, axis):
            tensors[tensor].add(axis)
            todo += ties.get((tensor, axis), ())
    return tensors


def _is_axis(tensor: Tensor, axis: int) -> bool:
    if not 0 <= axis < tensor.rank:
        return False
    size = (tensor.shape or ())[axis]
    return isinstance(size, int) and size > 1


def _tied(node: Node) -> Iterator[list[tuple[Tensor, int]]]:
    """Axes of the tensors around a node along which a change varies together."""
    role = node.role
    data = [t for slot, t in enumerate(node.inputs) if t is not None and roles.is_data(role, slot)]
    y = node.outputs[0] if node.outputs else None
    if y is None or isinstance(role, (roles.Closed, roles.Recurrent, roles.Normalize, roles.SoftmaxInput)):
        return
    if isinstance(role, roles.Linear):
        yield from ([(node.at(role.x), a), (y, b)] for a, b in role.free)
    elif isinstance(role, roles.Contract):
        yield from ([(node.at(0), a), (node.at(1), b)] for a, b in by_stored(node)[1])
        for slot in (0, 1):
            yield from ([(node.at(slot), a), (y, b)] for a, b in enumerate(role.axes[slot]) if b is not None)
    elif isinstance(role, roles.Move):
        x = node.at(role.x)
        for here, there, turn in ((x, y, role.move.push), (y, x, role.move.pull)):
            for axis in range(here.rank):
                if _is_axis(here, axis):
                    yield [(here, axis), *((there, other) for other in _reached(here, axis, turn))]
    elif isinstance(role, roles.Map) and role.squeezed:
        kept = [axis for axis in range(data[0].rank) if axis not in role.squeezed]
        yield from ([(data[0], a), (y, b)] for b, a in enumerate(kept))
    elif (isinstance(role, roles.Split) and role.drops) or (isinstance(role, roles.Concat) and role.adds):
        whole, parts = (data[0], node.outputs) if isinstance(role, roles.Split) else (y, data)
        kept = [axis for axis in range(whole.rank) if axis != role.axis]
        yield from ([(whole, a), *((part, b) for part in parts)] for b, a in enumerate(kept))
    else:
        around = [*data, *node.outputs]
        for back in range(1, max(t.rank for t in around) + 1):
            yield [(t, t.rank - back) for t in around]


def _reached(tensor: Tensor, axis: int, turn: Callable[[Array], Array]) -> list[int]:
    """The axes along which what varies along this axis comes out different (NaN: left open)."""
    shape = [1] * tensor.rank
    shape[axis] = (tensor.shape or ())[axis]  # type: ignore[call-overload]
    try:
        turned = turn(np.arange(1.0, 1.0 + shape[axis]).reshape(shape))
    except Refused:
        return []
    low, high = (np.nan_to_num(turned, nan=other) for other in (np.inf, -np.inf))
    return [i for i in range(turned.ndim) if (low.min(i) < high.max(i)).any()]
