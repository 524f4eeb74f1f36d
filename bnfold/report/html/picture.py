"""An outline as the page's script draws it: numbers and names, with a place for each node."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any

from bnfold.report.drawing import Outline, OutlineNode
from bnfold.report.html.layout import layout

__all__ = ["picture"]

INPUT, OUTPUT = "input", "output"  # operators of the nodes that stand for what comes in and goes out
RANDOM = ("Random", "rand", "Bernoulli", "Multinomial")  # how operators begin that read nothing, and yet vary


def picture(outline: Outline, told: Collection[str] = ()) -> dict[str, Any]:
    """Plain data.

    Nodes that compute with stored values alone are left out, but for those that are told of by name.

    nodes: [name, operator, x, y] of each, in topological order. edges: [from, to, tensor, x, y, x, y, ...],
    places in `nodes` and `tensors`, then the points that the edge passes. tensors: names. left_out: how many
    nodes.
    """
    nodes, left_out = _drawn(_sorted(_all(outline)), told)
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
        "left_out": left_out,
    }


def _drawn(nodes: list[OutlineNode], told: Collection[str]) -> tuple[list[OutlineNode], int]:
    """The nodes that depend on an input, given in topological order, and how many others there are."""
    live: set[str] = set()
    drawn = []
    for node in nodes:
        own = node.op in (INPUT, OUTPUT) or node.op.startswith(RANDOM) or node.name in told
        if own or any(name in live for name in node.inputs):
            live.update(node.outputs)
            drawn.append(node)
    return drawn, len(nodes) - len(drawn)


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
