"""Rules of roles that absorb: closed ones, affine nodes that stay, linear and recurrent layers, norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.fold.affine import along, at_axis, line, varying
from bnfold.fold.carry import equation
from bnfold.fold.carry.common import data_slot, flat, other_side, positive, uniform
from bnfold.fold.carry.spread import Spread
from bnfold.fold.graph import Array, Node
from bnfold.fold.roles import Affine, Closed, Gate, Linear, Normalize, Recurrent, Sampled, SoftmaxInput

QUANTIZED = "fold the float model, and quantize what comes out"


def closed(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role = node.role
    if isinstance(role, Closed):
        raise spread.fail(node, role.reason, role.cure)
    raise spread.fail(node, f"{node.op} is closed")


def affine_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Affine = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    closed = _why_not_in(role, f)
    if role.kind == "scale" and closed:  # a product passes on what its constant cannot take
        spread.want(other_side(node, slot, role.x), f, node)
        return
    if closed:
        raise spread.fail(node, closed)
    if role.kind == "shift":
        if spread.zeros == "decode":
            raise spread.fail(node, "its constant cannot be divided by a zero scale")
        spread.want(other_side(node, slot, role.x), f, node)
        return
    if role.form == "x/c":
        spread.plain(node)
    _takes(spread, node, role, slot, f)


def affine_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Affine = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    closed = "" if role.kind == "scale" else _why_not_in(role, d)
    if role.kind == "norm" and closed:
        raise spread.fail(node, closed)
    if role.kind != "scale" and not closed:
        _takes(spread, node, role, slot, np.asarray(spread.scale_of(node.at(role.x))))
        return
    x, y = node.at(role.x), node.outputs[0]
    gain: Any = role.scale
    if not spread.zeros:
        gain = spread.scale_of(y) * role.scale / spread.scale_of(x)
    elif spread.zeros == "encode":
        spread.plain(node)
    if slot >= 0:
        spread.want(y, gain * d, node)
        return
    if spread.zeros or not np.all(gain):
        raise spread.fail(node, "a zero scale cannot take a shift back")
    spread.want(x, d / gain, node)


def _takes(spread: Spread, node: Node, role: Affine, slot: int, p: Array) -> None:
    """The node absorbs, on either side. p: what its input is scaled by, if it is that."""
    if slot < 0:
        spread.encode(node)
    elif role.kind == "norm" and spread.zeros == "encode" and not (role.scale * (p == 0)).any():
        spread.absorb(node)  # what is lost it multiplies by zero
    else:
        spread.decode(node)


def _why_not_in(role: Affine, f: Array) -> str:
    """Why the constants of an affine node cannot take a change of this layout ("" if they can).

    A batch norm has one number per channel; a constant operand may grow, within bounds, unless it is rigid.
    """
    for _, constant in role.constants.values():
        if constant.locked:
            return f"its constant {constant.locked}"
    if role.kind == "norm":
        channel = 1 if f.ndim > 1 else 0
        if f.size == f.shape[channel]:
            return ""
        return f"has one number per channel (axis {channel}), the change varies along {varying(f)}"
    constant = role.constants["value"][1]
    own = ((1,) * f.ndim + constant.shape)[-f.ndim :] if f.ndim else ()
    if all(size in (1, here) for size, here in zip(f.shape, own, strict=True)):
        return ""
    size = math.prod(map(max, f.shape, own))
    if constant.rigid or size > equation.LARGEST:
        return f"its constant of shape {list(constant.shape)} cannot take a change of shape {list(f.shape)}"
    return ""


def linear_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Linear = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    axis = role.in_axis if slot >= 0 else role.out_axis
    vary = varying(f) if f.size != f.shape[axis] else []
    if vary and vary != [axis]:
        free = dict(role.free) if slot >= 0 else {y: x for x, y in role.free}
        if axis in vary or not set(vary) <= set(free) or role.bias is not None or role.bias_blocks_scale:
            raise spread.fail(node, f"needs a change along its channel axis {axis}, not along {vary}")
        goal_tensor = other_side(node, slot, role.x)
        if node.at(role.x) in spread.state.q or node.outputs[0] in spread.state.q:
            raise spread.fail(node, "passes a change along its free axes only where there is no shift")
        spread.plain(node)
        shape = [1] * goal_tensor.rank
        for source, goal in free.items():
            shape[goal] = f.shape[source]
        spread.want(goal_tensor, f.reshape(shape), node)
        return
    if slot < 0 and role.bias_blocks_scale:
        reason = role.bias_open or "its bias is not constant, so that its output cannot be scaled"
        raise spread.fail(node, reason, role.bias_cure)
    if slot < 0 and role.bias is not None and role.bias.locked:
        raise spread.fail(node, f"its bias {role.bias.locked}")
    if role.weight.locked:
        raise spread.fail(node, f"its weight {role.weight.locked}")
    if role.weight.quantized is not None:
        _quantized(spread, node, role, slot, f)
    (spread.decode if slot >= 0 else spread.encode)(node)


def _quantized(spread: Spread, node: Node, role: Linear, slot: int, f: Array) -> None:
    """Integers behind a scale take a factor along the scale's own axis only (or one number); where there is
    one scale for all, along one axis, whichever comes first.
    """
    axes = role.weight.quantized or ()
    turn = 1 if slot >= 0 else -1
    stored, other = (role.stored(axis) for axis in (role.w_in, role.w_out)[::turn])
    if spread.zeros:
        raise spread.fail(node, "its weight is quantized, and takes no scale of zero")
    if not axes:
        raise spread.fail(node, "its weight is quantized, and its scale takes no factor", QUANTIZED)
    if f.size > 1 and stored not in axes:
        sides = ("input", "output")[::turn]
        along = f"along its {sides[1]} channels (axis {other})" if other in axes else f"along axis {axes[0]}"
        reason = f"its weight is quantized, and its scale runs {along}, not along its {sides[0]} channels"
        raise spread.fail(node, reason, QUANTIZED)
    ends = (node.at(role.x), role.in_axis), (node.outputs[0], role.out_axis)
    if len(axes) > 1 and all(_differs(line(spread.scale_of(end), axis)) for end, axis in ends):
        raise spread.fail(node, "its weight is quantized, and its scale runs along its other channels by now")


def _differs(p: Any) -> bool:
    """Factors (NaN: not known yet) are not all the same."""
    known = np.asarray(p)[~np.isnan(p)]
    return bool((known != known[:1]).any())


def linear_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Linear = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    axis = role.in_axis if slot >= 0 else role.out_axis
    if slot >= 0 and role.padded:
        raise spread.fail(node, role.padded, role.padded_cure)
    vary = varying(d) if d.size != d.shape[axis] else []
    if vary and vary != [axis]:
        raise spread.fail(node, f"can only take a shift along its channel axis {axis}, not along {vary}")
    if role.bias_open or (role.bias is not None and role.bias.locked):
        reason = role.bias_open or f"its bias {role.bias.locked if role.bias else ''}"
        raise spread.fail(node, reason, role.bias_cure)

    if role.bias is not None or role.costs == 0:
        (spread.decode if slot >= 0 else spread.encode)(node)
        return

    def passed() -> Array:
        x, y = node.at(role.x), node.outputs[0]
        # what passes along free axes, and takes itself off, is left out
        u, p = 1.0 / line(spread.scale_of(x), role.in_axis), line(spread.scale_of(y), role.out_axis)
        through = equation.through_weight(role, d * u, x.rank)
        came: Array = at_axis(through, role.out_axis, y.rank) * p
        return came

    without_bias(spread, node, slot, "", passed)


def without_bias(spread: Spread, node: Node, slot: int, closed: str, passed: Callable[[], Array]) -> None:
    """A shift of a product that has no place for a bias: what it reads comes out as a shift, or an addition
    behind it takes it, one for each fold.

    closed: why there can be none ("" if there can). passed: what y's shift would be.
    """
    bias = spread.decode if slot >= 0 else spread.encode
    if node in spread.state.new_biases or node in spread.new_biases:
        bias(node)
        return

    def new_bias(_: Array | None) -> None:
        if closed:
            raise spread.fail(node, closed)
        if spread.new_biases or spread.target.role.kind == "shift":  # type: ignore[attr-defined]
            raise spread.fail(node, "has no bias, and would need an Add of its own to take the shift")
        spread.new_biases.add(node)
        bias(node)

    def onwards(_: Array | None) -> None:
        spread.plain(node)
        through = passed()
        spread.absorb(node)
        spread.carriers.add(node)
        spread.want(node.outputs[0], through, node)

    if slot < 0 and node in spread.carriers:
        return
    spread.later(node, lambda: [onwards, new_bias] if slot >= 0 else [new_bias])


def recurrent(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Recurrent = node.role  # type: ignore[assignment]
    if slot != role.x:
        raise spread.fail(node, f"the output of {node.op} is closed")
    for weight, _, bias, bias_slot in role.directions:
        locked = weight.locked or ("is quantized" if weight.quantized is not None else "")
        if locked:
            raise spread.fail(node, f"its weight {locked}")
        if spread.kind == "shift" and (bias_slot is None or (bias is not None and bias.locked)):
            raise spread.fail(node, "has no bias" if bias is None else f"its bias {bias.locked}")
    if varying(f) not in ([], [role.axis]):
        raise spread.fail(node, f"needs a change along its input axis {role.axis}")
    spread.decode(node)


def sampled(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Sampled = node.role  # type: ignore[assignment]
    if slot >= 0:
        raise spread.fail(node, f"what {node.op} reads is closed")
    closed = "is quantized" if role.weight.quantized is not None else role.weight.locked
    if closed and spread.kind == "scale":
        raise spread.fail(node, f"its weight {closed}")
    closed = role.bias_open or (f"its bias {role.bias.locked}" if role.bias and role.bias.locked else "")
    if closed:
        raise spread.fail(node, closed)
    if varying(f) not in ([], [1]):
        raise spread.fail(node, f"needs a change along its channel axis 1, not along {varying(f)}")
    spread.encode(node)


def gate(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Gate = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    spread.plain(node)
    closed = role.beta is not None
    if (closed and slot < 0) or (not closed and spread.kind == "shift"):
        raise spread.fail(node, f"{node.op} does not pass a {spread.kind}")
    f = uniform(spread, node, f)
    spread.decode(node)
    if not closed:
        positive(spread, node, f)
        spread.want(other_side(node, slot), f, node)


def normalize_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Normalize = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    if slot >= 0:
        spread.plain(node)
        f = uniform(spread, node, f)
        positive(spread, node, f)
        spread.decode(node)
        return
    _own(spread, node, role, role.scale, f)
    if role.bias is not None and role.bias.locked:
        raise spread.fail(node, f"its bias {role.bias.locked}")
    spread.encode(node)


def normalize_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Normalize = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    if slot >= 0:
        if not role.removes_mean:
            raise spread.fail(node, f"{node.op} does not remove the mean")
        flat(spread, node, d, role.over)
        spread.decode(node)
        return
    if role.bias_slot is None:
        raise spread.fail(node, "has no bias to take the shift")
    _own(spread, node, role, role.bias if role.bias is not None else role.scale, d)
    spread.encode(node)


def _own(spread: Spread, node: Node, role: Normalize, constant: Any, f: Array) -> None:
    if constant is None or constant.locked:
        raise spread.fail(
            node, "its own scale and bias are not constant" if constant is None else constant.locked
        )
    if not set(varying(f)) <= set(role.axes):
        raise spread.fail(
            node, f"its own scale runs along axes {list(role.axes)}, the change along {varying(f)}"
        )
    if role.groups and f.size > 1:
        rows = along(f, role.axes[0]).reshape(role.groups, -1)
        if not (rows == rows[:, :1]).all():
            raise spread.fail(node, "has one scale per group, and the change differs within a group")


def softmax_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: SoftmaxInput = node.role  # type: ignore[assignment]
    if slot < 0:
        raise spread.fail(node, f"the output of {node.op} is closed")
    flat(spread, node, d, (role.axis,))
    spread.decode(node)
