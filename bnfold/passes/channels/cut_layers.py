"""The weights and biases of linear layers that lose channels, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bnfold.fold.absorb.store import OutOfRange
from bnfold.fold.edits import AddBias, Edit, SetValue
from bnfold.fold.graph import Array, Constant, Node
from bnfold.fold.roles import Affine, Linear
from bnfold.onnx_graph.site import numpy_dtype
from bnfold.passes.channels.choose import Choice
from bnfold.passes.channels.groups import why_not_cut
from bnfold.passes.channels.matrices import sums
from bnfold.report.channels import MovedConstant

__all__ = ["Cut", "cut", "linear"]


@dataclass
class Cut:
    """What happens to one node: edits, and integer attributes (None: removed)."""

    edits: list[Edit] = field(default_factory=list)
    attributes: dict[str, int | list[int] | None] = field(default_factory=dict)
    multiplications: int | None = 0
    moved: tuple[MovedConstant, ...] = ()


def cut(array: Array, axis: int, rank: int, keep: Array) -> Array:
    """The entries to keep along an axis of a tensor of this rank, against which the array is broadcast."""
    own = axis - (rank - array.ndim)
    if own < 0 or array.shape[own] == 1:
        return array
    return np.ascontiguousarray(np.take(array, keep, own))


def linear(choice: Choice, node: Node) -> Cut:
    """The new weight and bias of a node of which inputs or outputs leave.

    Raises:
        OutOfRange: a bias would overflow its type, so the constants must not move into it.
    """
    role = node.role
    assert isinstance(role, Linear)
    x, y = node.at(role.x), node.outputs[0]
    inputs, outputs = choice.gone(x), choice.gone(y)
    if inputs is None and outputs is None:
        return Cut()
    weight = _weight(role, inputs, outputs)
    result = Cut([SetValue(node, role.weight_slot, weight, role.weight)])
    if role.groups > 1:
        assert outputs is not None
        result.attributes["group"] = role.groups - int(outputs.reshape(role.groups, -1)[:, 0].sum())
    keep, added = choice.keep(y), None
    if inputs is not None and role.groups == 1:
        values = np.where(inputs, choice.constants(x), 0.0)
        values = np.where(np.isnan(values), 0.0, values)  # nobody has a weight for these
        result.moved = tuple(MovedConstant(c, float(values[c])) for c in np.flatnonzero(values).tolist())
        if result.moved:
            added = sums(role)[0] @ values
            added = added if outputs is None else added[~outputs]
    result.edits += _bias(node, role, keep, added)
    uses = _uses(node, role)
    fewer = math.prod(role.weight.shape) - weight.size
    result.multiplications = None if uses is None else uses * fewer
    return result


def _weight(role: Linear, inputs: Array | None, outputs: Array | None) -> Array:
    whole: Array = role.weight.load().reshape(role.split)
    gone = [(role.w_out, outputs), (role.w_in, inputs)]
    if role.w_group is not None and role.groups > 1:
        assert outputs is not None
        gone = [(role.w_group, outputs.reshape(role.groups, -1)[:, 0])]
    for axis, entries in gone:
        if entries is not None:
            whole = np.compress(~entries, whole, axis)
    if role.w_group is not None:
        whole = whole.reshape(whole.shape[0] * whole.shape[1], *whole.shape[2:])
    return np.ascontiguousarray(whole)


def _bias(node: Node, role: Linear, keep: Array | None, added: Array | None) -> Iterator[Edit]:
    y = node.outputs[0]
    if role.bias is not None:
        assert role.bias_slot is not None
        axis, rank = (0, 1) if len(role.bias.shape) == 1 else (role.out_axis, y.rank)
        more = None if added is None else added / role.beta
        yield from _new_value(node, (node, role.bias_slot, role.bias), axis, rank, keep, more)
    elif added is not None:
        behind = _shift_behind(node, role) if role.costs else None
        if behind is not None:
            yield from _new_value(node, behind, role.out_axis, y.rank, keep, added)
            return
        new = _stored(node, added, role.weight.dtype)
        if role.w_group is None and role.out_axis < y.rank - 1:  # a bias along rows
            new = new.reshape((-1,) + (1,) * (y.rank - 1 - role.out_axis))
        yield AddBias(node, new)
    elif keep is not None and role.bias_unread:
        yield AddBias(node, np.zeros((1,), numpy_dtype(role.weight.dtype)))


def _shift_behind(node: Node, role: Linear) -> tuple[Node, int, Constant] | None:
    """The Add that alone reads a MatMul and whose constant is its bias: the node, the slot, the constant."""
    y = node.outputs[0]
    if len(y.readers) != 1 or y.fixed:
        return None
    reader = y.readers[0][0]
    if not isinstance(reader.role, Affine) or reader.op != "Add":
        return None
    slot, constant = reader.role.constants["value"]
    own = role.out_axis - (y.rank - len(constant.shape))
    fits = own >= 0 and constant.shape[own] == role.split[role.w_out]
    return (reader, slot, constant) if fits and not why_not_cut(constant) else None


def _new_value(
    node: Node, of: tuple[Node, int, Constant], axis: int, rank: int, keep: Array | None, added: Array | None
) -> Iterator[Edit]:
    """The stored bias `of` a node: cut along an axis of a tensor of that rank, with what moves into it."""
    owner, slot, constant = of
    old = constant.load()
    new = old if keep is None else cut(old, axis, rank, keep)
    if added is not None:
        whole = new.astype(np.float64) + added.reshape((-1,) + (1,) * (rank - 1 - axis))
        new = _stored(node, whole, constant.dtype)
    if new is not old:
        yield SetValue(owner, slot, new, constant)


def _stored(node: Node, value: Array, dtype: str) -> Array:
    kind = numpy_dtype(dtype)
    with np.errstate(over="ignore"):
        result = np.asarray(value, np.float64).astype(kind)
    if not np.isfinite(result.astype(np.float64)).all():
        raise OutOfRange(node, f"its bias would overflow {dtype}")
    return result


def _uses(node: Node, role: Linear) -> int | None:
    """How often the whole weight is used for one entry of the batch (axis 0); None if that is not known."""
    spread = node.op == "ConvTranspose"
    tensor, axis = (node.at(role.x), role.in_axis) if spread else (node.outputs[0], role.out_axis)
    sizes = [size for i, size in enumerate(tensor.shape or ()) if i not in (0, axis)]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
