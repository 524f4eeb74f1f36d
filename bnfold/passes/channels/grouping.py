"""The sets of all channels of a graph: each node says which are the same, and which must stay."""

from __future__ import annotations

from bnfold.fold.graph import Graph, Node, Refused, Role
from bnfold.fold.roles import Closed, Concat, Product, Same, Sum
from bnfold.onnx_graph.model.site import Site
from bnfold.onnx_graph.ops.activations import Function
from bnfold.onnx_graph.ops.table import record_of
from bnfold.passes.channels.classes import Reason
from bnfold.passes.channels.group_joins import JOINS
from bnfold.passes.channels.group_layers import LAYERS, same
from bnfold.passes.channels.groups import Groups, Rule
from bnfold.passes.channels.sizes import reads_of_sizes

__all__ = ["group"]


def group(graph: Graph) -> Groups:
    """The sets of all channels that linear layers make."""
    groups = Groups()
    for node in graph.nodes:
        site: Site = node.source
        rule = RULES.get(type(node.role), _closed)
        if isinstance(record_of(node.op).bounds, Function):
            rule = same
        if site.refers or site.scope.in_function:
            rule = _closed
        try:
            rule(groups, node)
        except (Refused, IndexError, ValueError) as stuck:
            groups.keep_all(node, f"mixes channels: {stuck}")
        for slot, tensor in enumerate(node.inputs):
            if not _is_data(node.role, slot):
                groups.keep(tensor, node, "takes them as a parameter")
    for tensor, axis_read in reads_of_sizes(graph):
        found = groups.of(tensor)
        if found is not None and axis_read(found.axis):
            reason = Reason("their number is computed with", tensor.name)
            groups.classes.lock(found.sets.tolist(), reason)
    return groups


def _is_data(role: Role, slot: int) -> bool:
    if isinstance(role, Sum | Product | Concat):
        return True
    return slot in role.slots if isinstance(role, Same) else slot == getattr(role, "x", 0)


def _closed(groups: Groups, node: Node) -> None:
    role = node.role
    text = role.reason if isinstance(role, Closed) else "has no rule for channels that leave"
    if node.source.scope.in_function:
        text = "is inside a function"
    groups.keep_all(node, text)


RULES: dict[type[Role], Rule] = {**LAYERS, **JOINS}
