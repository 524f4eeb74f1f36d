"""What each node needs to be rewritten for fewer channels: one rule for each role, beside those of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from bnfold.fold.edits import SetValue
from bnfold.fold.graph import Array, Constant, Node, Role, Tensor
from bnfold.fold.roles import Affine, Concat, Leaky, Linear, Map, Move, Normalize, Product, Same, Split, Sum
from bnfold.onnx_graph.ops.facts import broken, integers
from bnfold.onnx_graph.site import Site
from bnfold.passes.channels.choose import Choice
from bnfold.passes.channels.cut_layers import Cut, cut, linear
from bnfold.passes.channels.sizes import cut_size, slice_bounds

__all__ = ["cut_of"]

# what a rule stumbles over where shapes do not match
_DAMAGE = (AssertionError, IndexError, KeyError, TypeError, ValueError)
# of the role of a node, with the axis of the channels and the indices of those that stay: of the output, for
# BY_INPUT of the input
Rule: TypeAlias = "Callable[[Any, Node, int, Array], Cut]"
BY_INPUT = ("Gather", "Slice", "Split")


def cut_of(choice: Choice, node: Node) -> Cut:
    """The edits of a node; empty where nothing around it leaves.

    Raises:
        ModelError: the node cannot run, since what it stores does not fit what it reads.
        OutOfRange: a bias would overflow.
    """
    role, rule = node.role, RULES.get(type(node.role))
    try:
        if isinstance(role, Linear):
            return linear(choice, node)
        if isinstance(role, Concat):
            return _concat(choice, node)
        if rule is None:
            return Cut()
        found = _keep(choice, node.at(0) if node.op in BY_INPUT else node.outputs[0])
        return Cut() if found is None else rule(role, node, *found)
    except _DAMAGE:
        raise broken(node.source, "its stored values do not fit the shapes around it") from None


def _keep(choice: Choice, tensor: Tensor | None) -> tuple[int, Array] | None:
    """The axis of the channels and the indices of those that stay; None if all do."""
    keep = choice.keep(tensor)
    return None if keep is None or tensor is None else (choice.groups.channels[tensor].axis, keep)


def _constants(
    node: Node, rank: int, axis: int, keep: Array, stored: Iterable[tuple[int, Constant | None]]
) -> Cut:
    """Stored values by slot, cut along an axis of a tensor of that rank."""
    result = Cut()
    for slot, constant in stored:
        if constant is not None:
            old = constant.load()
            new = cut(old, axis, rank, keep)
            if new is not old:
                result.edits.append(SetValue(node, slot, new, constant))
    return result


# Nodes that store something for each channel of their output


def _affine(role: Affine, node: Node, axis: int, keep: Array) -> Cut:
    rank, axis = (1, 0) if role.kind == "norm" else (node.outputs[0].rank, axis)  # a norm has vectors
    return _constants(node, rank, axis, keep, role.constants.values())


def _leaky(role: Leaky, node: Node, axis: int, keep: Array) -> Cut:
    own = [] if role.constant is None else [(int(role.key), role.constant)]
    return _constants(node, node.outputs[0].rank, axis, keep, own)


def _normalize(role: Normalize, node: Node, axis: int, keep: Array) -> Cut:
    if axis not in role.axes:
        return Cut()
    own = [(role.scale_slot, role.scale), (role.bias_slot or 0, role.bias)]
    return _constants(node, len(role.axes), role.axes.index(axis), keep, own)


def _joined(role: Product | Same | Sum, node: Node, axis: int, keep: Array) -> Cut:
    """Constant operands."""
    slots = role.slots if isinstance(role, Same) else range(len(node.inputs))
    operands = [(slot, tensor.constant) for slot in slots if (tensor := node.inputs[slot]) is not None]
    return _constants(node, node.outputs[0].rank, axis, keep, operands)


def _concat(choice: Choice, node: Node) -> Cut:
    """Constant operands, each of which loses channels of its own."""
    result = Cut()
    for slot, tensor in enumerate(node.inputs):
        found = _keep(choice, tensor)
        if found is not None and tensor is not None:
            part = _constants(node, node.outputs[0].rank, *found, [(slot, tensor.constant)])
            result.edits += part.edits
    return result


def _map(role: Map, node: Node, axis: int, keep: Array) -> Cut:
    """Resize, if it is given the size of every axis."""
    if node.op != "Resize" or not node.source.has(3):
        return Cut()
    sizes, axes = node.source.value(3), integers(node.source, "axes")
    rank = node.outputs[0].rank
    along = list(range(rank)) if axes is None else [entry % rank for entry in axes]
    if sizes is None or sizes.size != len(along) or axis not in along:
        return Cut()
    new = sizes.tolist()
    new[along.index(axis)] = len(keep)
    return _integers(node, "sizes", 3, new)


def _integers(node: Node, name: str, slot: int, values: list[int]) -> Cut:
    """A list that is an input, or an attribute in older opsets."""
    site: Site = node.source
    if not site.has(slot):
        return Cut(attributes={name: values})
    constant = site.constant(slot)
    dtype = site.dtype(slot) or "int64"
    return Cut([SetValue(node, slot, np.asarray(values, dtype), constant)])


# Nodes that store shapes, or indices along the channels


def _move(role: Move, node: Node, axis: int, keep: Array) -> Cut:
    if node.op in ("Reshape", "Expand"):
        return _reshape(node, axis, keep)
    if node.op not in BY_INPUT:
        return Cut()
    size = (node.at(0).shape or ())[axis]
    assert isinstance(size, int)
    return _slice(node, axis, size, keep) if node.op == "Slice" else _gather(node, axis, size, keep)


def _reshape(node: Node, axis: int, keep: Array) -> Cut:
    wanted = list(integers(node.source, "shape", 1) or ())
    own = axis - (node.outputs[0].rank - len(wanted))  # Expand may name fewer axes
    if own < 0 or wanted[own] in (-1, 0) or (node.op == "Expand" and wanted[own] == 1):
        return Cut()
    wanted[own] = len(keep)
    return _integers(node, "shape", 1, wanted)


def _slice(node: Node, axis: int, size: int, keep: Array) -> Cut:
    bounds = slice_bounds(node.source, node.at(0).rank, axis)
    assert bounds is not None
    entry, starts, ends = bounds
    if entry is None:
        return Cut()
    run = range(size)[starts[entry] : ends[entry]]
    starts[entry], count = cut_size(keep, run.start, len(run))
    ends[entry] = starts[entry] + count
    result = _integers(node, "starts", 1, starts)
    more = _integers(node, "ends", 2, ends)
    return Cut(result.edits + more.edits, {**result.attributes, **more.attributes})


def _gather(node: Node, axis: int, size: int, keep: Array) -> Cut:
    site: Site = node.source
    indices = site.value(1)
    if int(site.attr("axis", 0)) % node.at(0).rank != axis or indices is None:
        return Cut()
    moved = np.full(size, -1)
    moved[keep] = np.arange(len(keep))
    new = moved[indices.reshape(-1) % size]
    constant = site.constant(1)
    return Cut([SetValue(node, 1, new[new >= 0].astype(indices.dtype), constant)])


def _split(role: Split, node: Node, axis: int, keep: Array) -> Cut:
    if axis != role.axis:
        return Cut()
    ends = np.cumsum(role.sizes)
    sizes = [cut_size(keep, int(end) - size, size)[1] for end, size in zip(ends, role.sizes, strict=True)]
    if node.source.opset < 13:
        return Cut(attributes={"split": sizes})
    result = Cut([SetValue(node, 1, np.asarray(sizes, np.int64), node.source.constant(1))])
    if "num_outputs" in node.source.attributes:
        result.attributes["num_outputs"] = None  # it means equal parts
    return result


RULES: dict[type[Role], Rule] = {
    Affine: _affine,
    Leaky: _leaky,
    Map: _map,
    Move: _move,
    Normalize: _normalize,
    Product: _joined,
    Same: _joined,
    Split: _split,
    Sum: _joined,
}
