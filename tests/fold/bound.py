"""How many affine nodes can vanish at most, found without trying folds: an oracle for the solver.

A set of nodes can vanish if each of the three systems of `laws.py` can be solved together with the equations
of the set. Smallest sets for which one cannot are forbidden, a few at a time; an integer program (HiGHS, in
scipy) finds the largest set that holds none of those, until that one can vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix, csr_matrix

from bnfold.fold.graph import Array, Graph, Node
from tests.fold.fills import filled
from tests.fold.laws import ALL, Laws, connected
from tests.fold.zeros import lost

CLOSE = 1e-7  # right sides that float64 may have rounded apart
DENSE = 3000  # equations that hang together: more are left out, so that more seems possible than is
FREE = 1e-6  # what a product without an addition counts: a tie is broken by it
ALWAYS = -1  # in place of a candidate: an equation that holds whatever vanishes
Cut = frozenset[int]  # candidates that cannot vanish together, and products that need an addition then


@dataclass(frozen=True)
class Bound:
    """candidates: all nodes that may vanish. vanish: the most that can. cuts: why no more can, by system."""

    candidates: list[Node]
    vanish: list[Node]
    cuts: dict[Cut, str]


def bound(graph: Graph, weigh: Callable[[Node], float] = lambda node: 1.0) -> Bound:
    """The largest set that can vanish; `weigh`: what each node counts.

    Raises:
        ValueError: a tensor may change in more entries than `Laws` can hold.
    """
    systems = Systems(graph)
    weights = np.array([weigh(node) for node in systems.candidates] + [FREE] * len(systems.products))
    takes = np.array([node.role.kind != "shift" for node in systems.candidates], float)  # type: ignore[attr-defined]
    grows = LinearConstraint(np.append(takes, np.ones(len(systems.products))), len(systems.products), np.inf)
    cuts = dict(systems.obvious())
    while True:
        chosen = _largest(weights, cuts, grows)
        new = {cut: kind for cut, kind in systems.forbidden(chosen) if cut not in cuts}
        stay = {systems.candidates[number] for cut in cuts if len(cut) == 1 for number in cut}
        if not new and len(stay) > len(systems.stay):  # more is known of what stays than of what might vanish
            systems = Systems(graph, stay)
            new = {cut: kind for cut, kind in systems.obvious() if cut not in cuts}
        elif not new:
            vanish = [node for number, node in enumerate(systems.candidates) if number in chosen]
            return Bound(systems.candidates, vanish, cuts)
        cuts.update(new)


def _largest(weights: Array, cuts: Collection[Cut], grows: LinearConstraint) -> set[int]:
    """The heaviest set that holds no cut whole. grows: what keeps the graph from growing."""
    if not cuts:
        return set(range(len(weights)))
    rows = [row for row, cut in enumerate(cuts) for _ in cut]
    columns = [number for cut in cuts for number in cut]
    held = coo_matrix((np.ones(len(rows)), (rows, columns)), (len(cuts), len(weights)))
    most = LinearConstraint(held.tocsr(), -np.inf, [len(cut) - 1 for cut in cuts])
    found = milp(-weights, constraints=[most, grows], bounds=Bounds(0, 1), integrality=np.ones(len(weights)))
    assert found.status == 0, found.message
    return set(np.flatnonzero(found.x > 0.5).tolist())


class Systems:
    """The three systems of a graph's laws, solved for sets of candidates (by their numbers)."""

    def __init__(self, graph: Graph, stay: Collection[Node] = ()) -> None:
        laws, self.stay = Laws(graph, stay), stay
        self.candidates, self.products = laws.candidates, laws.products
        self.systems = {kind: _System(laws, kind) for kind in ALL}
        names = {kind: system.names for kind, system in self.systems.items()}
        self.lost = {*lost(graph, laws, names["L"], names["V"]), *filled(laws, names)}

    def obvious(self) -> Iterator[tuple[Cut, str]]:
        """Cuts of one or two candidates that need no search, by system."""
        yield from ((cut, "zero") for cut in self.lost)
        yield from ((cut, kind) for kind, system in self.systems.items() for cut in system.obvious())

    def forbidden(self, chosen: Collection[int]) -> Iterator[tuple[Cut, str]]:
        """Smallest subsets that cannot vanish, by system; none: all of it can."""
        yield from ((cut, "zero") for cut in self.lost if cut <= set(chosen))
        yield from ((cut, kind) for kind, system in self.systems.items() for cut in system.cuts(chosen))


