"""What each node needs to be rewritten for fewer channels: one rule for each role, beside those of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bnfold.fold.edits import SetValue
from bnfold.fold.graph import Array, Constant, Node, Role, Tensor
from bnfold.fold.roles import Affine, Concat, Leaky, Linear, Map, Move, Normalize, Product, Same, Split, Sum
from bnfold.onnx_graph.model.site import Site
from bnfold.onnx_graph.ops.facts import broken, integers
from bnfold.passes.channels.choose import Choice
from bnfold.passes.channels.cut_layers import Cut, linear
from bnfold.passes.channels.sizes import cut_size, slice_bounds
from bnfold.passes.channels.stored import cut

__all__ = ["cut_of"]

# what a rule stumbles over where shapes do not match
_DAMAGE = (AssertionError, IndexError, KeyError, TypeError, ValueError)
Stored = tuple[int, Constant, int, Array]  # slot, value, axis of the tensor, the places to keep


def cut_of(choice: Choice, node: Node) -> Cut:
    """The edits of a node; empty where nothing around it leaves.

    Raises:
        ModelError: the node cannot run, since what it stores does not fit what it reads.
        TooLarge: a bias would overflow.
    """
    rule = RULES.get(type(node.role))
    try:
        return Cut() if rule is None else rule(choice, node)
    except _DAMAGE:
        raise broken(node.source, "its stored values do not fit the shapes around it") from None


def _keep(choice: Choice, tensor: Tensor | None) -> tuple[int, Array] | None:
    """The axis of the channels and those that stay; None if all do."""
    keep = choice.keep(tensor)
    return None if keep is None or tensor is None else (choice.groups.channels[tensor].axis, keep)


def _constants(node: Node, rank: int, stored: Iterator[Stored]) -> Cut:
    result = Cut()
    for slot, constant, axis, keep in stored:
        old = constant.load()
        new = cut(old, axis, rank, keep)
        if new is not old:
            result.edits.append(SetValue(node, slot, new, constant))
    return result


def _affine(choice: Choice, node: Node) -> Cut:
    role, y = node.role, node.outputs[0]
    assert isinstance(role, Affine)
    found = _keep(choice, y)
    if found is None:
        return Cut()
    axis, keep = found
    if role.kind == "norm":  # vectors
        return _constants(node, 1, ((slot, c, 0, keep) for slot, c in role.constants.values()))
    return _constants(node, y.rank, ((slot, c, axis, keep) for slot, c in role.constants.values()))


def _leaky(choice: Choice, node: Node) -> Cut:
    role, y = node.role, node.outputs[0]
    assert isinstance(role, Leaky)
    found = _keep(choice, y)
    if found is None or role.constant is None:
        return Cut()
    return _constants(node, y.rank, iter([(int(role.key), role.constant, *found)]))


def _normalize(choice: Choice, node: Node) -> Cut:
    role, found = node.role, _keep(choice, node.outputs[0])
    assert isinstance(role, Normalize)
    if found is None or found[0] not in role.axes:
        return Cut()
    place, keep = role.axes.index(found[0]), found[1]
    own = [(role.scale_slot, role.scale), (role.bias_slot or 0, role.bias)]
    return _constants(node, len(role.axes), ((slot, c, place, keep) for slot, c in own if c is not None))


def _joined(choice: Choice, node: Node) -> Cut:
    """Constant operands."""
    y = node.outputs[0]
    found = _keep(choice, y)
    if found is None:
        return Cut()
    slots = node.role.slots if isinstance(node.role, Same) else range(len(node.inputs))
    operands = ((slot, tensor.constant) for slot in slots if (tensor := node.inputs[slot]) is not None)
    return _constants(node, y.rank, ((slot, c, *found) for slot, c in operands if c is not None))


def _concat(choice: Choice, node: Node) -> Cut:
    rank = node.outputs[0].rank

    def stored() -> Iterator[Stored]:
        for slot, tensor in enumerate(node.inputs):
            found = _keep(choice, tensor)
            if found is not None and tensor is not None and tensor.constant is not None:
                yield slot, tensor.constant, *found

    return _constants(node, rank, stored())


def _integers(node: Node, name: str, slot: int, values: list[int]) -> Cut:
    """A list that is an input, or an attribute in older opsets."""
    site: Site = node.source
    if not site.has(slot):
        return Cut(attributes={name: values})
    constant = site.constant(slot)
    dtype = site.dtype(slot) or "int64"
    return Cut([SetValue(node, slot, np.asarray(values, dtype), constant)])


def _map(choice: Choice, node: Node) -> Cut:
    """Resize, if it is told the size of every axis."""
    found = _keep(choice, node.outputs[0])
    if found is None or node.op != "Resize" or not node.source.has(3):
        return Cut()
    sizes, axes = node.source.value(3), integers(node.source, "axes")
    rank = node.outputs[0].rank
    places = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    if sizes is None or sizes.size != len(places) or found[0] not in places:
        return Cut()
    new = sizes.tolist()
    new[places.index(found[0])] = len(found[1])
    return _integers(node, "sizes", 3, new)


def _move(choice: Choice, node: Node) -> Cut:
    role = node.role
    assert isinstance(role, Move)
    x, y = _keep(choice, node.inputs[role.x]), _keep(choice, node.outputs[0])
    if x is None:
        return Cut()
    if node.op in ("Reshape", "Expand") and y is not None:
        return _reshape(node, *y)
    if node.op == "Slice":
        return _slice(node, *x)
    return _gather(choice, node, *x) if node.op == "Gather" else Cut()


def _reshape(node: Node, axis: int, keep: Array) -> Cut:
    wanted = list(integers(node.source, "shape", 1) or ())
    place = axis - (node.outputs[0].rank - len(wanted))  # Expand may name fewer axes
    if place < 0 or wanted[place] in (-1, 0) or (node.op == "Expand" and wanted[place] == 1):
        return Cut()
    wanted[place] = len(keep)
    return _integers(node, "shape", 1, wanted)


def _slice(node: Node, axis: int, keep: Array) -> Cut:
    tensor = node.inputs[0]
    assert tensor is not None
    assert tensor.shape is not None
    size = tensor.shape[axis]
    bounds = slice_bounds(node.source, tensor.rank, axis)
    assert bounds is not None
    assert isinstance(size, int)
    place, starts, ends = bounds
    if place is None:
        return Cut()
    run = range(size)[starts[place] : ends[place]]
    starts[place], count = cut_size(keep, run.start, len(run))
    ends[place] = starts[place] + count
    result = _integers(node, "starts", 1, starts)
    more = _integers(node, "ends", 2, ends)
    return Cut(result.edits + more.edits, {**result.attributes, **more.attributes})


def _gather(choice: Choice, node: Node, axis: int, keep: Array) -> Cut:
    site: Site = node.source
    tensor = node.inputs[0]
    assert tensor is not None
    assert tensor.shape is not None
    size, indices = tensor.shape[axis], site.value(1)
    if int(site.attr("axis", 0)) % tensor.rank != axis or indices is None:
        return Cut()
    assert isinstance(size, int)
    places = np.full(size, -1)
    places[keep] = np.arange(len(keep))
    new = places[indices.reshape(-1) % size]
    constant = site.constant(1)
    return Cut([SetValue(node, 1, new[new >= 0].astype(indices.dtype), constant)])


def _split(choice: Choice, node: Node) -> Cut:
    role, found = node.role, _keep(choice, node.inputs[0])
    assert isinstance(role, Split)
    if found is None or found[0] != role.axis:
        return Cut()
    sizes, first = [], 0
    for size in role.sizes:
        sizes.append(cut_size(found[1], first, size)[1])
        first += size
    if node.source.opset < 13:
        return Cut(attributes={"split": sizes})
    result = Cut([SetValue(node, 1, np.asarray(sizes, np.int64), node.source.constant(1))])
    if "num_outputs" in node.source.attributes:
        result.attributes["num_outputs"] = None  # it means equal parts
    return result


RULES: dict[type[Role], Callable[[Choice, Node], Cut]] = {
    Affine: _affine,
    Concat: _concat,
    Leaky: _leaky,
    Linear: linear,
    Map: _map,
    Move: _move,
    Normalize: _normalize,
    Product: _joined,
    Same: _joined,
    Split: _split,
    Sum: _joined,
}
