"""How channels pass through layers with parameters, activations, pools and reductions."""

from __future__ import annotations

import numpy as np

from bnfold.fold.graph import Array, Node, Role
from bnfold.fold.roles import Affine, Clamp, Gate, Leaky, Linear, Map, Normalize, Pad, SoftmaxInput
from bnfold.passes.channels.classes import Reason
from bnfold.passes.channels.groups import Groups, Rule
from bnfold.passes.channels.matrices import is_matrix

__all__ = ["LAYERS", "same"]


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
        sets = groups.classes.new(count)
        name = "" if x_tensor is None else x_tensor.name
        reason = Reason(f"reads {name}, whose channels stay, group by group", node.name)
        groups.classes.lock(sets.tolist(), reason)
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


def same(groups: Groups, node: Node) -> None:
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
    same(groups, node)


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
    same(groups, node)


LAYERS: dict[type[Role], Rule] = {
    Affine: _affine,
    Clamp: same,
    Gate: same,
    Leaky: _leaky,
    Linear: _linear,
    Map: _map,
    Normalize: _normalize,
    Pad: _pad,
    SoftmaxInput: _softmax,
}
