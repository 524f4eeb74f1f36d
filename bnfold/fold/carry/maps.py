"""Rules of elementwise maps, windows and reductions: what passes, and under which condition."""

from __future__ import annotations

import numpy as np

from bnfold.fold import moves
from bnfold.fold.carry.common import data_slot, flat, other_side, positive, uniform
from bnfold.fold.carry.spread import Spread, same
from bnfold.fold.graph import Array, Node, Refused
from bnfold.fold.roles import Clamp, Leaky, Map, Pad


def map_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Map = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    if slot < 0 and role.squeezed:
        f = np.expand_dims(f, role.squeezed)
    if role.uniform:
        f = uniform(spread, node, f)
    f = flat(spread, node, f, role.flat)
    if role.sign == "absolute":
        spread.plain(node)
        if slot < 0:
            positive(spread, node, f)
        f = np.abs(f)
    elif role.sign == "positive":
        whole = f * spread.state.p.get(node.at(role.x), 1.0)
        if role.flip and not spread.zeros and bool((whole < 0).all()):
            spread.absorb(node)
        else:
            positive(spread, node, whole if role.flip else f)
    if role.power != 1:
        f = f ** (role.power if slot >= 0 else 1 / role.power)
    if slot >= 0 and role.squeezed:
        f = f.squeeze(role.squeezed)
    if slot < 0 and role.sign == "absolute":
        known = spread.values.get(node.at(role.x))
        if known is not None and same(np.abs(known), f, "scale"):
            return  # whatever its signs are
    spread.want(other_side(node, slot, role.x), f, node)


def map_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Map = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    if role.shift or role.gain == 0:
        raise spread.fail(node, role.shift or "adds up a number of entries that is not known")
    if slot < 0 and role.squeezed:
        d = np.expand_dims(d, role.squeezed)
    if role.uniform:
        d = uniform(spread, node, d)
    d = flat(spread, node, d, role.flat)
    if role.centred:
        if slot < 0:
            raise spread.fail(node, "takes the mean off, so that its output cannot be shifted")
        spread.absorb(node)
        return
    if role.gain != 1:
        d = d * role.gain if slot >= 0 else d / role.gain
    if slot >= 0 and role.squeezed:
        d = d.squeeze(role.squeezed)
    spread.want(other_side(node, slot, role.x), d, node)


def leaky_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    """In: p -> p if positive, else p/slope (the halves swap); out: the inverse. Factors are relative."""
    role: Leaky = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    x, y = node.at(0), node.outputs[0]
    if bool((f > 0).all()):
        spread.want(other_side(node, slot), f, node)
        return
    spread.plain(node)
    if role.constant is not None and role.constant.locked:
        raise spread.fail(node, f"its slope {role.constant.locked}")
    slope = (
        role.slope
        if role.constant is not None or isinstance(role.key, int)
        else uniform(spread, node, role.slope)
    )
    if role.constant is None:
        f = np.broadcast_to(f, f.shape)
        if not (bool((f < 0).all()) or bool((f > 0).all())):
            raise spread.fail(node, "has one slope for all channels, and a negative scale on some")
    if not np.all(slope > 0):
        raise spread.fail(node, "a slope that is not positive does not pass a negative scale")
    p = spread.state.p.get(x, np.ones(()))
    spread.absorb(node)
    before = np.where(p > 0, 1.0, 1.0 / slope)
    after = np.where(p * f > 0, 1.0, 1.0 / slope)
    gain = after / before if slot >= 0 else before / after
    spread.want(y if slot >= 0 else x, f * gain, node)


def leaky_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    raise spread.fail(node, f"{node.op} does not pass a shift")


def _is_relu(role: Clamp) -> bool:
    return role.low in (0, -np.inf) and role.high in (0, np.inf)


def clamp_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Clamp = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot)
    if _is_relu(role) and node.at(0) not in spread.state.q:
        positive(spread, node, f)
    else:
        spread.plain(node)
        f = uniform(spread, node, f)
        spread.absorb(node)
    spread.want(other_side(node, slot), f, node)


def clamp_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    data_slot(spread, node, slot)
    spread.plain(node)
    x = node.at(0)
    uniform(spread, node, np.asarray(spread.scale_of(x), np.float64).reshape((1,) * x.rank + (-1,)))
    d = uniform(spread, node, d)
    spread.absorb(node)
    spread.want(other_side(node, slot), d, node)


def pad_scale(spread: Spread, node: Node, slot: int, f: Array) -> None:
    role: Pad = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    f = flat(spread, node, f, role.axes)
    if role.fill or (role.fill is not None and node.at(role.x) in spread.state.q):
        spread.plain(node)
        f = uniform(spread, node, f)
        spread.absorb(node)
    spread.want(other_side(node, slot, role.x), f, node)


def pad_shift(spread: Spread, node: Node, slot: int, d: Array) -> None:
    role: Pad = node.role  # type: ignore[assignment]
    data_slot(spread, node, slot, role.x)
    d = flat(spread, node, d, role.axes)
    if role.fill is not None:
        spread.plain(node)
        if d.size > 1:
            try:
                d = moves.flatten(d, tuple(range(d.ndim)))
            except Refused:
                why = "its padding is one value, and the shift differs from channel to channel"
                raise spread.fail(node, why, "pad by reflection, or after the batch norm") from None
        spread.absorb(node)
    spread.want(other_side(node, slot, role.x), d, node)
