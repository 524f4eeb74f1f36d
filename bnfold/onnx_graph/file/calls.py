"""Which model-local functions call which. Each is read once, however often it is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from bnfold.errors import ModelError

__all__ = ["by_key", "callers_first", "explodes"]

# Nodes that a model may have once its functions are inlined, and how many for each that the file has: a few
# functions that call each other twice in a chain are a thousand million.
MOST_INLINED = (1 << 15, 64)
Key = tuple[str, str, str]  # of a function: domain, name, overload


def explodes(proto: onnx.ModelProto) -> bool:
    """Whether nothing can walk through the calls of the model's functions, or run it: they are too many."""
    if not proto.functions:
        return False
    functions, there = by_key(proto), 0
    sizes: dict[Key, int] = {}
    for key in (*reversed(callers_first(functions)), None):  # the graph itself comes last
        calls = list(_called(proto.graph.node if key is None else functions[key].node))
        there += len(calls)
        size = sum(1 + sizes.get(called, 0) for called in calls)
        if key is not None:
            sizes[key] = min(size, 1 << 60)
    least, factor = MOST_INLINED
    return size > max(least, factor * there)


def by_key(proto: onnx.ModelProto) -> dict[Key, onnx.FunctionProto]:
    """The functions of a model by domain, name and overload."""
    return {(f.domain, f.name, f.overload): f for f in proto.functions}


def _called(nodes: Any) -> Iterator[Key]:
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _called(graph.node)


def callers_first(functions: dict[Key, onnx.FunctionProto]) -> list[Key]:
    """The functions, each before those that it calls.

    Raises:
        ModelError: they call each other in a circle.
    """
    order: list[Key] = []
    done: set[Key] = set()
    for start in functions:
        path: dict[Key, Iterator[Key]] = {}
        step: Key | None = start if start not in done else None
        while step is not None or path:
            if step is not None:
                path[step] = iter(
                    [key for key in dict.fromkeys(_called(functions[step].node)) if key in functions]
                )
            top = next(reversed(path))
            step = next((key for key in path[top] if key not in done), None)
            if step in path:
                names = [key[1] for key in path]
                circle = [*names[names.index(step[1]) :], step[1]]
                raise ModelError(
                    f"functions call each other in a circle: {' -> '.join(circle)}; no runtime can run them"
                )
            if step is None:
                del path[top]
                done.add(top)
                order.append(top)
    return order[::-1]
