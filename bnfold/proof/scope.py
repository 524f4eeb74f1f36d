"""A graph as the proof sees it, of whatever kind of model: nodes, names, constants, and the regions between
claimed tensors.

What reads a kind of model makes these (graph.py: files of ONNX; bnfold/torch_proof: exported programs). The
operators have ONNX's names and attributes where they mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from bnfold.proof.claims import Entry
from bnfold.proof.operator import Array, Operator, TooLarge, Undecided, is_float

__all__ = ["CONTROL", "LARGEST", "MOVES", "Known", "Node", "Scope", "same_bits"]

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
LARGEST = 1 << 27  # numbers that a constant may have
# What only moves numbers of its first input, or of all; and what rounds each result once.
MOVES = frozenset(
    {
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)
_ROUNDS = frozenset(
    {"Abs", "Add", "Cast", "CastLike", "DequantizeLinear", "Div", "Mul", "Neg", "Sign", "Sqrt", "Sub"}
)
CERTAIN = MOVES | _ROUNDS | {"ConstantOfShape", "Shape", "Size"}


class Known(Protocol):
    """What is known of the original's tensors. work: multiplications of all that was evaluated."""

    work: float

    def value(self, name: str, path: str = "") -> Array:
        """Zeros of the type and shape of a tensor of floats; integers and truth values as they are.

        path: of the scope that it is in.

        Raises:
            Undecided: nothing is known of it, or its integers depend on more than shapes.
        """

    def counterexample(self, other: Scope) -> Entry | None:
        """An entry of an output that a run shows to be another one in the scope `other`; None: none is known.

        It is asked where a claim has failed, so that small differences are worth a look.
        """


