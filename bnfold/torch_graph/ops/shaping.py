"""Rows for what rearranges, joins, takes or repeats entries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import fx

from bnfold.fold import moves
from bnfold.fold.graph import Refused, Role
from bnfold.fold.roles import Concat, Map, Move, Pad, Same, Split
from bnfold.torch_graph.call import Call

__all__ = ["RESHAPES", "SHAPING"]

RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
LARGEST = 1 << 16  # entries of an axis that are looked at one by one


def _entries(axis: int, order: Callable[[int], Any], shape: Any) -> moves.Take:
    """Entries of an axis, which `order` names for its size; unknown ones where there are too many."""
    size = shape[axis]
    if not isinstance(size, int) or size > LARGEST:
        return moves.Take(axis, None, None)
    return moves.entries(axis, tuple(order(size)), size, len(shape))


def _chain(steps: list[Any]) -> Role:
    return Move(steps[0] if len(steps) == 1 else moves.Chain(tuple(steps)))


def _flip(call: Call) -> Role:
    shape = call.x
    axes = [axis % len(shape) for axis in call["dims"]]
    return _chain([_entries(axis, lambda size: range(size)[::-1], shape) for axis in axes])


def _roll(call: Call) -> Role:
    shape, shifts, dims = call.x, call["shifts"], call["dims"] or []
    if len(dims) != len(shifts) or not dims:
        raise Refused("turns the whole tensor round, across its axes")
    if not all(isinstance(shift, int) for shift in shifts):
        raise Refused("turns by a number of places that is computed at run time")
    return _chain(
        [
            _entries(axis % len(shape), partial(_turned, shift), shape)
            for axis, shift in zip(dims, shifts, strict=True)
        ]
    )


def _turned(shift: int, size: int) -> list[int]:
    return [(place - shift) % size for place in range(size)]


def _reshape(call: Call) -> Role:
    return Move(moves.Reshape.between(call.x, call.out))


def _permute(call: Call) -> Role:
    rank = len(call.x)
    return Move(moves.Transpose(tuple(axis % rank for axis in call["dims"])))


def _transpose(call: Call) -> Role:
    order = list(range(len(call.x)))
    a, b = (0, 1) if call.op == "t" else (call["dim0"], call["dim1"])
    order[a], order[b] = order[b], order[a]
    return Move(moves.Transpose(tuple(order)))


def _expand(call: Call) -> Role:
    shape, goal = call.x, call.out
    lead = len(goal) - len(shape)
    axes = tuple(lead + i for i, size in enumerate(shape) if size == 1 and goal[lead + i] != 1)
    return Move(moves.Stretch(axes, lead))


def _slice(call: Call) -> Role:
    shape = call.x
    axis = call["dim"] % len(shape)
    start, stop, step = call["start"], call["end"], call["step"]
    size = shape[axis]
    if step == 1 and size is not None and size == call.out[axis]:
        return Move(moves.Identity())
    if not isinstance(size, int) or not all(b is None or isinstance(b, int) for b in (start, stop, step)):
        raise Refused("takes entries that are not known")
    return Move(moves.entries(axis, tuple(range(size)[slice(start, stop, step)]), size, len(shape)))


def _select(call: Call) -> Role:
    shape = call.x
    axis, size = call["dim"] % len(shape), shape[call["dim"]]
    if not isinstance(size, int) or not isinstance(call["index"], int):
        raise Refused("takes an entry that is not known")
    return Move(moves.entries(axis, (call["index"] % size,), size, len(shape), scalar=True))


def _split(call: Call) -> Role:
    axis = call["dim"] % len(call.x)
    sizes = tuple(value.shape[axis] for value in call.node.meta["val"])
    if not all(isinstance(size, int) for size in sizes):
        raise Refused("the sizes of its parts are not known")
    return Split(axis, sizes)


def _cat(call: Call) -> Role:
    rank = len(call.out)
    axis = call["dim"] % rank
    sizes = [node.meta["val"].shape[axis] for node in call["tensors"]]
    if any(node.meta["val"].dim() != rank for node in call["tensors"]):
        raise Refused("joins tensors of different ranks")
    return Concat(axis, tuple(size if isinstance(size, int) else None for size in sizes))


def _pixel_shuffle(kind: type[moves.DepthToSpace], factor: str, call: Call) -> Role:
    if len(call.x) != 4:
        raise Refused("its input is not of rank 4")
    return Move(kind(int(call[factor]), depth_first=False))


def _channel_shuffle(call: Call) -> Role:
    size, groups = call.x[1], int(call["groups"])
    if not isinstance(size, int):
        raise Refused("shuffles a number of channels that is not known")
    order = tuple(int(i) for i in np.arange(size).reshape(groups, -1).T.reshape(-1))
    return Move(moves.Take(1, order, size))


def _stack(call: Call) -> Role:
    return Concat(call["dim"] % len(call.out), (1,) * len(call["tensors"]), adds=True)


def _unbind(call: Call) -> Role:
    return Split(call["dim"] % len(call.x), (1,) * len(call.node.meta["val"]), drops=True)


def _repeat(call: Call) -> Role:
    times = call["repeats"] if call.op == "repeat" else call["dims"]
    lead = len(call.out) - len(call.x)
    times = [1] * (len(call.out) - len(times)) + list(times)
    if not all(isinstance(count, int) and count > 0 for count in times):
        raise Refused("repeats a number of times that is computed at run time")
    new = [moves.AddAxes(tuple(range(lead)))] if lead else []
    return _chain([*new, moves.Tiles(tuple(times))])


def _index_select(call: Call) -> Role:
    return Move(_taken(call, call["dim"] % len(call.x), call["index"]))


def _index(call: Call) -> Role:
    """By one list of numbers, as in `x[:, [0, 2]]`."""
    lists = [(axis, index) for axis, index in enumerate(call["indices"]) if index is not None]
    if len(lists) != 1 or len(lists[0][1].meta["val"].shape) != 1:
        raise Refused("takes entries by more than a list of numbers")
    return Move(_taken(call, *lists[0]))


def _taken(call: Call, axis: int, index: fx.Node) -> moves.Take:
    """The entries that a list of numbers names; any, where it is computed at run time."""
    shape, constant = call.x, call.known(index)
    size = shape[axis]
    if constant is None or constant.dtype == "bool" or not isinstance(size, int) or size > LARGEST:
        return moves.Take(axis, None, None)
    places = tuple(int(place) % size for place in constant.load().reshape(-1))
    return moves.entries(axis, places, size, len(shape))


def _embedding(call: Call) -> Role:
    """Rows of a table, whichever: what is the same for all rows passes."""
    rank = len(call.tensor("indices"))
    lookup = moves.Take(0, None, None, scalar=True), moves.Stretch(tuple(range(rank)), lead=rank)
    return Move(moves.Chain(lookup))


def _triangle(call: Call) -> Role:
    rank = len(call.x)
    return Map("any", "sets a triangle to zero, where a shift would not be seen", flat=(rank - 2, rank - 1))


def _pad(call: Call) -> Role:
    rank, edges = len(call.x), call["pad"] or call["padding"]
    axes = tuple(sorted({rank - 1 - i // 2 for i, edge in enumerate(edges) if edge != 0}))
    constant = call.op == "constant_pad_nd" or call["mode"] == "constant"
    return Pad(axes, float(call["value"] or 0) if constant else None, "value")


def _replaced(call: Call) -> Role:
    """`masked_fill`: some entries become a number."""
    return _filled(call, "self", "value")


def _where(call: Call) -> Role:
    """Of two tensors all share one change; a number beside a tensor is a filling."""
    for x, value in (("self", "other"), ("other", "self")):
        if isinstance(call[x], fx.Node) and call.constant(x) is None and call.fill(value) is not None:
            return _filled(call, x, value)
    if not (isinstance(call["self"], fx.Node) and isinstance(call["other"], fx.Node)):
        raise Refused("chooses between a number and what is stored")
    return Same((call.slot("self"), call.slot("other")), sign="any")


def _filled(call: Call, x: str, value: str) -> Role:
    fill, slot = call.fill(value), call.slot(x)
    if fill is None or call.tensor(x) != call.out or np.isnan(fill):
        raise Refused("fills in what is computed at run time, or makes its tensor larger")
    if np.isinf(fill):  # stays what it is under any p > 0 and q
        return Map("positive", x=slot)
    return Pad((), fill, call.slot(value) if isinstance(call[value], fx.Node) else value, x=slot)


SHAPING: dict[str, Callable[[Call], Role]] = {
    **dict.fromkeys(RESHAPES, _reshape),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "expand": _expand,
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "flip": _flip,
    "roll": _roll,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "embedding": _embedding,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("tril", "triu"), _triangle),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "masked_fill": _replaced,
    "where": _where,
    "pixel_shuffle": partial(_pixel_shuffle, moves.DepthToSpace, "upscale_factor"),
    "pixel_unshuffle": partial(_pixel_shuffle, moves.SpaceToDepth, "downscale_factor"),
    "channel_shuffle": _channel_shuffle,
}
