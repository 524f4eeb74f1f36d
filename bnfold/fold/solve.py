"""Which batch norms vanish: tries in order, narrow ones first; a plan of edits and a ledger come out.

1. Each affine node is tried within a small limit: the pairs (conv -> batch norm) are gone after this.
2. What is left is tried without limit, smallest region first, with locks that end hopeless tries at once.
3. A fold that alone blocks two or more others, or one of a constant that blocks a batch norm, is taken last
   in a second run; if there is none, those that block two or more together with others are. The better run
   counts.
4. The new weights are computed. One that would leave its type's range sends its fold back, and all starts
   again without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bnfold.fold.absorb.absorb import OutOfRange, absorb
from bnfold.fold.carry import table as carry
from bnfold.fold.carry.locks import Locks
from bnfold.fold.carry.spread import Conflict, Rule
from bnfold.fold.claims import Claims, of_fold
from bnfold.fold.edits import Edit
from bnfold.fold.graph import Graph, Node, Tensor
from bnfold.fold.one_fold import NARROW, Run, Taken, ends, fold, pair
from bnfold.fold.roles import Affine, Closed
from bnfold.report.drawing import Route, Way
from bnfold.report.fold import Entry

__all__ = ["Plan", "solve"]

# Rule calls, for each node of the graph, by tries that came to nothing; after that, how far a try may reach.
WASTE, BOUNDED = 500, 16
NOTHING = "it changes nothing, so that nobody has to take it in"
RULES: Mapping[str, Mapping[type, Rule]] = {"scale": carry.SCALE, "shift": carry.SHIFT}


@dataclass
class Plan:
    """What to write, and what to report.

    order: the folded nodes as they were committed. claims: what becomes of each tensor. routes: the ways that
    scale and shift of each took, by its name.
    """

    edits: list[Edit] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    order: list[Node] = field(default_factory=list)
    calls: int = 0  # rule calls, a measure of the work
    evicted: int = 0
    ways: Counter[str] = field(default_factory=Counter)  # how folds went: "scale back, shift forward", ...
    claims: Callable[[], Claims] = dict
    routes: Callable[[], dict[str, Route]] = dict


def solve(
    graph: Graph,
    *,
    skip: Collection[str] = (),
    allow: Callable[[Node], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
    rules: Mapping[str, Mapping[type, Rule]] = RULES,
) -> Plan:
    """Choose (p, q) for every tensor so that as many affine nodes as possible vanish.

    `skip`: names of affine nodes to leave alone. `allow`: a filter on nodes (bisection folds a prefix of the
    ledger).
    """
    refused: dict[Node, Conflict] = {}
    for node in graph.nodes:
        if isinstance(node.role, Affine):
            if node.role.stay:
                refused[node] = Conflict(node.name, node.role.stay)
            elif node.name in skip or (allow is not None and not allow(node)):
                refused[node] = Conflict(node.name, "skipped on request")
    calls, most = 0, 1
    while True:
        run, worked, evicted = _better(graph, refused, rules, progress)
        calls += worked
        try:
            edits = absorb(graph, run.state, most)
        except OutOfRange as first:
            for error in first.all:
                refused[_culprit(run, error.node, refused)] = Conflict(error.node.name, error.reason)
            most *= 2  # one may cure others, but thousands must not take thousands of runs
            continue
        return Plan(
            edits,
            _entries(graph, run, refused),
            list(run.into),
            calls,
            evicted,
            run.ways + Counter({"rolled back": run.state.undone}),
            partial(of_fold, graph, run.state),
            partial(_routes, run.routes),
        )


def _better(
    graph: Graph,
    refused: Mapping[Node, Conflict],
    rules: Mapping[str, Mapping[type, Rule]],
    progress: Callable[[int, int], None] | None,
) -> tuple[Run, int, int]:
    """The better of two runs, if a second makes sense; all rule calls, and how many folds were taken last."""
    run = _run(graph, refused, frozenset(), rules, progress)
    run.locks = run.state.locks = None  # large, and of no more use
    calls, last = run.state.calls, _to_evict(run)
    if not last:
        return run, calls, 0
    other = _run(graph, refused, last, rules, progress)
    other.locks = other.state.locks = None
    calls += other.state.calls
    return (other, calls, len(last)) if _worth(other) > _worth(run) else (run, calls, 0)


def _routes(taken: Mapping[Node, tuple[Taken, Taken]]) -> dict[str, Route]:
    return {node.name: _route(*ways) for node, ways in taken.items()}


def _route(scale: Taken, shift: Taken) -> Route:
    way = _way(*scale)
    return Route(way, way if shift is scale else _way(*shift))  # of a pair they are the same


def _way(side: str, tensors: Sequence[Tensor], into: Sequence[Node]) -> Way:
    if len(tensors) == len(into) == 1:
        return Way(side, (tensors[0].name,), (into[0].name,))
    return Way(side, tuple([tensor.name for tensor in tensors]), tuple([node.name for node in into]))


def _worth(run: Run) -> tuple[int, int]:
    """How many nodes vanish, and how many of them are batch norms."""
    return len(run.into), sum(_is_norm(node) for node in run.into)


def _is_norm(node: Node) -> bool:
    return isinstance(node.role, Affine) and node.role.kind == "norm"


def _run(
    graph: Graph,
    refused: Mapping[Node, Conflict],
    last: Collection[Node],
    rules: Mapping[str, Mapping[type, Rule]],
    progress: Callable[[int, int], None] | None,
) -> Run:
    run = Run()
    todo = [node for node in graph.nodes if isinstance(node.role, Affine) and node not in refused]
    # a constant Mul or Add beside a batch norm goes into it, not the other way: one node is left, not two
    todo.sort(key=lambda node: node.role.kind == "norm")  # type: ignore[attr-defined]
    total = len(todo)
    left = [
        node
        for node in todo
        if node in last or not (pair(run, node, NARROW, rules) or fold(run, node, NARROW, rules))
    ]
    if progress is not None:
        progress(total - len(left), total)
    if not left:
        return run
    run.locks = Locks(graph, run.state, rules)
    run.state.locks = run.locks.locks
    size = {node: min(run.locks.region(t) for t in ends(node)) for node in left}
    left.sort(key=lambda node: (node in last, size[node]))  # stable: ties in graph order
    limit, spare = 1 << 60, WASTE * len(graph.nodes)
    while True:
        again = []
        for done, node in enumerate(left):
            before = run.state.calls
            if not fold(run, node, limit, rules):
                again.append(node)
                spare -= run.state.calls - before
                limit = limit if spare > 0 else BOUNDED
            if progress is not None:
                progress(total - len(left) + done + 1, total)
        late = {node for node in again if node in last and _near(run, node, rules)}
        if not again or (len(again) == len(left) and not late):
            return run
        left = [node for node in again if node not in late]


def _near(run: Run, node: Node, rules: Mapping[str, Mapping[type, Rule]]) -> bool:
    """The first, narrow try of a node that was put off; it asks no locks, since some come from itself."""
    locks, run.state.locks = run.state.locks, None
    done = fold(run, node, NARROW, rules)
    run.state.locks = locks
    return done


def _to_evict(run: Run) -> frozenset[Node]:
    """Folds that alone stand in the way of two others or more, or, of a constant, in that of a batch norm; if
    there are none, those that do so together with others.
    """
    folded = list(run.into)
    alone: Counter[int] = Counter()
    together: Counter[int] = Counter()
    for node, conflicts in run.kept.items():
        blamed = {next(iter(c.folds)) for c in conflicts if len(c.folds) == 1}
        alone.update(blamed)
        alone.update(number for number in blamed if _is_norm(node) and not _is_norm(folded[number]))
        together.update({number for c in conflicts for number in c.folds})
    often = [{number for number, count in counter.items() if count > 1} for counter in (alone, together)]
    return frozenset(folded[number] for number in often[0] or often[1])


def _culprit(run: Run, node: Node, refused: Mapping[Node, Conflict]) -> Node:
    """The latest fold that changed this node's weights."""
    for folded, into in reversed(run.into.items()):
        if node in into or folded is node:
            return folded
    near = {t for t in (*node.inputs, *node.outputs) if t is not None}
    for folded in reversed(run.into):
        if near & {t for t in (*folded.inputs, *folded.outputs) if t is not None}:
            return folded
    return next(reversed(run.into))


