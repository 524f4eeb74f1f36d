"""An exported program's outline, for pictures: calls, with the names that reports give them, and edges."""

from __future__ import annotations

from collections.abc import Mapping
from operator import getitem

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from bnfold.report.drawing import Outline, OutlineNode
from bnfold.torch_graph.call import op_of

__all__ = ["outline"]


def outline(program: ExportedProgram, names: Mapping[str, str]) -> Outline:
    """What a picture shows of a program: parameters and buffers are no part of it.

    Args:
        program: as it is now.
        names: what calls are called in reports, by their names in the graph; of one that is not there, the
            latter.
    """
    signature = program.graph_signature
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind == InputKind.USER_INPUT]
    outputs = [spec.arg.name for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    # Parts of what a call gives are its outputs, not calls.
    given: dict[fx.Node, list[str]] = {}
    for part in program.graph.nodes:
        if part.target is getitem:
            given.setdefault(part.all_input_nodes[0], []).append(part.name)
    nodes = [
        OutlineNode(
            names.get(node.name, node.name),
            op_of(node) or str(getattr(node.target, "__name__", node.target)),
            tuple(source.name for source in node.all_input_nodes),
            (node.name, *given.get(node, ())),
        )
        for node in program.graph.nodes
        if node.op not in ("placeholder", "output", "get_attr") and node.target is not getitem
    ]
    return Outline(tuple(inputs), tuple(nodes), tuple(outputs))
