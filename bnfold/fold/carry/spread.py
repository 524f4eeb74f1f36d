"""One try to make an affine node vanish: changes spread from tensor to tensor until all are absorbed, or one
conflicts.

The state of the graph is one change `t' = p*t + q` per tensor. A try is two spreads. The first multiplies (p,
q) of the tensors it reaches by factors; all the laws that held before still hold then, since each is
homogeneous. The second adds to q. Both are worklists: each tensor reached asks the rules of its producer and
its readers what follows. Nothing is copied; what a failed alternative has set is undone from a log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from bnfold.fold.graph import Array, Node, Refused, Tensor
from bnfold.fold.roles import Affine, Product, Sum

Rule: TypeAlias = "Callable[[Spread, Node, int, Array], None]"
Alternative: TypeAlias = "Callable[[Array | None], None]"

CHOICES = 64  # alternatives tried within one spread before it gives up
DEPTH = 200  # choices that may be open at once (each is a level of recursion)
ODD_SHAPES = "the shapes declared around it contradict each other"
FAN = 4  # for each tensor that a try may reach: readers that one tensor may have
CLOSE = 1e-9  # two float64 results of the same sum along different paths


class Conflict(Exception):
    """A change that cannot be: at which node or tensor, why, and which committed folds are to blame."""

    def __init__(self, where: str, reason: str, folds: frozenset[int] = frozenset(), cure: str = "") -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason, self.folds, self.cure = where, reason, folds, cure

    def bare(self) -> Conflict:
        """To be kept: without the frames that it came through, which hold all that the try has made."""
        self.__traceback__ = self.__context__ = None
        return self


class Mismatch(Conflict):
    """An equation whose members are all set does not hold; `residual` is what is missing."""

    def __init__(self, node: Node, residual: Array, folds: frozenset[int]) -> None:
        super().__init__(node.name, "two different changes meet here", folds)
        self.node, self.residual = node, residual


class TooWide(Conflict):
    """The try reached more tensors than it was allowed to."""


class Lock(NamedTuple):
    """No change of this kind is possible on (all, or `whole=False` some channels of) a tensor."""

    where: str
    reason: str
    folds: frozenset[int] = frozenset()
    whole: bool = True
    cure: str = ""


@dataclass
class State:
    """What has been committed."""

    p: dict[Tensor, Array] = field(default_factory=dict)
    q: dict[Tensor, Array] = field(default_factory=dict)
    u: dict[Tensor, Array] = field(
        default_factory=dict
    )  # decode form, for tensors whose scale contains zeros
    v: dict[Tensor, Array] = field(default_factory=dict)
    frozen: set[Tensor] = field(default_factory=set)  # carry a zero scale: no further change
    zeroed: dict[Tensor, frozenset[int]] = field(default_factory=dict)  # made zero by which fold
    gone: dict[Node, int] = field(default_factory=dict)  # vanished affine nodes, and the number of their fold
    new_biases: set[Node] = field(default_factory=set)  # linear nodes that get a bias, an Add behind them
    locks: dict[str, dict[Tensor, Lock]] | None = None
    calls: int = 0  # rule calls so far: a measure of the work
    undone: int = 0  # alternatives that were rolled back


class Spread:
    """One worklist run over factors (`kind` "scale") or increments (`kind` "shift")."""

    __slots__ = (
        *("absorbers", "carriers", "factors", "folds", "kind", "limit", "log", "neutral", "partial", "queue"),
        *("rules", "new_biases", "state", "target", "tries", "values", "via", "waiting", "zeros"),
    )

    def __init__(self, state: State, target: Node, kind: str, rules: Mapping[type, Rule], limit: int) -> None:
        self.state, self.target, self.kind, self.rules, self.limit = state, target, kind, rules, limit
        self.neutral = 1.0 if kind == "scale" else 0.0
        self.factors: Mapping[Tensor, Array] = {}  # in a shift spread: the scale spread that came before
        self.zeros = ""  # "encode" or "decode": the factors hold zeros, and only that form exists
        self.values: dict[Tensor, Array] = {}
        self.via: dict[Tensor, frozenset[int]] = {}
        self.folds: frozenset[int] = frozenset()
        self.absorbers: dict[Node, None] = {}
        self.new_biases: set[Node] = set()
        self.carriers: set[Node] = set()  # linear nodes without bias that pass a shift on
        self.queue: deque[Tensor] = deque()
        self.partial: dict[Tensor, None] = {}
        self.waiting: dict[Node, Callable[[], Sequence[Alternative]]] = {}
        self.log: list[tuple[Tensor, Array | None]] = []
        self.tries = 0

    # what rules call

    def fail(self, node: Node, reason: str, cure: str = "") -> Conflict:
        return Conflict(node.name, reason, self.folds, cure)

    def absorb(self, node: Node) -> None:
        self.absorbers[node] = None

    def encode(self, node: Node) -> None:
        """The node makes the changed tensor: it needs p and q."""
        if self.zeros == "decode":
            raise self.fail(node, "a zero scale cannot be undone by the node that makes the tensor")
        self.absorbers[node] = None

    def decode(self, node: Node) -> None:
        """The node reads the changed tensor: it needs 1/p and -q/p."""
        if self.zeros == "encode":
            raise self.fail(node, "a zero scale loses what this reader needs")
        self.absorbers[node] = None

    def plain(self, node: Node) -> None:
        if self.zeros:
            raise self.fail(node, "does not pass a zero scale")

    def scale_of(self, tensor: Tensor) -> Array | float:
        """p as it will be, this try's factor included."""
        p = self.state.p.get(tensor)
        factor = self.values.get(tensor) if self.kind == "scale" else self.factors.get(tensor)
        if p is None:
            return 1.0 if factor is None else factor
        return p if factor is None else p * factor

    def want(self, tensor: Tensor, value: Array, at: Node, partial: bool = False) -> None:
        """Demand `value` on a tensor (`partial`: NaN where it is left open); raises `Conflict` if that cannot
        be.
        """
        old = self.values.get(tensor)
        if old is value:
            return
        if old is not None:
            self._merge(tensor, old, value, at, partial)
            return
        if tensor.constant is not None and (tensor.constant.locked or self.zeros == "decode"):
            why = tensor.constant.locked or "cannot be divided by a zero scale"
            raise Conflict(at.name, f"its constant {why}", self.folds)
        flat = value.item(0) == self.neutral and bool((value == self.neutral).all())
        if not flat:
            self._allow(tensor, value)
            if len(self.values) >= self.limit:
                raise TooWide(at.name, "the change spreads over too many tensors", self.folds)
        self._set(tensor, value, None)
        if not flat:
            if partial and np.isnan(value).any():
                self.partial[tensor] = None
            else:
                self.queue.append(tensor)

    def later(self, node: Node, alternatives: Callable[[], Sequence[Alternative]]) -> None:
        """Call `alternatives` when nothing else is left to do: () if the node is content, else ways to go on.

        A way is called with None, or with what it left missing at this very node (`Mismatch`) the first time.
        """
        self.waiting[node] = alternatives

    # the engine

    def run(self) -> None:
        """Work until nothing is left to do."""
        try:
            self._drain()
            self._decide(0)
        except (IndexError, ValueError):  # a file may declare shapes that no run would give
            raise Conflict(self.target.name, ODD_SHAPES) from None
        finally:
            self.waiting.clear()  # its entries point back at the try

    def _allow(self, tensor: Tensor, value: Array) -> None:
        if tensor.fixed:
            raise Conflict(tensor.name, tensor.fixed, self.folds, tensor.cure)
        if tensor in self.state.frozen:
            raise Conflict(tensor.name, "carries a zero scale already", self.folds)
        if self.state.locks is not None:
            lock = self.state.locks[self.kind].get(tensor)
            own = lock is not None and lock.where == self.target.name  # what vanishes takes nothing in
            # NaN: left open, so that it may yet be no change
            if (
                lock is not None
                and not own
                and (lock.whole or not ((value == self.neutral) | np.isnan(value)).any())
            ):
                raise Conflict(lock.where, lock.reason, blamed(self.folds, lock.folds), lock.cure)

    def _merge(self, tensor: Tensor, old: Array, value: Array, at: Node, partial: bool) -> None:
        if not partial and tensor not in self.partial:
            if not same(old, value, self.kind):
                folds = blamed(self.folds, self.via[tensor])
                raise Conflict(at.name, "two different changes meet here", folds)
            return
        old, value = np.broadcast_arrays(old, value)
        merged = np.where(np.isnan(old), value, old)
        both = ~(np.isnan(old) | np.isnan(value))
        if not same(old[both], value[both], self.kind):
            raise Conflict(at.name, "two different changes meet here", blamed(self.folds, self.via[tensor]))
        if np.array_equal(merged, old, equal_nan=True):
            return
        if tensor not in self.partial and bool((merged == self.neutral).all()):
            self._set(tensor, merged, old)
            return
        self._allow(tensor, merged)
        self._set(tensor, merged, old)
        self.partial.pop(tensor, None)
        if np.isnan(merged).any():
            self.partial[tensor] = None
        else:
            self.queue.append(tensor)

    def _set(self, tensor: Tensor, value: Array, old: Array | None) -> None:
        self.log.append((tensor, old))
        self.values[tensor] = value
        self.via[tensor] = blamed(self.via.get(tensor, frozenset()), self.folds)

    def _drain(self) -> None:
        while self.queue:
            self._visit(self.queue.popleft())

    def _close(self, tensor: Tensor) -> None:
        """What nobody has asked of a tensor's open channels is no change."""
        del self.partial[tensor]
        value = self.values[tensor]
        value = np.where(np.isnan(value), self.neutral, value)
        self._set(tensor, value, self.values[tensor])
        if not (value == self.neutral).all():
            self.queue.append(tensor)
        self._drain()

    def _visit(self, tensor: Tensor) -> None:
        value = self.values[tensor]
        self.folds = folds = self.via[tensor]
        if len(tensor.readers) > FAN * self.limit:  # asking them all, for each of them, would be quadratic
            raise TooWide(tensor.name, "too many nodes read it", folds)
        if tensor.producer is not None:
            self._ask(tensor.producer, tensor.slot, value)
        for node, slot in tensor.readers:
            self.folds = folds
            self._ask(node, slot, value)
        self.folds = frozenset()

    def _ask(self, node: Node, slot: int, value: Array) -> None:
        if node is self.target:
            return
        self.state.calls += 1
        fold = self.state.gone.get(node)
        if fold is None:
            self.rule(node, slot, value)
            return
        assert isinstance(node.role, Affine)  # a vanished node passes its change on
        self.folds = blamed(self.folds, frozenset((fold,)))
        self.want(node.outputs[0] if slot >= 0 else node.at(node.role.x), value, node)

    def rule(self, node: Node, slot: int, value: Array) -> None:
        """Ask the rule of a node's role."""
        try:
            self.rules[type(node.role)](self, node, slot, value)
        except Refused as refused:
            raise self.fail(node, str(refused), refused.cure) from None
        except (IndexError, ValueError):
            raise self.fail(node, ODD_SHAPES) from None

    def _decide(self, depth: int) -> None:
        while self.waiting or self.partial:
            node = self._next()
            if node is None:
                self._close(next(iter(self.partial)))
                continue
            alternatives = self.waiting.pop(node)()
            if not alternatives:
                self._drain()
                continue
            if len(alternatives) == 1:
                alternatives[0](None)
                self._drain()
                continue
            self._branch(node, alternatives, depth)
            return

    def _next(self) -> Node | None:
        """The node to decide next: one that has no choice, else the first. None: open channels come first.

        A choice is made before what it may need is closed: so none of a node's tensors has open channels.
        """
        ready: Iterable[Node] = self.waiting
        if self.partial:
            ready = [n for n in ready if not any(t in self.partial for t in (*n.inputs, *n.outputs))]
        first = None
        for node in ready:
            first = first or node
            if isinstance(node.role, (Sum, Product)):
                tensors = {tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None}
                if sum(map(self.is_open, tensors)) < 2:
                    return node
        return first

    def is_open(self, tensor: Tensor) -> bool:
        """Nothing is demanded of the tensor yet, and nothing says that it cannot change."""
        if tensor in self.values or tensor.fixed or tensor in self.state.frozen:
            return False
        if tensor.constant is not None and tensor.constant.locked:
            return False
        lock = None if self.state.locks is None else self.state.locks[self.kind].get(tensor)
        return lock is None or not lock.whole

    def _branch(self, node: Node, alternatives: Sequence[Alternative], depth: int) -> None:
        first: Conflict | None = None
        if depth > DEPTH:
            raise self.fail(node, "too many choices are open")
        for alternative in alternatives:
            missing: Array | None = None
            for _ in range(2):
                self.tries += 1
                if self.tries > CHOICES:
                    raise first or self.fail(node, "too many choices were tried")
                mark, waiting, absorbers = len(self.log), dict(self.waiting), dict(self.absorbers)
                new_biases, carriers, partial = set(self.new_biases), set(self.carriers), dict(self.partial)
                try:
                    alternative(missing)
                    self._drain()
                    self._decide(depth + 1)
                    return
                except TooWide:
                    raise
                except Conflict as conflict:
                    first = first or conflict.bare()
                    self._undo(mark)
                    self.waiting, self.absorbers = waiting, absorbers
                    self.new_biases, self.carriers, self.partial = new_biases, carriers, partial
                    if missing is not None or not isinstance(conflict, Mismatch) or conflict.node is not node:
                        break
                    missing = conflict.residual
        raise first or self.fail(node, "no alternative is left")

    def _undo(self, mark: int) -> None:
        self.state.undone += 1
        self.queue.clear()
        while len(self.log) > mark:
            tensor, old = self.log.pop()
            if old is None:
                del self.values[tensor]
                del self.via[tensor]
            else:
                self.values[tensor] = old


def blamed(a: frozenset[int], b: frozenset[int]) -> frozenset[int]:
    """Both sets of folds, or the larger: what counts is which fold stands in the way alone, if one does.

    A chain of n folds would hold n sets of up to n.
    """
    if len(a) > 1 or not b:
        return a
    return a | b if len(b) == 1 else b


def same(a: Array, b: Array, kind: str) -> bool:
    """Equal but for the rounding of float64 arithmetic (shifts: against the largest of them)."""
    if a.size == 0 or b.size == 0:
        return True
    gap = np.abs(a - b)
    size = np.abs(a) if kind == "scale" else np.abs(a).max()
    return bool((gap <= CLOSE * size).all())
