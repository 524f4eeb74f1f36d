"""A model as the proof sees it: scopes, names, constants, and the regions between claimed tensors.

Read from the file's own nodes and by nobody else's code: what misled the fold must not mislead its proof.
Functions are inlined first. Bodies of If, Loop and Scan are scopes of their own, which read names of outer
ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.calls import explodes
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import as_text
from bnfold.proof.operator import Array, Operator, TooLarge, Undecided, is_float, zero_of

__all__ = ["CONTROL", "Model", "Node", "Scope", "same_bits"]

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
# What gives a list of tensors. That is no place for a claim: what reads it is looked at together with it.
LISTS = frozenset(
    {"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"}
)
# What draws random numbers: two runs differ, so nothing can be computed of it.
RANDOM = frozenset({"Bernoulli", "Multinomial"})
# What makes an array as large as a stored number says, and the most numbers that a constant may have.
GROWING, LARGEST = frozenset({"ConstantOfShape", "Expand", "Tile"}), 1 << 27
# What moves numbers, or rounds each result once.
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
)
_ROUNDS = frozenset(
    {"Abs", "Add", "Cast", "CastLike", "DequantizeLinear", "Div", "Mul", "Neg", "Sign", "Sqrt", "Sub"}
)
CERTAIN = _MOVES | _ROUNDS | {"ConstantOfShape", "Tile", "Transpose", "Unsqueeze"}
DEFAULT = ("", "ai.onnx")


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
    """One node. `index`: its place in its scope's order. `bodies`: its scopes, by the attribute's name."""

    __slots__ = ("bodies", "index", "inputs", "key", "name", "op", "operator", "outputs", "proto", "scope")

    def __init__(self, proto: NodeProto, scope: Scope, index: int) -> None:
        self.proto, self.scope, self.index = proto, scope, index
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        op, domain = as_text(proto.op_type), as_text(proto.domain)
        self.op = op if domain in DEFAULT else f"{domain}.{op}"
        self.name = proto.name or next((f"{self.op}:{o}" for o in self.outputs if o), self.op)
        self.bodies: dict[str, Scope] = {}
        self.operator: Operator = scope.model.operator(proto)
        # all of a node but its name and the names around it
        self.key = self.operator.key

    @property
    def control(self) -> bool:
        return bool(self.bodies) or self.op in CONTROL or self.many_bodies

    @property
    def many_bodies(self) -> bool:
        """An attribute that is a list of graphs, which no standard operator has. Nothing is known of such a
        node.
        """
        return any(a.type == AttributeProto.GRAPHS for a in self.proto.attribute)

    @property
    def random(self) -> bool:
        if self.op == "Dropout":  # of opset 7 on, it does nothing unless it is told to train
            trains = self.scope.constant(self.inputs[2]) if any(self.inputs[2:]) else np.zeros(1)
            return self.operator.since < 7 or trains is None or bool(trains.any())
        return self.op in RANDOM or self.op.startswith("Random")

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn here, or in a body."""
        return self.random or any(node.draws for body in self.bodies.values() for node in body.nodes)

    @property
    def gives_list(self) -> bool:
        return self.op in LISTS

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute as Python has it; text is bytes."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def reads(self) -> Iterator[str]:
        """The names that the node needs of its scope and of outer ones, those that its bodies read
        included.
        """
        yield from filter(None, self.inputs)
        for body in self.bodies.values():
            yield from body.captured


