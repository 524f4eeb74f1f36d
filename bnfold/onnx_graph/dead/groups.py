"""Which channels can only leave together, and which must stay: one rule for each role.

A tensor has at most one axis of channels, from the layer that makes it on. A channel is a place on that axis
and belongs to a set (`Classes`). What rearranges data rearranges the numbers of the sets; what joins tensors
unites them. A linear layer ends sets and begins new ones: whether it can do without an input channel depends
on its weights and on what is proven of the channel, and is decided later (`choose.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.graph import (
    Affine,
    Array,
    Clamp,
    Closed,
    Concat,
    Constant,
    Gate,
    Graph,
    Leaky,
    Linear,
    Map,
    Move,
    Node,
    Normalize,
    Pad,
    Product,
    Role,
    Same,
    SoftmaxInput,
    Split,
    Sum,
    Tensor,
)
from bnfold.fold.moves import Stuck
from bnfold.onnx_graph.dead.classes import Classes, Reason
from bnfold.onnx_graph.dead.functions import FUNCTIONS
from bnfold.onnx_graph.dead.sizes import reads_of_sizes, taken
from bnfold.onnx_graph.dead.stored import why_not
from bnfold.onnx_graph.dead.weights import is_matrix
from bnfold.onnx_graph.site import Site

__all__ = ["Channels", "Groups", "group"]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a tensor: their axis, and the set of each."""

    axis: int
    sets: Array


class Groups:
    """What was found: the channels of each tensor that has some, and the linear layers that read them."""

    def __init__(self) -> None:
        self.classes = Classes()
        self.channels: dict[Tensor, Channels] = {}
        self.readers: list[Node] = []  # linear, with all inputs in one group

    def of(self, tensor: Tensor | None) -> Channels | None:
        return None if tensor is None else self.channels.get(tensor)

    def keep(self, tensor: Tensor | None, node: Node, text: str) -> None:
        """No channel of the tensor may leave."""
        found = self.of(tensor)
        if found is not None:
            self.classes.lock(found.sets.tolist(), Reason(text, node.name))

    def give(self, node: Node, slot: int, axis: int, sets: Array) -> None:
        """Output `slot` has these channels."""
        y = node.outputs[slot]
        size = y.shape[axis] if y.shape is not None and axis < len(y.shape) else None
        if size != len(sets):
            self.classes.lock(sets.tolist(), Reason("the sizes behind it are not known", node.name))
            return
        self.channels[y] = Channels(axis, sets)
        if y.fixed:
            self.classes.lock(sets.tolist(), Reason(f"is a {y.fixed}", y.name))

    def needs(self, node: Node, sets: Array, constants: list[Constant | None]) -> None:
        """The channels can leave only if these stored values can be cut."""
        for constant in constants:
            reason = "" if constant is None else why_not(constant)
            if reason:
                self.classes.lock(sets.tolist(), Reason(reason, node.name))


Rule = Callable[[Groups, Node], None]


def group(graph: Graph) -> Groups:
    """The sets of all channels that linear layers make."""
    groups = Groups()
    for node in graph.nodes:
        site: Site = node.source
        rule = RULES.get(type(node.role), _closed)
        if node.op in FUNCTIONS:
            rule = _same
        if site.refers or site.scope.in_function:
            rule = _closed
        try:
            rule(groups, node)
        except (Stuck, IndexError, ValueError) as stuck:
            _keep_all(groups, node, f"mixes channels: {stuck}")
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
    _keep_all(groups, node, text)


def _linear(groups: Groups, node: Node) -> None:
    role = node.role
    assert isinstance(role, Linear)
    x, x_tensor = groups.of(node.inputs[role.x]), node.inputs[role.x]
    if not is_matrix(role):
        groups.keep(x_tensor, node, "its weight is a batch of matrices")
        return
    if x is not None and x.axis != role.in_axis:
        groups.keep(x_tensor, node, "reads along another axis")
        x = None
    stored = [role.weight, role.bias]
    count = role.groups * role.split[role.w_out]
    if role.groups == 1:
        sets = groups.classes.new(count)
        if x is not None:
            groups.readers.append(node)
            groups.needs(node, x.sets, [role.weight])
    elif x is None:
        return
    else:
        sets = _united(groups, role, x.sets)
    groups.needs(node, sets, stored)
    if role.bias_open:
        groups.classes.lock(sets.tolist(), Reason(role.bias_open, node.name))
    groups.give(node, 0, role.out_axis, sets)


