"""An outline as the page's script draws it: numbers and names, with a place for each node."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from bnfold.report.drawing import Outline, OutlineNode
from bnfold.report.html.layout import layout

__all__ = ["picture"]

INPUT, OUTPUT = "input", "output"  # operators of the nodes that stand for what comes in and goes out
UNDRAWN = frozenset({"Constant"})  # a stored value that is written as a node


def picture(outline: Outline) -> dict[str, Any]:
    """Plain data.

    nodes: [name, operator, x, y] of each, in topological order. edges: [from, to, tensor, x, y, x, y, ...],
    places in `nodes` and `tensors`, then the points that the edge passes. tensors: names.
    """
    nodes = _sorted([node for node in _all(outline) if node.op not in UNDRAWN])
    made = {name: place for place, node in enumerate(nodes) for name in node.outputs}
    tensors: dict[str, int] = {}
    edges: dict[tuple[int, int, int], None] = {}
    for place, node in enumerate(nodes):
        for name in node.inputs:
            if name in made:
                edges[made[name], place, tensors.setdefault(name, len(tensors))] = None
    found = layout(len(nodes), [(a, b) for a, b, _ in edges])
    return {
        "nodes": [
            [node.name, node.op, round(x), round(y)]
            for node, x, y in zip(nodes, found.x, found.y, strict=True)
        ],
        "edges": [
            [*edge, *(round(number) for point in bends for number in point)]
            for edge, bends in zip(edges, found.bends, strict=True)
        ],
        "tensors": list(tensors),
    }


def _all(outline: Outline) -> list[OutlineNode]:
    """The nodes, with one for each input that is read and each output."""
    read = {name for node in outline.nodes for name in node.inputs} | set(outline.outputs)
    ins = [OutlineNode(name, INPUT, (), (name,)) for name in outline.inputs if name in read]
    outs = [OutlineNode(name, OUTPUT, (name,), ()) for name in outline.outputs]
    return [*ins, *outline.nodes, *outs]


def _sorted(nodes: Sequence[OutlineNode]) -> list[OutlineNode]:
    """What is read before who reads it, else as it was; nodes of a circle, which no model has, come last."""
    made = {name: place for place, node in enumerate(nodes) for name in node.outputs}
    readers: list[list[int]] = [[] for _ in nodes]
    waits = [0] * len(nodes)
    for place, node in enumerate(nodes):
        for name in {name for name in node.inputs if name in made}:
            readers[made[name]].append(place)
            waits[place] += 1
    ready = [place for place, count in enumerate(waits) if not count]
    order: list[int] = []
    while ready:
        place = heapq.heappop(ready)
        order.append(place)
        for reader in readers[place]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return [nodes[place] for place in (*order, *(p for p, count in enumerate(waits) if count))]
