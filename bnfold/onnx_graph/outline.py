"""An ONNX model's outline, for pictures: nodes, with the names that reports give them, and edges."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx

from bnfold.onnx_graph.file.calls import by_key, callers_first
from bnfold.onnx_graph.file.tensors import as_text
from bnfold.onnx_graph.model.scopes import CONTROL, node_name
from bnfold.report.drawing import Outline, OutlineNode

__all__ = ["Snapshot", "snapshot"]

Name = Any  # a string; bytes, where a damaged file has no UTF-8


class _Node(NamedTuple):
    name: Name
    op: Name
    domain: Name
    inputs: list[Name]
    outputs: list[Name]
    bodies: tuple[_Scope, ...]


class _Scope(NamedTuple):
    """A graph, a body or a function."""

    inputs: list[Name]
    nodes: list[_Node]
    outputs: list[Name]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The names that a model had at a moment, first of its graph, then of its functions, callers first."""

    scopes: list[_Scope]

    def outline(self) -> Outline:
        """What a picture shows. Bodies of If and Loop lie beside their node, which reads what they give;
        functions stand by themselves, once.
        """
        drawn, graph = _Drawn(), self.scopes[0]
        for scope in self.scopes:
            drawn.scope(scope, {})
        return Outline(tuple(drawn.inputs), tuple(drawn.nodes), tuple(map(as_text, graph.outputs)))


def snapshot(proto: onnx.ModelProto) -> Snapshot:
    """The names of a model as they are now; this is much faster than drawing.

    Raises:
        ModelError: functions call each other in a circle.
    """
    functions = by_key(proto)
    return Snapshot([_scope(proto.graph), *(_scope(functions[key]) for key in callers_first(functions))])


def _scope(proto: Any) -> _Scope:
    nodes = []
    for node in proto.node[:]:
        op, domain = node.op_type, node.domain
        bodies = _bodies(node) if domain or op in CONTROL else ()
        nodes.append(_Node(node.name, op, domain, node.input[:], node.output[:], bodies))
    inputs, outputs = (
        [getattr(entry, "name", entry) for entry in entries] for entries in (proto.input, proto.output)
    )
    stored = {tensor.name for tensor in getattr(proto, "initializer", ())}  # older files list them as inputs
    return _Scope([name for name in inputs if name not in stored], nodes, outputs)


def _bodies(node: onnx.NodeProto) -> tuple[_Scope, ...]:
    graphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        graphs += [attribute.g] if attribute.type == 5 else attribute.graphs if attribute.type == 10 else ()
    return tuple(map(_scope, graphs))


class _Drawn:
    """inputs, nodes: so far. names: of nodes. scopes: how many graphs, bodies and functions were met."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.nodes: list[OutlineNode] = []
        self.names: set[str] = set()
        self.scopes = 0

    def scope(self, scope: _Scope, known: MutableMapping[Name, str]) -> None:
        """Draw a scope. known: for the name of each tensor that it sees, the one in the outline."""
        mark = f"#{self.scopes}" if self.scopes else ""  # names of different scopes are different tensors
        self.scopes += 1
        for name in scope.inputs:
            known[name] = as_text(name) + mark
            self.inputs.append(known[name])
        for node in scope.nodes:
            known.update((name, as_text(name) + mark) for name in node.outputs)
        for node in scope.nodes:
            self.node(node, known)

    def node(self, node: _Node, known: MutableMapping[Name, str]) -> None:
        op, domain = as_text(node.op), as_text(node.domain)
        if domain and domain != "ai.onnx":
            op = f"{domain}.{op}"
        name = node_name(as_text(node.name), op, [as_text(each) for each in node.outputs], self.names)
        inputs = [known.get(each) or as_text(each) for each in node.inputs if each]
        outputs = tuple(known[each] for each in node.outputs if each)
        place = len(self.nodes)
        self.nodes.append(OutlineNode(name, op, (), outputs))
        for body in node.bodies:
            inner: ChainMap[Name, str] = ChainMap({}, known)
            self.scope(body, inner)
            inputs += [inner.get(each) or as_text(each) for each in body.outputs]
        self.nodes[place] = OutlineNode(name, op, tuple(inputs), outputs)
