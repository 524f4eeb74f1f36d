"""Quantization annotations: what a file says, beside its nodes, of the scale and zero point of a tensor.

They are true of values that a change of the model may change: then they are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from onnx import AttributeProto, GraphProto

from bnfold.certificate import Key
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.report.table import first

CONTROL = frozenset({"If", "Loop", "Scan"})

__all__ = ["annotated", "drop_annotations", "dropped_note"]


def annotated(loaded: Loaded) -> list[Key]:
    """The tensors that have annotations."""
    graph = loaded.proto.graph
    if not graph.quantization_annotation and CONTROL.isdisjoint([node.op_type for node in graph.node]):
        return []
    return [
        (path, entry.tensor_name)
        for path, graph in _graphs(loaded.proto.graph)
        for entry in graph.quantization_annotation
    ]


def drop_annotations(loaded: Loaded, stale: Callable[[Key], bool]) -> None:
    """Remove the annotations of the tensors of which `stale` is true."""
    for path, graph in _graphs(loaded.proto.graph):
        entries = graph.quantization_annotation
        for number in reversed(range(len(entries))):
            if stale((path, entries[number].tensor_name)):
                del entries[number]


def dropped_note(before: Collection[Key], loaded: Loaded) -> list[str]:
    """What to say of those that are gone."""
    left = set(annotated(loaded)) if before else ()
    gone = [name for path, name in before if (path, name) not in left]
    what = "quantization annotations dropped, since the tensors have other values or are gone"
    return [f"{what}: {first(gone, 4)}"] if gone else []


def _graphs(graph: GraphProto, path: str = "") -> Iterator[tuple[str, GraphProto]]:
    """The graph and its bodies, under the names that certificates give them."""
    yield path, graph
    for node in [node for node in graph.node if node.op_type in CONTROL]:
        bodies = [entry.g for entry in node.attribute if entry.type == AttributeProto.GRAPH]
        stem = next(filter(None, node.output), "")
        for number, body in enumerate(bodies):
            yield from _graphs(body, f"{path}{stem}:{number}/")
