"""The weights and biases of linear layers that lose channels, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from bnfold.fold.edits import AddBias, Edit, SetValue
from bnfold.fold.graph import Array, Node
from bnfold.fold.roles import Affine, Linear
from bnfold.onnx_graph.model.site import numpy_dtype
from bnfold.passes.channels.choose import Choice
from bnfold.passes.channels.matrices import sums
from bnfold.passes.channels.stored import cut, why_not
from bnfold.report.channels import MovedConstant

__all__ = ["Cut", "TooLarge", "linear"]


class TooLarge(Exception):
    """A bias would overflow its type: the constants that move into it must stay where they are."""

    def __init__(self, node: Node, channels: Array, dtype: str) -> None:
        super().__init__(node.name)
        self.node, self.channels = node, channels
        self.text = f"its bias would overflow {dtype}"


@dataclass
class Cut:
    """What happens to one node: edits, and integer attributes (None: removed)."""

    edits: list[Edit] = field(default_factory=list)
    attributes: dict[str, int | list[int] | None] = field(default_factory=dict)
    multiplications: int | None = 0
    moved: tuple[MovedConstant, ...] = ()


def linear(choice: Choice, node: Node) -> Cut:
    """The new weight and bias of a node of which inputs or outputs leave."""
    role = node.role
    assert isinstance(role, Linear)
    x, y = node.inputs[role.x], node.outputs[0]
    inputs, outputs = choice.gone(x), choice.gone(y)
    if inputs is None and outputs is None:
        return Cut()
    result = Cut()
    weight = _weight(role, inputs, outputs)
    result.edits.append(SetValue(node, role.weight_slot, weight, role.weight))
    if role.groups > 1:
        assert outputs is not None
        result.attributes["group"] = role.groups - int(outputs.reshape(role.groups, -1)[:, 0].sum())
    keep = None if outputs is None else np.flatnonzero(~outputs)
    added = None
    if inputs is not None and x is not None and role.groups == 1:
        values = np.where(inputs, choice.constants(x), 0.0)
        values = np.where(np.isnan(values), 0.0, values)  # nobody has a weight for these
        result.moved = tuple(MovedConstant(c, float(values[c])) for c in np.flatnonzero(values).tolist())
        if result.moved:
            added = sums(role)[0] @ values
            added = added if keep is None else added[keep]
    result.edits += _bias(node, role, keep, added, inputs)
    places = _places(node, role)
    fewer = math.prod(role.weight.shape) - weight.size
    result.multiplications = None if places is None else places * fewer
    return result


def _weight(role: Linear, inputs: Array | None, outputs: Array | None) -> Array:
    whole = role.weight.load().reshape(role.split)
    if role.w_group is not None and role.groups > 1:
        assert outputs is not None
        kept = np.flatnonzero(~outputs.reshape(role.groups, -1)[:, 0])
        whole = np.take(whole, kept, role.w_group)
    else:
        for axis, gone in ((role.w_out, outputs), (role.w_in, inputs)):
            if gone is not None:
                whole = np.take(whole, np.flatnonzero(~gone), axis)
    if role.w_group is not None:
        shape: list[int] = list(whole.shape)
        whole = whole.reshape([shape[0] * shape[1], *shape[2:]])
    return np.ascontiguousarray(whole)


def _bias(
    node: Node, role: Linear, keep: Array | None, added: Array | None, inputs: Array | None
) -> Iterator[Edit]:
    y = node.outputs[0]
    if role.bias is not None:
        assert role.bias_slot is not None
        old = role.bias.load()
        axis, rank = (0, 1) if old.ndim == 1 else (role.out_axis, y.rank)
        new = old if keep is None else cut(old, axis, rank, keep)
        if added is not None:
            shape = [-1 if i == role.out_axis else 1 for i in range(y.rank)] if old.ndim > 1 else [-1]
            more = added.reshape(shape) / role.beta
            new = _stored(node, new.astype(np.float64) + more, role.bias.dtype, inputs)
        if new is not old:
            yield SetValue(node, role.bias_slot, new, role.bias)
    elif added is not None:
        behind = _shift_behind(node, role) if role.costs else None
        if behind is not None:
            yield from _into_shift(node, behind, keep, added, inputs)
            return
        new = _stored(node, added, role.weight.dtype, inputs)
        if role.w_group is None and role.out_axis < y.rank - 1:  # a bias along rows
            new = new.reshape((-1,) + (1,) * (y.rank - 1 - role.out_axis))
        yield AddBias(node, new)
    elif keep is not None and node.op == "Gemm" and node.source.has(2):  # times 0, but its shape must fit
        yield AddBias(node, np.zeros((1,), numpy_dtype(role.weight.dtype)))


def _shift_behind(node: Node, role: Linear) -> Node | None:
    """The Add of a constant along the outputs that alone reads a MatMul, whose bias it is."""
    y = node.outputs[0]
    if len(y.readers) != 1 or y.fixed:
        return None
    reader = y.readers[0][0]
    if not isinstance(reader.role, Affine) or reader.op != "Add":
        return None
    _, constant = reader.role.constants["value"]
    if why_not(constant):
        return None
    place = role.out_axis - (y.rank - len(constant.shape))
    return reader if place >= 0 and constant.shape[place] == role.split[role.w_out] else None


def _into_shift(
    node: Node, behind: Node, keep: Array | None, added: Array, inputs: Array | None
) -> Iterator[Edit]:
    """Into the constant of the Add behind a MatMul."""
    role, y = node.role, node.outputs[0]
    assert isinstance(role, Linear)
    assert isinstance(behind.role, Affine)
    slot, constant = behind.role.constants["value"]
    old = constant.load()
    new = old if keep is None else cut(old, role.out_axis, y.rank, keep)
    shape = [1] * old.ndim
    shape[role.out_axis - (y.rank - old.ndim)] = -1
    value = new.astype(np.float64) + added.reshape(shape)
    yield SetValue(behind, slot, _stored(node, value, constant.dtype, inputs), constant)


def _stored(node: Node, value: Array, dtype: str, inputs: Array | None) -> Array:
    kind = numpy_dtype(dtype)
    with np.errstate(over="ignore"):
        result = np.asarray(value, np.float64).astype(kind)
    if not np.isfinite(result.astype(np.float64)).all():
        assert inputs is not None
        raise TooLarge(node, inputs, dtype)
    return result


def _places(node: Node, role: Linear) -> int | None:
    """How often the whole weight is used for one entry of the batch (axis 0); None if that is not known."""
    spread = node.op == "ConvTranspose"
    tensor, axis = (node.at(role.x), role.in_axis) if spread else (node.outputs[0], role.out_axis)
    sizes = [size for i, size in enumerate(tensor.shape or ()) if i not in (0, axis)]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None
