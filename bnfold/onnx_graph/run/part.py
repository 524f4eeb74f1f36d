"""The part of a model that some of its tensors need: what a run for them alone takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnx import TensorProto

from bnfold.onnx_graph.file.loaded import Loaded

__all__ = ["part"]


def part(loaded: Loaded, names: Collection[str]) -> Loaded:
    """A copy that has these tensors of the main graph as outputs, and nothing that they do not need.

    names: each once; of float32 where the model does not say. Weights are shared with `loaded`.
    """
    result = loaded.copy()
    graph = result.proto.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    needed, pending = set[str](), list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                pending += _read(makers[name])
    stated = {value.name: value for value in (*graph.value_info, *graph.output)}
    wanted = [_stated(stated.get(name), name) for name in names]
    nodes = [node for node in graph.node if any(name in needed for name in node.output if name)]
    stored = [tensor for tensor in graph.initializer if tensor.name in needed]
    graph.ClearField("value_info")  # a wrong shape there must not stop the run
    smaller = onnx.GraphProto(node=nodes, initializer=stored, output=wanted)
    for field in ("node", "initializer", "output"):
        graph.ClearField(field)
    graph.MergeFrom(smaller)
    return result


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The names that a node reads, those that its bodies capture included (and some more)."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from (output.name for output in body.output)
            for inner in body.node:
                yield from _read(inner)


def _stated(value: onnx.ValueInfoProto | None, name: str) -> onnx.ValueInfoProto:
    """What an output says of itself: its type, but no shape."""
    kind = TensorProto.FLOAT if value is None else value.type.tensor_type.elem_type or TensorProto.FLOAT
    result = onnx.ValueInfoProto(name=name)
    result.type.tensor_type.elem_type = kind
    return result
