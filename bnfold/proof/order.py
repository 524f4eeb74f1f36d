"""The order of the nodes of a file: makers before readers, which some files do not keep to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import AttributeProto, NodeProto

__all__ = ["in_order"]


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Makers before readers. Raises ValueError: there is no such order."""
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
                raise ValueError("nodes depend on each other in a circle")
            elif below not in state:
                stack.append(below)
    return [nodes[i] for i in order]


def _names_read(node: NodeProto) -> Iterator[str]:
    """With those that bodies read of outer scopes (and their own, which no other node here makes)."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inner = {name for below in attribute.g.node for name in below.output}
            for below in attribute.g.node:
                yield from (name for name in _names_read(below) if name not in inner)
            yield from (v.name for v in attribute.g.output if v.name not in inner)