class Scope:
    """A graph, or a body in one.

    path: "" for the graph; for a body, what `certificate` calls it. made: who makes a name, at which output.
    """

    def __init__(self, model: Model, proto: GraphProto, path: str = "", parent: Scope | None = None) -> None:
        self.model, self.proto, self.path, self.parent = model, proto, path, parent
        stored = {tensor.name: tensor for tensor in proto.initializer}
        # Until IR 3 every initializer had to be an input as well. Later, one that is can be overridden by the
        # caller, and is an input as any other.
        listed = model.proto.ir_version < 4 and parent is None
        frozen = {name for name in stored if listed or (parent is None and name in model.frozen)}
        self.inputs = [v.name for v in proto.input if v.name not in frozen]
        self.outputs = [v.name for v in proto.output]
        self.stored = {name: tensor for name, tensor in stored.items() if name not in self.inputs}
        self.values: dict[str, Array] = {}
        self.made: dict[str, tuple[Node, int]] = {}
        self.nodes: list[Node] = []
        names = set(self.inputs) | set(self.stored)
        if len(names) < len(self.inputs) + len(self.stored):
            raise ModelError(f"{model.where}an input of the graph is listed twice")
        for index, node in enumerate(self._in_order(proto.node)):
            self._add(Node(node, self, index), names)

    def _add(self, node: Node, names: set[str]) -> None:
        self.nodes.append(node)
        for slot, name in enumerate(node.outputs):
            if name in names:
                raise ModelError(f"{self.model.where}the value {name!r} is defined twice")
            if name:
                names.add(name)
                self.made[name] = node, slot
        stem = next(filter(None, node.outputs), "")
        for attribute in node.proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                path = f"{self.path}{stem}:{len(node.bodies)}/"
                node.bodies[attribute.name] = Scope(self.model, attribute.g, path, self)
        self._compute(node)

    def _in_order(self, nodes: Sequence[NodeProto]) -> list[NodeProto]:
        """Makers before readers, which some files do not keep to."""
        made = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        needs = [{made[name] for name in _names_read(node) if name in made} for node in nodes]
        if all(j < i for i, js in enumerate(needs) for j in js):
            return list(nodes)
        order: list[int] = []
        state: dict[int, Iterator[int]] = {}
        for start in range(len(nodes)):
            stack = [start] if start not in state else []
            while stack:
                at = stack[-1]
                below = next(state.setdefault(at, iter(sorted(needs[at]))), None)
                if below is None:
                    order.append(stack.pop())
                elif below in stack:
                    raise ModelError(f"{self.model.where}nodes depend on each other in a circle")
                elif below not in state:
                    stack.append(below)
        return [nodes[i] for i in order]

    # constants

    def default(self, name: str) -> Array | None:
        """What an input is if it is not given."""
        found = next((tensor for tensor in self.proto.initializer if tensor.name == name), None)
        return None if found is None else self.model.loaded.array(found)

    def constant(self, name: str) -> Array | None:
        """The value of what depends on stored numbers only, in the types of the file; else None."""
        if name in self.values:
            return self.values[name]
        if name in self.stored:
            value = self.values[name] = self.model.loaded.array(self.stored[name])
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
        return node.op in CERTAIN and all(map(home._is_certain, filter(None, node.inputs)))

    def _compute(self, node: Node) -> None:
        """The outputs of a node whose inputs are constants. What cannot be computed is no constant."""
        if node.control or node.random:
            return
        given = [self.constant(name) if name else None for name in node.inputs]
        if node.op == "CastLike" and given[1] is None:  # of its second input only the type counts
            given[1] = self._stated(node.inputs[1])
            if given[0] is not None and given[1] is not None:
                self.values[node.outputs[0]] = node.operator.run(given)[0]
            return
        if any(value is None for name, value in zip(node.inputs, given, strict=True) if name):
            return
        if node.op in GROWING and not _bounded(node.op, given):
            return
        try:
            outputs = node.operator.run(given)
        except Undecided:
            return
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                self.values[name] = value

    def _stated(self, name: str) -> Array | None:
        """A zero of the type that the file states for a tensor; with a wrong one it would not load."""
        info = self._infos.get(name)
        return None if info is None else zero_of(info)

    @cached_property
    def _infos(self) -> dict[str, int]:
        listed = (*self.proto.input, *self.proto.output, *self.proto.value_info)
        return {v.name: v.type.tensor_type.elem_type for v in listed if v.type.tensor_type.elem_type}

    # names

    @cached_property
    def captured(self) -> tuple[str, ...]:
        """The names of outer scopes that are read here, or in a body in here."""
        own = {*self.inputs, *self.stored, *self.made}
        read = (name for node in self.nodes for name in node.reads())
        return tuple(dict.fromkeys(name for name in (*read, *self.outputs) if name and name not in own))

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


class Model:
    """A model that was loaded: its graph with all functions inlined.

    frozen: inputs that keep their stored values, and so are none.
    """

    def __init__(self, loaded: Loaded, frozen: Collection[str] = ()) -> None:
        self.loaded, self.where, self.frozen = loaded, loaded.where, frozen
        self.proto = loaded.proto
        if len(self.proto.functions):
            self.proto = _inlined(loaded)
        self.opsets = {o.domain if o.domain != "ai.onnx" else "": o.version for o in self.proto.opset_import}
        self.opsets = self.opsets or {"": 1}
        # Those that are not from functions, whose tensors no certificate speaks of.
        self.names = {name for node in loaded.proto.graph.node for name in node.output}
        self._operators: dict[Any, Operator] = {}
        self.main = Scope(self, self.proto.graph)

    def operator(self, proto: NodeProto) -> Operator:
        """What a node does, shared by all nodes that do the same."""
        operator = Operator(proto, self.opsets, self.proto.ir_version, self.loaded.array)
        return self._operators.setdefault(operator.identity, operator)


def _inlined(loaded: Loaded) -> onnx.ModelProto:
    import onnx.inliner

    if explodes(loaded.proto):
        raise ModelError(f"{loaded.where}its functions call each other too often to be inlined")
    try:
        return onnx.inliner.inline_local_functions(loaded.proto)
    except Exception as error:
        raise ModelError(f"{loaded.where}its functions cannot be inlined: {error}") from None


def _names_read(node: NodeProto) -> Iterator[str]:
    """With those that bodies read of outer scopes (and their own, which no other node here makes)."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inner = {name for below in attribute.g.node for name in below.output}
            for below in attribute.g.node:
                yield from (name for name in _names_read(below) if name not in inner)
            yield from (v.name for v in attribute.g.output if v.name not in inner)


def _bounded(op: str, given: Sequence[Array | None]) -> bool:
    """Whether what an operator would make is of a size that anybody means."""
    try:
        if op == "ConstantOfShape":
            return given[0] is not None and math.prod(int(n) for n in given[0].reshape(-1)) <= LARGEST
        assert given[0] is not None
        assert given[1] is not None
        sizes = [int(n) for n in given[1].reshape(-1)]
        if op == "Expand":
            return math.prod(_expanded(given[0].shape, sizes)) <= LARGEST
        return given[0].size * math.prod(max(n, 1) for n in sizes) <= LARGEST
    except (AssertionError, IndexError, ValueError, TypeError):
        return False


def _expanded(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[int]:
    """At least the sizes of an expanded array, the last first: the larger one of each axis."""
    for own, other in itertools.zip_longest(reversed(shape), reversed(wanted), fillvalue=1):
        yield max(own, other)