class _System:
    """`matrix @ unknowns = right`, over the reals or (signs) modulo 2. owner: whose equations they are."""

    def __init__(self, laws: Laws, kind: str) -> None:
        self.modulo = kind == "S"
        pairs = [np.zeros((2, 0), int), *(np.stack([a.ravel(), b.ravel()]) for a, b in laws.equal[kind])]
        self.names = names = connected(
            np.concatenate(pairs, 1), laws.size
        )  # of unknowns: equal ones share one
        rows, columns, factors = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)]
        right, owner, count = [np.zeros(0)], [np.zeros(0, int)], 0
        for ids, weights, sides, candidate in laws.rows[kind]:
            rows.append(np.repeat(np.arange(count, count + len(ids)), ids.shape[1]))
            columns.append(names[ids].ravel())
            factors.append(weights.ravel())
            right.append(sides)
            owner.append(np.full(len(ids), candidate))
            count += len(ids)
        places = np.concatenate(rows), np.concatenate(columns)
        entries = np.where(places[1] == names[0], 0.0, np.concatenate(factors))  # no change adds nothing
        self.matrix = csr_matrix((entries, places), (count, laws.size))  # entries of one place add up
        if self.modulo:
            self.matrix.data %= 2
        self.matrix.eliminate_zeros()
        self.right, self.owner = np.concatenate(right), np.concatenate(owner)

    def obvious(self) -> set[Cut]:
        """Two rows of one and the same unknown that want different values exclude each other."""
        counts = np.diff(self.matrix.indptr)
        cuts = {_cut([owner]) for owner in self.owner[(counts == 0) & (np.abs(self.right) > CLOSE)]}
        rows = np.flatnonzero(counts == 1)
        unknown = self.matrix.indices[self.matrix.indptr[rows]]
        values, owners = self.right[rows] / self.matrix.data[self.matrix.indptr[rows]], self.owner[rows]
        if not len(unknown):
            return cuts
        order = np.argsort(unknown, kind="stable")
        starts = np.append(0, np.flatnonzero(np.diff(unknown[order])) + 1)
        low, high = (np.asarray(f.reduceat(values[order], starts)) for f in (np.minimum, np.maximum))
        close = CLOSE * (1 + np.maximum(-low, high))
        ends = np.append(starts[1:], len(order))
        for number in np.flatnonzero(high - low > close):
            group = order[starts[number] : ends[number]]
            differ = np.abs(values[group, None] - values[group]) > close[number]
            pairs = owners[group[np.argwhere(np.triu(differ))]]
            cuts |= {_cut(pair) for pair in np.unique(pairs, axis=0)}
        return cuts

    def cuts(self, chosen: Collection[int]) -> set[Cut]:
        """Smallest subsets whose rows contradict each other or the rows that always hold."""
        rows = _tangled(self.matrix, np.flatnonzero(np.isin(self.owner, [ALWAYS, *chosen])))
        found: set[Cut] = set()
        for part in _apart(self.matrix, self.right, rows):
            while len(part) <= DENSE and (cut := self._smallest(part)) is not None:
                found.add(cut)
                part = part[self.owner[part] != min(cut)]  # others may be there that do not need this one
        return found

    def _smallest(self, rows: Array) -> Cut | None:
        """The owners of a contradiction among the rows, none of whom can be left out."""
        bad = self._contradiction(rows)
        if bad is None:
            return None
        owners = set(self.owner[bad].tolist()) - {ALWAYS}
        for owner in sorted(owners):
            rest = bad[self.owner[bad] != owner]
            if self._contradiction(rest) is not None:
                bad = rest
        return _cut(self.owner[bad])

    def _contradiction(self, rows: Array) -> Array | None:
        """Those of the rows that add up to 0 = 1; None if there is a solution."""
        if not len(rows):
            return None
        matrix = self.matrix[rows]
        dense = matrix[:, np.unique(matrix.indices)].toarray()
        found = (_odd if self.modulo else _uneven)(dense, self.right[rows])
        return None if found is None else rows[found]


def _cut(owners: Iterable[Any]) -> Cut:
    cut = frozenset(int(owner) for owner in owners if owner != ALWAYS)
    assert cut, "the laws contradict each other before anything vanishes"
    return cut


def _tangled(matrix: Any, rows: Array) -> Array:
    """Without the rows that hold an unknown of their own, again and again: those can always be solved."""
    while True:
        part = matrix[rows]
        uses = np.bincount(part.indices, minlength=matrix.shape[1])
        lone = np.unique(np.repeat(np.arange(len(rows)), np.diff(part.indptr))[uses[part.indices] == 1])
        if not len(lone):
            return rows
        rows = np.delete(rows, lone)


def _apart(matrix: Any, right: Array, rows: Array) -> list[Array]:
    """The rows in groups that share no unknown. Not those of which 0 is a solution."""
    part = matrix[rows].tocoo()
    used, column = np.unique(part.col, return_inverse=True)
    names = connected(np.stack([part.row, len(rows) + column]), len(rows) + len(used))[: len(rows)]
    wanted = np.flatnonzero(np.isin(names, names[np.abs(right[rows]) > CLOSE]))
    order = wanted[np.argsort(names[wanted], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(names[order])) + 1)
    return [rows[group] for group in groups if len(group)]


def _uneven(matrix: Array, right: Array) -> Array | None:
    """Over the reals. What least squares leave is orthogonal to all columns: its rows add up to 0 = 1."""
    size = np.sqrt((matrix**2).sum(1))
    size[size == 0] = 1.0
    matrix, right = matrix / size[:, None], right / size
    rest = right if not matrix.size else right - matrix @ np.linalg.lstsq(matrix, right, rcond=1e-11)[0]
    left = np.abs(rest).max()
    if left <= CLOSE * max(1.0, np.abs(right).max()):
        return None
    return np.flatnonzero(np.abs(rest) > 1e-6 * left)


def _odd(matrix: Array, right: Array) -> Array | None:
    """Modulo 2, by elimination. A row is one number: bits for its factors, its right side, the rows in it."""
    width = matrix.shape[1]
    pivots: dict[int, int] = {}
    for number, (row, side) in enumerate(zip(matrix, right, strict=True)):
        value = sum(1 << int(column) for column in np.flatnonzero(row)) | int(side) << width
        value |= 1 << (width + 1 + number)
        while factors := value & ((1 << width) - 1):
            top = factors.bit_length()
            if top not in pivots:
                pivots[top] = value
                break
            value ^= pivots[top]
        else:
            if value >> width & 1:
                inside = value >> (width + 1)
                return np.array([bit for bit in range(number + 1) if inside >> bit & 1])
    return None