def _united(groups: Groups, role: Linear, sets: Array) -> Array:
    """All inputs and outputs of a group leave together, or not at all."""
    grid = sets.reshape(role.groups, -1)
    for column in range(1, grid.shape[1]):
        groups.classes.unite(grid[:, 0], grid[:, column])
    return np.repeat(grid[:, 0], role.split[role.w_out])


def _affine(groups: Groups, node: Node) -> None:
    role = node.role
    assert isinstance(role, Affine)
    x = groups.of(node.inputs[role.x])
    if x is None:
        return
    if role.kind == "norm" and x.axis != 1:
        groups.keep(node.inputs[role.x], node, "runs along another axis")
        return
    groups.needs(node, x.sets, [constant for _, constant in role.constants.values()])
    groups.give(node, 0, x.axis, x.sets)


def _same(groups: Groups, node: Node) -> None:
    """Elementwise: the output has the channels of the input."""
    x = groups.of(node.inputs[0])
    if x is not None:
        groups.give(node, 0, x.axis, x.sets)


def _leaky(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, Leaky)
    if x is not None:
        groups.needs(node, x.sets, [role.constant])
        groups.give(node, 0, x.axis, x.sets)


def _map(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, Map)
    if x is None:
        return
    if x.axis in role.flat:
        groups.keep(node.inputs[0], node, f"{node.op} works across channels")
        return
    if node.op == "Resize" and node.source.has(3) and node.source.value(3) is None:
        groups.keep(node.inputs[0], node, "its sizes are computed at run time")
        return
    if node.op == "PRelu":
        groups.keep(node.inputs[0], node, "its slope is computed at run time")
        return
    groups.give(node, 0, x.axis - sum(axis < x.axis for axis in role.squeezed), x.sets)


def _softmax(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, SoftmaxInput)
    if x is not None and x.axis == role.axis:
        groups.keep(node.inputs[0], node, f"{node.op} works across channels")
        return
    _same(groups, node)


def _normalize(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, Normalize)
    if x is None:
        return
    if x.axis in role.over or role.groups:
        groups.keep(node.inputs[0], node, f"{node.op} works across channels")
        return
    if x.axis in role.axes:
        if role.scale is None or (role.bias is None and node.source.has(role.bias_slot or 0)):
            groups.keep(node.inputs[0], node, "its scale and bias are computed at run time")
            return
        groups.needs(node, x.sets, [role.scale, role.bias])
    groups.give(node, 0, x.axis, x.sets)


def _pad(groups: Groups, node: Node) -> None:
    role, x = node.role, groups.of(node.inputs[0])
    assert isinstance(role, Pad)
    if x is not None and x.axis in role.axes:
        groups.keep(node.inputs[0], node, "adds channels")
        return
    _same(groups, node)


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
        _keep_all(groups, node, "joins tensors whose channels lie on different axes")
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


def _keep_all(groups: Groups, node: Node, text: str) -> None:
    for tensor in node.inputs:
        groups.keep(tensor, node, text)


def _unite(groups: Groups, node: Node, parts: list[Array], axis: int) -> None:
    if len({len(part) for part in parts}) > 1:
        _keep_all(groups, node, "joins tensors with different numbers of channels")
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
        _keep_all(groups, node, "joins tensors whose channels lie on different axes")
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


RULES: dict[type[Role], Rule] = {
    Affine: _affine,
    Clamp: _same,
    Concat: _concat,
    Gate: _same,
    Leaky: _leaky,
    Linear: _linear,
    Map: _map,
    Move: _move,
    Normalize: _normalize,
    Pad: _pad,
    Product: _joined,
    Same: _joined,
    SoftmaxInput: _softmax,
    Split: _split,
    Sum: _joined,
}
