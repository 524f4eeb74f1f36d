"""A file as the proof sees it: scopes of nodes, and their constants.

Read from the file's own nodes and by nobody else's code: what misled the fold must not mislead its proof.
Functions are inlined first. Bodies of If, Loop and Scan are scopes of their own, which read names of outer
ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.calls import explodes
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import as_text
from bnfold.onnx_graph.run.inputs import compatible, describe
from bnfold.proof.operator import Array, Operator, zero_of
from bnfold.proof.order import in_order
from bnfold.proof.scope import LARGEST, Node, Scope, same_bits

__all__ = ["FileNode", "FileScope", "Model"]

# What gives a list of tensors. That is no place for a claim: what reads it is looked at together with it.
LISTS = frozenset(
    {"SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"}
)
# What draws random numbers: two runs differ, so nothing can be computed of it.
RANDOM = frozenset({"Bernoulli", "Multinomial"})
# What makes an array as large as a stored number says.
GROWING = frozenset({"ConstantOfShape", "Expand", "Tile"})
DEFAULT = ("", "ai.onnx")


class FileNode(Node):
    """One node of a file."""

    bodies: dict[str, FileScope]

    def __init__(self, proto: NodeProto, scope: FileScope, index: int) -> None:
        op, domain = as_text(proto.op_type), as_text(proto.domain)
        op = op if domain in DEFAULT else f"{domain}.{op}"
        name = proto.name or next((f"{op}:{o}" for o in proto.output if o), op)
        operator = scope.model.operator(proto)
        super().__init__(op, name, proto.input, proto.output, operator, index)
        self.proto, self.scope = proto, scope
        self.bodies = {}

    @property
    def many_bodies(self) -> bool:
        """An attribute that is a list of graphs, which no standard operator has."""
        return any(a.type == AttributeProto.GRAPHS for a in self.proto.attribute)

    @property
    def random(self) -> bool:
        if self.op == "Dropout":  # of opset 7 on, it does nothing unless it is told to train
            trains = self.scope.constant(self.inputs[2]) if any(self.inputs[2:]) else np.zeros(1)
            return self.operator.since < 7 or trains is None or bool(trains.any())
        return self.op in RANDOM or self.op.startswith("Random")

    @property
    def gives_list(self) -> bool:
        return self.op in LISTS

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def numbers(self) -> dict[str, float]:
        return {a.name: a.f for a in self.proto.attribute if a.type == AttributeProto.FLOAT}

    def same_bodies(self, other: Node) -> bool:
        """The same bytes, of models with the same operators. Large numbers have another token in each file,
        and what lies outside of the file is not looked for: such bodies are not the same.
        """
        assert isinstance(other, FileNode)
        if self.many_bodies or self.scope.model.opsets != other.scope.model.opsets:
            return False
        if self.proto != other.proto or b"location" in self.proto.SerializeToString():
            return False
        return not self.draws


class FileScope(Scope):
    """The graph of a file, or a body in one."""

    def __init__(
        self, model: Model, proto: GraphProto, path: str = "", parent: FileScope | None = None
    ) -> None:
        self.model, self.proto = model, proto
        stored = {tensor.name: tensor for tensor in proto.initializer}
        # Until IR 3 every initializer had to be an input as well. Later, one that is can be overridden by the
        # caller, and is an input as any other.
        listed = model.proto.ir_version < 4 and parent is None
        frozen = {name for name in stored if listed or (parent is None and name in model.frozen)}
        inputs = [v.name for v in proto.input if v.name not in frozen]
        stored = {name: tensor for name, tensor in stored.items() if name not in inputs}
        super().__init__(inputs, [v.name for v in proto.output], stored, path, parent)
        names = set(self.inputs) | set(self.stored)
        if len(names) < len(self.inputs) + len(self.stored):
            raise ModelError(f"{model.where}an input of the graph is listed twice")
        try:
            nodes = in_order(proto.node)
        except ValueError as error:
            raise ModelError(f"{model.where}{error}") from None
        for index, node in enumerate(nodes):
            self._add(FileNode(node, self, index), names)

    def load(self, name: str) -> Array:
        return self.model.loaded.array(self.stored[name])

    def is_named(self, name: str) -> bool:
        return bool(self.path) or name in self.model.names

    def _add(self, node: FileNode, names: set[str]) -> None:
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
                node.bodies[attribute.name] = FileScope(self.model, attribute.g, path, self)
        self._compute(node)

    def _compute(self, node: Node) -> None:
        """What a node makes of constants is the same in each run, and so one itself."""
        if node.control or node.random:
            return
        given = [self.constant(name) if name else None for name in node.inputs]
        if node.op == "CastLike" and given[1] is None:  # of its second input only the type counts
            given[1] = self._stated(node.inputs[1])
            if given[0] is not None and given[1] is not None:
                self.values[node.outputs[0]] = node.operator.run(given)[0]
        elif node.op not in GROWING or _bounded(node.op, given):
            self.compute(node, given)

    def _stated(self, name: str) -> Array | None:
        """A zero of the type that the file states for a tensor; with a wrong one it would not load."""
        info = self._infos.get(name)
        return None if info is None else zero_of(info)

    @cached_property
    def _infos(self) -> dict[str, int]:
        listed = (*self.proto.input, *self.proto.output, *self.proto.value_info)
        return {v.name: v.type.tensor_type.elem_type for v in listed if v.type.tensor_type.elem_type}

    def against(self, other: Scope) -> str:
        """The same names in order, of types and shapes that agree, with the same defaults: whoever calls one
        model can call the other in its place.
        """
        assert isinstance(other, FileScope)
        for kind in ("input", "output"):
            ours, theirs = (
                [v for v in getattr(s.proto, kind) if v.name in getattr(s, f"{kind}s")] for s in (self, other)
            )
            if [v.name for v in ours] != [v.name for v in theirs]:
                return f"its {kind}s have other names, or another order"
            for v, w in zip(ours, theirs, strict=True):
                if not compatible(describe(v.type), describe(w.type)):
                    return f"the {kind} {v.name} is of another type or shape"
        for name in self.inputs:
            default, theirs_ = self._default(name), other._default(name)
            if (default is None) != (theirs_ is None):
                return f"the input {name} has another default"
            if default is not None and theirs_ is not None and not same_bits(default, theirs_):
                return f"the input {name} has another default"
        return ""

    def _default(self, name: str) -> Array | None:
        return next((self.model.loaded.array(t) for t in self.proto.initializer if t.name == name), None)


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
        self.main = FileScope(self, self.proto.graph)

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


def _bounded(op: str, given: Sequence[Array | None]) -> bool:
    """Whether what an operator would make is of a size that anybody means."""
    known = [value for value in given if value is not None]
    if len(known) < len(given):
        return False
    try:
        sizes = [int(n) for n in known[0 if op == "ConstantOfShape" else 1].reshape(-1)]
        if op == "ConstantOfShape":
            return math.prod(sizes) <= LARGEST
        if op == "Expand":
            return math.prod(_expanded(known[0].shape, sizes)) <= LARGEST
        return known[0].size * math.prod(max(n, 1) for n in sizes) <= LARGEST
    except (IndexError, ValueError, TypeError):
        return False


def _expanded(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[int]:
    """At least the sizes of an expanded array, the last first: the larger one of each axis."""
    for own, other in itertools.zip_longest(reversed(shape), reversed(wanted), fillvalue=1):
        yield max(own, other)
