"""Which tensors cannot change at all, found once for the whole graph: hopeless tries then end at their first
step.

Each rule is asked once per slot with a uniform positive change. What it refuses is a lock; what it demands of
other tensors ties them. Locks spread along ties: through a rule that demands all of a tensor, the lock comes
back whole; through one that demands a part (a slice of a concat), it holds for some channels. Which ones is
not kept, so that such a lock goes no further than to tensors of the same channels.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from functools import cache
from typing import TypeAlias

import numpy as np

from bnfold.fold.carry.spread import Conflict, Lock, Rule, Spread, State, blamed
from bnfold.fold.graph import Array, Graph, Node, Tensor
from bnfold.fold.roles import Affine, Same, Sum

__all__ = ["Locks"]

KINDS = ("scale", "shift")
# Where a lock spreads to; whether to all of it; whether one for some channels does; through which folds.
Tie: TypeAlias = tuple[Tensor, bool, bool, frozenset[int]]


class _Probe(Spread):
    """Records what a rule demands instead of following it."""

    __slots__ = ("wanted",)

    def ask(self, node: Node, slot: int) -> Conflict | list[tuple[Tensor, bool]]:
        self.wanted: list[tuple[Tensor, bool]] = []
        self.state.calls += 1
        try:
            self.rule(node, slot, _uniform(self.kind, node.at(slot).rank))
        except Conflict as conflict:
            return conflict.bare()
        return self.wanted

    def want(self, tensor: Tensor, value: Array, at: Node, partial: bool = False) -> None:
        self.wanted.append((tensor, partial and bool(np.isnan(value).any())))

    def later(self, node: Node, alternatives: object) -> None:
        return


@cache
def _uniform(kind: str, rank: int) -> Array:
    value = np.full((1,) * rank, 1.5 if kind == "scale" else 0.75)
    value.flags.writeable = False
    return value


class Locks:
    """`locks[kind][tensor]`, and the size of the region that a change of scale would spread over."""

    def __init__(self, graph: Graph, state: State, rules: Mapping[str, Mapping[type, Rule]]) -> None:
        self.locks: dict[str, dict[Tensor, Lock]] = {kind: {} for kind in KINDS}
        self.ties: dict[str, dict[Tensor, list[Tie]]]
        self.ties = {kind: defaultdict(list) for kind in KINDS}
        self.parent: dict[Tensor, Tensor] = {}
        self.weight: dict[Tensor, int] = {}
        queue: deque[tuple[str, Tensor, Lock]] = deque()
        for tensor in graph.tensors:  # first: what holds it is the reason, whatever its nodes say
            if tensor.fixed:
                for kind in KINDS:
                    queue.append((kind, tensor, Lock(tensor.name, tensor.fixed, cure=tensor.cure)))
        for kind in KINDS:
            for node in graph.nodes:
                self._probe(node, kind, state, rules[kind], queue)
        self._spread(queue)

    def _probe(
        self,
        node: Node,
        kind: str,
        state: State,
        rules: Mapping[type, Rule],
        queue: deque[tuple[str, Tensor, Lock]],
    ) -> None:
        fold = state.gone.get(node)
        if fold is not None:
            self._link(node, kind, fold)
            return
        probe = _Probe(state, node, kind, rules, 0)
        slots = [slot for slot, tensor in enumerate(node.inputs) if tensor is not None]
        asked: dict[Tensor, list[tuple[Tensor, bool]]] = {}
        # slots that share every change: a tie of each with the output is enough, one with each other is n * n
        shared: Collection[int] = ()
        if len(slots) > 2 and node.outputs and node.outputs[0].shape:
            if isinstance(node.role, Same):
                shared = node.role.slots
            elif isinstance(node.role, Sum) and kind == "scale":
                shared = slots
        shared = frozenset(shared)
        for slot in (*slots, *(-1 - j for j in range(len(node.outputs)))):
            tensor = node.at(slot)
            if not tensor.shape or tensor.constant is not None:
                continue
            if slot in shared:
                asked[tensor] = [(node.outputs[0], False)]
                continue
            answer = probe.ask(node, slot)
            if isinstance(answer, Conflict):
                queue.append(
                    (kind, tensor, Lock(answer.where, answer.reason, answer.folds, cure=answer.cure))
                )
            else:
                asked[tensor] = answer
        part = {(tensor, other) for tensor, answer in asked.items() for other, partial in answer if partial}
        ties = not isinstance(node.role, Affine) or bool(node.role.stay)  # what may vanish need tie nothing
        for tensor, answer in asked.items():
            for other, _ in answer:
                # a lock on `other` comes back to `tensor`: for some channels only if `other` is a part of it
                whole = (other, tensor) not in part
                same = whole and (tensor, other) not in part
                if ties:
                    self.ties[kind][other].append((tensor, whole, same, frozenset()))
                if kind == "scale":
                    self._join(tensor, other)

    def _link(self, node: Node, kind: str, fold: int) -> None:
        assert isinstance(node.role, Affine)
        x, y = node.at(node.role.x), node.outputs[0]
        self.ties[kind][x].append((y, True, True, frozenset((fold,))))
        self.ties[kind][y].append((x, True, True, frozenset((fold,))))
        if kind == "scale":
            self._join(x, y)

    def link(self, node: Node, fold: int) -> None:
        """An affine node has vanished: what locks one side now locks the other."""
        assert isinstance(node.role, Affine)
        x, y = node.at(node.role.x), node.outputs[0]
        queue: deque[tuple[str, Tensor, Lock]] = deque()
        for kind in KINDS:
            self._link(node, kind, fold)
            for here, there in ((x, y), (y, x)):
                lock = self.locks[kind].get(here)
                if lock is not None:
                    queue.append((kind, there, lock._replace(folds=blamed(lock.folds, frozenset((fold,))))))
        self._spread(queue)

    def _spread(self, queue: deque[tuple[str, Tensor, Lock]]) -> None:
        while queue:
            kind, tensor, lock = queue.popleft()
            old = self.locks[kind].get(tensor)
            if tensor.constant is not None or (old is not None and (old.whole or not lock.whole)):
                continue
            self.locks[kind][tensor] = lock
            for other, whole, same, folds in self.ties[kind].get(tensor, ()):
                if not lock.whole and not same:
                    continue
                queue.append(
                    (kind, other, lock._replace(folds=blamed(lock.folds, folds), whole=lock.whole and whole))
                )

    def _find(self, tensor: Tensor) -> Tensor:
        root = tensor
        while self.parent.get(root, root) is not root:
            root = self.parent[root]
        while self.parent.get(tensor, tensor) is not root:
            self.parent[tensor], tensor = root, self.parent.get(tensor, tensor)
        return root

    def _join(self, a: Tensor, b: Tensor) -> None:
        a, b = self._find(a), self._find(b)
        if a is b:
            return
        if self.weight.get(a, 1) < self.weight.get(b, 1):
            a, b = b, a
        self.parent[b] = a
        self.weight[a] = self.weight.get(a, 1) + self.weight.get(b, 1)

    def region(self, tensor: Tensor) -> int:
        """How many tensors a change of this one's scale may reach."""
        return self.weight.get(self._find(tensor), 1)
