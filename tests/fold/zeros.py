"""Zero scales, which are no linear equation: what has lost its value must be needed by nobody.

Where a node with a zero scale vanishes and its output keeps its scale (what is closed reads it, say), its
input becomes a constant there, and with it all that carries the same scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array, Graph
from tests.fold.laws import Laws


def lost(graph: Graph, laws: Laws, names: Array) -> set[int]:
    """The candidates that cannot vanish. names: of unknowns; those of equal |u| share one."""
    needed = {int(names[0])}  # its scale cannot change, or somebody reads it who needs its value
    for node in graph.nodes:
        role = node.role
        if isinstance(role, roles.Linear):
            weight = role.matrices(role.weight.load().astype(np.float64))
            used = (weight != 0).any(tuple(axis for axis in range(weight.ndim) if axis not in (0, 2)))
            ids = laws.ids[node.at(role.x)]
            if ids.shape[role.in_axis] > 1:
                ids = ids.compress(used.reshape(-1), role.in_axis)
            needed |= {int(name) for name in np.unique(names[ids])} if used.any() else set()
    passed = [
        (x, y)
        for _, x, y, a in _affines(graph, laws, names)
        for x, y in zip(x[a != 0], y[a != 0], strict=True)
    ]
    while more := {int(x) for x, y in passed if y in needed} - needed:
        needed |= more
    return {
        laws.candidates.index(node)
        for node, x, y, a in _affines(graph, laws, names)
        if node in laws.candidates
        and any(one in needed and other == names[0] for one, other in zip(x[a == 0], y[a == 0], strict=True))
    }


def _affines(graph: Graph, laws: Laws, names: Array) -> Iterator[tuple[roles.Node, Array, Array, Array]]:
    """The affine nodes, the names of the entries of their input and output, and the scales of these."""
    for node in graph.nodes:
        if isinstance(node.role, roles.Affine):
            x, y = laws.ids[node.at(node.role.x)], laws.ids[node.outputs[0]]
            x, y, a = (array.ravel() for array in np.broadcast_arrays(x, y, node.role.scale))
            yield node, names[x], names[y], a
