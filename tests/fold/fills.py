"""What a Pad fills in is one number for all channels: no linear equation, where it is zero. It says something
where all else is known: of a node that reads the Pad, and whose output cannot change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bnfold.fold import roles
from bnfold.fold.graph import Array
from tests.fold.laws import Laws

CLOSE = 1e-9


def filled(laws: Laws, names: Mapping[str, Array]) -> Iterator[frozenset[int]]:
    """Candidates that cannot vanish. names: for each system, of unknowns; those that are equal share one."""
    for number, node in enumerate(laws.candidates):
        role: roles.Affine = node.role  # type: ignore[assignment]
        maker = node.at(role.x).producer
        fill = maker.role.fill if maker is not None and isinstance(maker.role, roles.Pad) else None
        if fill is None:
            continue
        wanted = role.scale * fill + role.shift  # what the Pad would have to fill in
        y = laws.ids[node.outputs[0]]
        if np.ptp(wanted) > CLOSE and all((of[y] == of[0]).all() for of in names.values()):
            yield frozenset({number})
