"""How each node passes channels on: which of its output are the same as those of its inputs, and which stay.

One rule for each role. Most nodes pass on the channels of one tensor (`PASSES`): layers, activations, pools,
reductions and what rearranges data. The others (`RULES`) make channels, or join or part several tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from bnfold.fold.affine import at_axis
from bnfold.fold.graph import Array, Graph, Node, Refused, Role, Tensor
from bnfold.fold.roles import (
    Affine,
    Clamp,
    Closed,
    Concat,
    Gate,
    Leaky,
    Linear,
    Map,
    Move,
    Normalize,
    Pad,
    Product,
    Same,
    SoftmaxInput,
    Split,
    Sum,
    is_data,
)
from bnfold.onnx_graph.ops.activations import Function
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.site import Site
from bnfold.passes.channels.groups import Channels, Groups
from bnfold.passes.channels.matrices import is_matrix
from bnfold.passes.channels.sizes import reads_of_sizes, taken

__all__ = ["group"]

# of a role: from the channels of what its node reads to those of the output, or the reason why all stay
Pass: TypeAlias = "Callable[[Any, Groups, Node, Channels], Channels | str]"
# of a role: notes what the node does with the channels around it
Rule: TypeAlias = "Callable[[Any, Groups, Node], None]"


def group(graph: Graph) -> Groups:
    """The sets of all channels that linear layers make."""
    groups = Groups()
    for node in graph.nodes:
        try:
            _apply(groups, node)
        except (Refused, IndexError, ValueError) as refused:
            groups.keep_all(node, f"mixes channels: {refused}")
        for slot, tensor in enumerate(node.inputs):
            if not is_data(node.role, slot):
                groups.keep(tensor, node, "takes them as a parameter")
    for tensor, axis_read in reads_of_sizes(graph):
        found = groups.of(tensor)
        if found is not None and axis_read(found.axis):
            groups.sets.lock(found.sets, "their number is computed with", tensor.name)
    return groups


def _apply(groups: Groups, node: Node) -> None:
    role = node.role
    passes = _same if isinstance(record_of(node.op).bounds, Function) else PASSES.get(type(role))
    if node.source.scope.in_function:
        groups.keep_all(node, "is inside a function")
    elif passes is None and type(role) not in RULES:
        text = role.reason if isinstance(role, Closed) else "has no rule for channels that leave"
        groups.keep_all(node, text)
    elif passes is None:
        RULES[type(role)](role, groups, node)
    else:
        tensor = node.inputs[getattr(role, "x", 0)]
        x = groups.of(tensor)
        if x is not None:
            found = passes(role, groups, node, x)
            if isinstance(found, str):
                groups.keep(tensor, node, found)
            else:
                groups.give(node, 0, found)


# Nodes that pass on the channels of one tensor


def _same(role: Role, groups: Groups, node: Node, x: Channels) -> Channels:
    """Elementwise: the output has the channels of the input."""
    return x


def _affine(role: Affine, groups: Groups, node: Node, x: Channels) -> Channels | str:
    if role.kind == "norm" and x.axis != 1:
        return "runs along another axis"
    groups.needs(node, x.sets, [constant for _, constant in role.constants.values()])
    return x


def _leaky(role: Leaky, groups: Groups, node: Node, x: Channels) -> Channels:
    groups.needs(node, x.sets, [role.constant])
    return x


_AS_WIDE = {  # maps that read something else that runs along the channels as well
    "GatherElements": "its indices run along the channels",
    "PRelu": "its slope is computed at run time",
    "ScatterElements": "its indices run along the channels",
}


def _map(role: Map, groups: Groups, node: Node, x: Channels) -> Channels | str:
    if x.axis in role.flat:
        return f"{node.op} works across channels"
    if node.op == "Resize" and node.source.has(3) and node.source.value(3) is None:
        return "its sizes are computed at run time"
    if node.op in _AS_WIDE:
        return _AS_WIDE[node.op]
    return Channels(x.axis - sum(axis < x.axis for axis in role.squeezed), x.sets)


def _softmax(role: SoftmaxInput, groups: Groups, node: Node, x: Channels) -> Channels | str:
    return f"{node.op} works across channels" if x.axis == role.axis else x


def _normalize(role: Normalize, groups: Groups, node: Node, x: Channels) -> Channels | str:
    if x.axis in role.over or role.groups:
        return f"{node.op} works across channels"
    if x.axis in role.axes:
        if role.scale is None or (role.bias is None and node.source.has(role.bias_slot or 0)):
            return "its scale and bias are computed at run time"
        groups.needs(node, x.sets, [role.scale, role.bias])
    return x


def _pad(role: Pad, groups: Groups, node: Node, x: Channels) -> Channels | str:
    return "adds channels" if x.axis in role.axes else x


def _move(role: Move, groups: Groups, node: Node, x: Channels) -> Channels | str:
    """What rearranges data: the sets are rearranged like the data."""
    tensor = node.at(role.x)
    text = _why_not_rewritten(node, tensor, x)
    if text:
        return text
    moved = np.asarray(role.move.push(at_axis(x.sets, x.axis, tensor.rank)))
    axes = [axis for axis in range(moved.ndim) if (moved != moved.take([0], axis)).any()]
    if len(axes) != 1:
        return f"{node.op} does not keep channels apart"
    return Channels(axes[0], np.moveaxis(moved, axes[0], -1).reshape(-1, moved.shape[axes[0]])[0])


def _why_not_rewritten(node: Node, tensor: Tensor, x: Channels) -> str:
    """Why a node that rearranges data could not be rewritten for fewer channels; "" if it can."""
    site: Site = node.source
    if node.op in ("SequenceAt", "SplitToSequence"):
        return "is part of a sequence"
    if len(x.sets) == 1:
        return "has one channel"
    if node.op == "Squeeze" and not site.has(1) and site.attr("axes") is None:
        return "drops every axis of size 1"
    if node.op in ("Reshape", "Expand") and site.has(1) and site.value(1) is None:
        return "its new shape is computed at run time"
    if node.op in ("Slice", "Gather") and taken(site, tensor.rank, x.axis, len(x.sets)) is None:
        return "takes channels that are chosen at run time, or not in a row"
    return ""


PASSES: dict[type[Role], Pass] = {
    Affine: _affine,
    Clamp: _same,
    Gate: _same,
    Leaky: _leaky,
    Map: _map,
    Move: _move,
    Normalize: _normalize,
    Pad: _pad,
    SoftmaxInput: _softmax,
}

# Nodes that make channels, or join or part several tensors


def _linear(role: Linear, groups: Groups, node: Node) -> None:
    tensor = node.inputs[role.x]
    x = groups.of(tensor)
    if not is_matrix(role):
        groups.keep(tensor, node, "its weight is a batch of matrices")
        return
    if x is not None and x.axis != role.in_axis:
        groups.keep(tensor, node, "reads along another axis")
        x = None
    if role.groups > 1 and x is not None:
        sets = _by_group(groups, role, x.sets)
    else:
        sets = groups.sets.new(role.groups * role.split[role.w_out])
        if role.groups > 1:
            name = "" if tensor is None else tensor.name
            groups.sets.lock(sets, f"reads {name}, whose channels stay, group by group", node.name)
        elif x is not None:
            groups.readers.append(node)
            groups.needs(node, x.sets, [role.weight])
    groups.needs(node, sets, [role.weight, role.bias])
    if role.bias_open:
        groups.sets.lock(sets, role.bias_open, node.name)
    groups.give(node, 0, Channels(role.out_axis, sets))


def _by_group(groups: Groups, role: Linear, sets: Array) -> Array:
    """All inputs and outputs of a group leave together, or not at all."""
    grid = sets.reshape(role.groups, -1)
    for column in range(1, grid.shape[1]):
        groups.sets.unite(grid[:, 0], grid[:, column])
    return np.repeat(grid[:, 0], role.split[role.w_out])


def _split(role: Split, groups: Groups, node: Node) -> None:
    x = groups.of(node.inputs[0])
    if x is None:
        return
    if node.op != "Split":
        groups.keep(node.inputs[0], node, "is part of a sequence")
        return
    first = 0
    for slot, size in enumerate(role.sizes):
        sets = x.sets[first : first + size] if role.axis == x.axis else x.sets
        groups.give(node, slot, Channels(x.axis, sets))
        first += size


def _concat(role: Concat, groups: Groups, node: Node) -> None:
    found = [groups.of(tensor) for tensor in node.inputs]
    axes = {x.axis for x in found if x is not None}
    if not axes:
        return
    if len(axes) > 1 or (axes != {role.axis} and None in found):
        groups.keep_all(node, _OTHER_AXES)
        return
    if axes != {role.axis}:
        _unite(groups, node, [x.sets for x in found if x is not None], axes.pop())
        return
    parts: list[Array] = []
    for tensor, x, size in zip(node.inputs, found, role.sizes, strict=True):
        sets = x.sets if x is not None else groups.sets.new(size or 0)
        if x is None and tensor is not None and tensor.constant is not None:
            groups.needs(node, sets, [tensor.constant])
            groups.channels[tensor] = Channels(role.axis, sets)
        elif x is None:
            where = node.name if tensor is None else tensor.name
            groups.sets.lock(sets, "has no layer that makes its channels", where)
        parts.append(sets)
    groups.give(node, 0, Channels(role.axis, np.concatenate(parts)))


def _unite(groups: Groups, node: Node, parts: list[Array], axis: int) -> None:
    if len({len(part) for part in parts}) > 1:
        groups.keep_all(node, "joins tensors with different numbers of channels")
        return
    for part in parts[1:]:
        groups.sets.unite(parts[0], part)
    groups.give(node, 0, Channels(axis, parts[0]))


def _joined(role: Product | Same | Sum, groups: Groups, node: Node) -> None:
    """Sums, products, maxima: operands are broadcast, and those with the channel axis share their sets."""
    rank = node.outputs[0].rank
    slots = role.slots if isinstance(role, Same) else range(len(node.inputs))
    operands = [node.inputs[slot] for slot in slots]
    axes = {x.axis + rank - tensor.rank for tensor in operands if tensor and (x := groups.of(tensor))}
    if not axes:
        return
    if len(axes) > 1 or (node.op == "Where" and not _is_thin(node.source.shape(0), rank, min(axes))):
        groups.keep_all(node, _OTHER_AXES)
        return
    axis = axes.pop()
    parts: list[Array] = []
    others: list[Tensor] = []
    for tensor in operands:
        assert tensor is not None
        x = groups.of(tensor)
        if x is not None:
            parts.append(x.sets)
        elif not _is_thin(tensor.shape, rank, axis):
            others.append(tensor)
    widest = max(parts, key=len)
    for part in parts:
        if len(part) < len(widest):  # one channel, for all of the others
            groups.sets.lock(part, "is broadcast to all channels", node.name)
    _unite(groups, node, [part for part in parts if len(part) == len(widest)], axis)
    for tensor in others:
        if tensor.constant is None:
            groups.sets.lock(widest, f"is joined with {tensor.name}", node.name)
        groups.needs(node, widest, [tensor.constant])


_OTHER_AXES = "joins tensors whose channels lie on different axes"


def _is_thin(shape: Any, rank: int, axis: int) -> bool:
    """Whether an operand of this shape surely has size 1 along the axis of the result."""
    if shape is None:
        return False
    own = axis - (rank - len(shape))
    return bool(own < 0 or shape[own] == 1)


RULES: dict[type[Role], Rule] = {
    Concat: _concat,
    Linear: _linear,
    Product: _joined,
    Same: _joined,
    Split: _split,
    Sum: _joined,
}
