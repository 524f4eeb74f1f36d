"""How channels pass through what rearranges data, and through what joins several tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Node, Role, Tensor
from bnfold.fold.roles import Concat, Move, Product, Same, Split, Sum
from bnfold.onnx_graph.model.site import Site
from bnfold.passes.channels.classes import Reason
from bnfold.passes.channels.groups import Channels, Groups, Rule
from bnfold.passes.channels.sizes import taken

__all__ = ["JOINS"]


def _move(groups: Groups, node: Node) -> None:
    role = node.role
    assert isinstance(role, Move)
    tensor = node.inputs[role.x]
    x = groups.of(tensor)
    if x is None or tensor is None:
        return
    text = _unmovable(node, tensor, x)
    if text:
        groups.keep(tensor, node, text)
        return
    shape = [1] * tensor.rank
    shape[x.axis] = -1
    moved = np.asarray(role.move.push(x.sets.reshape(shape)))
    axes = [axis for axis in range(moved.ndim) if not _equal_along(moved, axis)]
    if len(axes) != 1:
        groups.keep(tensor, node, f"{node.op} does not keep channels apart")
        return
    for axis in range(moved.ndim):
        if axis != axes[0]:
            moved = moved.take([0], axis)
    groups.give(node, 0, axes[0], moved.reshape(-1))


def _equal_along(array: Array, axis: int) -> bool:
    return bool(array.shape[axis] == 1 or (array == array.take([0], axis)).all())


def _unmovable(node: Node, tensor: Tensor, x: Channels) -> str:
    """Why the node could not be rewritten for fewer channels."""
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


def _split(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, Split)
    if x is None:
        return
    if node.op != "Split":
        groups.keep(node.inputs[0], node, "is part of a sequence")
        return
    first = 0
    for slot, size in enumerate(role.sizes):
        sets = x.sets[first : first + size] if role.axis == x.axis else x.sets
        groups.give(node, slot, x.axis, sets)
        first += size


def _concat(groups: Groups, node: Node) -> None:
    role = node.role
    assert isinstance(role, Concat)
    found = [groups.of(tensor) for tensor in node.inputs]
    axes = {x.axis for x in found if x is not None}
    if not axes:
        return
    if len(axes) > 1 or (axes != {role.axis} and None in found):
        groups.keep_all(node, "joins tensors whose channels lie on different axes")
        return
    if axes != {role.axis}:
        _unite(groups, node, [x.sets for x in found if x is not None], axes.pop())
        return
    parts: list[Array] = []
    for tensor, x, size in zip(node.inputs, found, role.sizes, strict=True):
        sets = x.sets if x is not None else groups.classes.new(size or 0)
        if x is None:
            constant = None if tensor is None else tensor.constant
            if constant is None:
                where = node.name if tensor is None else tensor.name
                groups.classes.lock(sets.tolist(), Reason("has no layer that makes its channels", where))
            elif tensor is not None:
                groups.needs(node, sets, [constant])
                groups.channels[tensor] = Channels(role.axis, sets)
        parts.append(sets)
    groups.give(node, 0, role.axis, np.concatenate(parts))


def _unite(groups: Groups, node: Node, parts: list[Array], axis: int) -> None:
    if len({len(part) for part in parts}) > 1:
        groups.keep_all(node, "joins tensors with different numbers of channels")
        return
    for part in parts[1:]:
        groups.classes.unite(parts[0], part)
    groups.give(node, 0, axis, parts[0])


def _joined(groups: Groups, node: Node) -> None:
    """Sums, products, maxima: operands are broadcast, and those with the channel axis share their sets."""
    rank = node.outputs[0].rank
    role = node.role
    slots = role.slots if isinstance(role, Same) else range(len(node.inputs))
    operands = [(slot, node.inputs[slot]) for slot in slots]
    places = {x.axis + rank - tensor.rank for _, tensor in operands if tensor and (x := groups.of(tensor))}
    if not places:
        return
    if len(places) > 1 or (node.op == "Where" and not _is_thin(node.source.shape(0), rank, min(places))):
        groups.keep_all(node, "joins tensors whose channels lie on different axes")
        return
    axis = places.pop()
    parts: list[Array] = []
    others: list[Any] = []
    for _, tensor in operands:
        assert tensor is not None
        x = groups.of(tensor)
        if x is not None:
            parts.append(x.sets)
        elif not _is_thin(tensor.shape, rank, axis):
            others.append(tensor)
    widest = max(parts, key=len)
    for part in [part for part in parts if len(part) < len(widest)]:  # one channel, for all of the others
        groups.classes.lock(part.tolist(), Reason("is broadcast to all channels", node.name))
    _unite(groups, node, [part for part in parts if len(part) == len(widest)], axis)
    for tensor in others:
        if tensor.constant is None:
            groups.classes.lock(widest.tolist(), Reason(f"is joined with {tensor.name}", node.name))
        groups.needs(node, widest, [tensor.constant])


def _is_thin(shape: Any, rank: int, axis: int) -> bool:
    """Whether an operand of this shape surely has size 1 along the axis of the result."""
    if shape is None:
        return False
    place = axis - (rank - len(shape))
    return place < 0 or shape[place] == 1


JOINS: dict[type[Role], Rule] = {
    Concat: _concat,
    Move: _move,
    Product: _joined,
    Same: _joined,
    Split: _split,
    Sum: _joined,
}
