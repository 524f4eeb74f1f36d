"""Two models whose one input or one output has different names: they are compared all the same."""

from __future__ import annotations

import onnx
from onnx import helper

from bnfold.onnx_graph.file.loaded import Loaded

__all__ = ["by_position"]


def by_position(a: Loaded, b: Loaded) -> tuple[Loaded, list[str]]:
    """The second model with the names of the first, where both have one input, or one output; and notes on
    that.

    Nothing is renamed inside: an Identity stands between. A model that uses the name already stays as it is.
    """
    notes: list[str] = []
    taken: set[str] | None = None
    copy = b
    for what in ("input", "output"):
        ours, theirs = _only(a, what), _only(copy, what)
        if ours is None or theirs is None or ours.name == theirs.name:
            continue
        taken = _names(b.proto.graph) if taken is None else taken
        if ours.name in taken:
            continue
        if copy is b:
            copy = b.copy()
            theirs = _only(copy, what)
            assert theirs is not None
        notes.append(f"by position: the {what} {ours.name!r} is {theirs.name!r} in the other model")
        _between(copy.proto.graph, theirs, ours.name, what)
    return copy, notes


def _only(model: Loaded, what: str) -> onnx.ValueInfoProto | None:
    graph = model.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    values = [value for value in getattr(graph, what) if what == "output" or value.name not in stored]
    return values[0] if len(values) == 1 else None


def _names(graph: onnx.GraphProto) -> set[str]:
    """All that a graph calls anything, its bodies too."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.input, node.output)
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                names |= _names(body)
    return names


def _between(graph: onnx.GraphProto, value: onnx.ValueInfoProto, name: str, what: str) -> None:
    """Put an Identity between a graph's input or output and its other name."""
    inside, value.name = value.name, name
    if what == "output":
        graph.node.append(helper.make_node("Identity", [inside], [name]))
        return
    nodes = [helper.make_node("Identity", [name], [inside]), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
