"""What a Pad fills in is one number for all channels: no linear equation, where it is zero. It says something
where all else is known: of a node behind a Pad whose output cannot change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array, Graph
from tests.fold.laws import Laws

CLOSE = 1e-9


def filled(graph: Graph, laws: Laws, names: Mapping[str, Array]) -> Iterator[frozenset[int]]:
    """Candidates that cannot vanish. names: for each system, of unknowns; those that are equal share one."""
    for pad in graph.nodes:
        if not isinstance(pad.role, roles.Pad) or pad.role.fill is None:
            continue
        around = _keys(laws.ids[pad.outputs[0]], names)
        for number, node in enumerate(laws.candidates):
            role: roles.Affine = node.role  # type: ignore[assignment]
            ids = laws.ids[node.at(role.x)], laws.ids[node.outputs[0]]
            x, y, a, b = (array.ravel() for array in np.broadcast_arrays(*ids, role.scale, role.shift))
            behind = [key in around for key in _keys(x, names)]
            pinned = [key == _keys(np.zeros(1, int), names)[0] for key in _keys(y, names)]
            if any(behind) and all(behind) and all(pinned):
                fill = a * pad.role.fill + b  # what the Pad would have to fill in
                if np.ptp(fill) > CLOSE:
                    yield frozenset({number})


def _keys(ids: Array, names: Mapping[str, Array]) -> list[tuple[int, ...]]:
    """The names of each entry in all systems."""
    return list(zip(*(of[ids.ravel()].tolist() for of in names.values()), strict=True))