def same_bits(a: Array, b: Array) -> bool:
    """One type, one shape and the same bits (so NaN is NaN, and -0 is not 0)."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind == "O":
        return bool(np.array_equal(a, b))
    first, second = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return bool(np.array_equal(first, second))


class Node:
    """One node.

    key: what it has in common with a node that does the same, all but its name and the names around it.
    index: its place in its scope's order. bodies: its scopes, by the attribute's name.
    """

    def __init__(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        operator: Operator,
        index: int,
    ) -> None:
        self.op, self.name, self.index = op, name, index
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.bodies: Mapping[str, Scope] = {}
        self.operator = operator
        self.key = operator.key

    @cached_property
    def control(self) -> bool:
        return bool(self.bodies) or self.op in CONTROL or self.many_bodies

    @property
    def many_bodies(self) -> bool:
        """Whether it holds graphs that nothing is known of."""
        return False

    @property
    def random(self) -> bool:
        """Whether two runs differ, so that nothing can be computed of it."""
        raise NotImplementedError

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn here, or in a body."""
        return self.random or any(node.draws for body in self.bodies.values() for node in body.nodes)

    @property
    def gives_list(self) -> bool:
        """A list of tensors, which is no place for a claim: what reads it is looked at together with it."""
        return False

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute as Python has it; text is bytes."""
        raise NotImplementedError

    def numbers(self) -> Mapping[str, float]:
        """The floating numbers among the attributes."""
        raise NotImplementedError

    def same_bodies(self, other: Node) -> bool:
        """Whether the bodies of both are the same, to the bit, and draw no random numbers."""
        return False

    def reads(self) -> Iterator[str]:
        """The names that the node needs of its scope and of outer ones, those that its bodies read
        included.
        """
        yield from filter(None, self.inputs)
        for body in self.bodies.values():
            yield from body.captured


class Scope:
    """A graph, or a body in one.

    path: "" for the graph; for a body, what `certificate` calls it. inputs, outputs: their names. stored: the
    names of stored numbers, and what `load` needs for each. made: who makes a name, at which output.
    certain_operators: of which every runtime makes the same numbers.
    """

    certain_operators = CERTAIN

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        stored: Mapping[str, Any],
        path: str = "",
        parent: Scope | None = None,
    ) -> None:
        self.path, self.parent = path, parent
        self.inputs, self.outputs, self.stored = list(inputs), list(outputs), stored
        self.values: dict[str, Array] = {}
        self.made: dict[str, tuple[Node, int]] = {}
        self.nodes: list[Node] = []

    def load(self, name: str) -> Array:
        """The numbers that are stored under a name."""
        raise NotImplementedError

    def against(self, other: Scope) -> str:
        """Why the inputs or the outputs are others than those of `other`, in words; "" if they are not."""
        raise NotImplementedError

    def is_named(self, name: str) -> bool:
        """Whether certificates speak of a tensor."""
        return True

    # constants

    def constant(self, name: str) -> Array | None:
        """The value of what depends on stored numbers only, in the types of the file; else None."""
        if name in self.values:
            return self.values[name]
        if name in self.stored:
            value = self.values[name] = self.load(name)
            return value
        if name in self.made or name in self.inputs or self.parent is None:
            return None
        return self.parent.constant(name)

    def is_stored(self, name: str) -> bool:
        """Whether a constant's numbers lie in the file as they are."""
        if name in self.made:
            return self.made[name][0].op == "Constant"
        return name in self.stored or (self.parent is not None and self.parent.is_stored(name))

    def certain(self, nodes: Sequence[Node]) -> bool:
        """Whether every runtime makes the same numbers of the constants that nodes read. Sums of many terms
        and functions that are approximated are rounded on the way, by each in its own order, and what cancels
        in them has no last place.
        """
        names = {name for node in nodes for name in node.inputs if name}
        values = {name: self.constant(name) for name in names}
        return all(v is None or not is_float(v) or self._is_certain(name) for name, v in values.items())

    def _is_certain(self, name: str) -> bool:
        home = self.home(name)
        if self.is_stored(name) or home is None or name not in home.made:
            return self.is_stored(name)
        node = home.made[name][0]
        read = [name for name in node.inputs if home.constant(name) is not None]  # of others, type and sizes
        return node.op in self.certain_operators and all(map(home._is_certain, read))

    def compute(self, node: Node, given: Sequence[Array | None]) -> None:
        """Note the outputs of a node whose inputs are constants. What cannot be computed is no constant."""
        if any(value is None for name, value in zip(node.inputs, given, strict=True) if name):
            return
        try:
            outputs = node.operator.run(given)
        except Undecided:
            return
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                self.values[name] = value

    # names

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """The names of outer scopes that are read here, or in a body in here."""
        own = {*self.inputs, *self.stored, *self.made}
        read = (name for node in self.nodes for name in node.reads())
        return tuple(dict.fromkeys(name for name in (*read, *self.outputs) if name and name not in own))

    @cached_property
    def readers(self) -> dict[str, list[tuple[Node, int]]]:
        """Of each name the nodes here that read it, and at which input."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for at, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node, at))
        return found

    def owns(self, name: str) -> bool:
        return name in self.made or name in self.inputs or name in self.stored

    def home(self, name: str) -> Scope | None:
        """The scope that defines a name which is read here."""
        scope: Scope | None = self
        while scope is not None and not scope.owns(name):
            scope = scope.parent
        return scope

    # regions

    def region(self, target: str, is_leaf: Callable[[str], bool], most: int) -> tuple[list[Node], list[str]]:
        """The nodes from `target` back to its leaves, in order, and the leaves.

        Args:
            target: a tensor of this scope.
            is_leaf: whether to stop at a tensor.
            most: nodes.

        Raises:
            TooLarge: it has more.
            Undecided: it holds control flow or random numbers, or reads an input that is no leaf.
        """
        nodes: dict[int, Node] = {}
        leaves: dict[str, None] = {}
        seen, stack = set[str](), [target]
        while stack:
            name = stack.pop()
            if name in seen or self.constant(name) is not None:
                continue
            seen.add(name)
            if is_leaf(name):
                leaves[name] = None
                continue
            if name not in self.made:
                raise Undecided(f"{name} is read here and has no counterpart")
            node = self.made[name][0]
            if node.control or node.random:
                raise Undecided(f"{node.name} ({node.op}) cannot be computed by itself")
            nodes[node.index] = node
            if len(nodes) > most:
                raise TooLarge(f"the region has more than {most} nodes")
            stack += filter(None, node.inputs)
        return [nodes[i] for i in sorted(nodes)], list(leaves)