def _beside(run: Run, node: Node) -> str:
    """The node before one that is gone, or behind it; the tensor that it read, if nothing of both is left."""
    x, y = ends(node)
    before, behind = x.producer, [reader for reader, _ in y.readers if reader not in run.into]
    while before in run.into and isinstance(before.role, Affine):
        before = before.at(before.role.x).producer
    return before.name if before is not None else behind[0].name if behind else x.name


def _entries(graph: Graph, run: Run, refused: Mapping[Node, Conflict]) -> list[Entry]:
    entries = []
    for node in graph.nodes:
        if not isinstance(node.role, (Affine, Closed)) or not node.role.listed:
            continue
        if isinstance(node.role, Closed):
            role = node.role
            entries.append(Entry(node.name, node.op, "kept", (), role.reason, node.name, role.cure))
            continue
        dead = node.role.dead
        if node in run.into:
            into = tuple({n.name: None for n in run.into[node]})
            reason = "" if into else NOTHING
            into = into or (_beside(run, node),)
            entries.append(Entry(node.name, node.op, "folded", into, reason, dead_channels=dead))
            continue
        if node.role.kind != "norm" and node.role.scale.size == node.role.shift.size == 1:
            continue  # one number for the whole tensor, such as the x + 3 of a hard swish
        back, forward = run.kept.get(node) or (refused[node],) * 2
        reasons = (
            [back.reason]
            if (back.where, back.reason) == (forward.where, forward.reason)
            else [f"backward, {back.where}: {back.reason}", f"forward, {forward.where}: {forward.reason}"]
        )
        where = ", ".join(dict.fromkeys((back.where, forward.where)))
        entries.append(
            Entry(node.name, node.op, "kept", (), "; ".join(reasons), where, back.cure or forward.cure, dead)
        )
    return entries
