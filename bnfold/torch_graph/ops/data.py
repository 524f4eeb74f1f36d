"""Rows for the operators without parameters: activations, pooling, and what rearranges data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bnfold.fold import moves
from bnfold.fold.graph import Constant, Refused, Role
from bnfold.fold.roles import Clamp, Concat, Leaky, Map, Move, Pad, SoftmaxInput, Split
from bnfold.torch_graph.arrays import FLOATS
from bnfold.torch_graph.call import Call

__all__ = ["DATA", "RESHAPES"]

RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")


def _map(call: Call, sign: str = "positive") -> Role:
    return Map(sign, f"{call.op} does not pass a shift")


def _same(call: Call) -> Role:
    if call.node.meta["val"].dtype not in FLOATS:
        raise Refused("changes to a type that is no floating point one")
    return Move(moves.Identity())


def _dropout(call: Call) -> Role:
    if call["train"]:
        raise Refused("drops entries (training mode)")
    return _same(call)


def _leaky(call: Call) -> Role:
    return Leaky(np.full((1,) * len(call.x), float(call["negative_slope"])), key="negative_slope")


def _prelu(call: Call) -> Role:
    shape, slope = call.x, call.constant("weight")
    if slope is None or len(slope.shape) != 1:
        raise Refused("its slope is computed at run time")
    if slope.shape == (1,) and len(shape) > 1 and shape[1] != 1:
        return _map(call)  # one slope for all channels: it cannot be turned round for some
    wide = (1, slope.shape[0]) + (1,) * (len(shape) - 2) if len(shape) > 1 else (1,)
    return Leaky(slope.load().astype(np.float64).reshape(wide), _along_axis(slope, wide), call.slot("weight"))


def _along_axis(constant: Constant, wide: tuple[int, ...]) -> Constant:
    """Seen against the tensor; the writer gives the operator its own shape back."""
    return replace(constant, load=lambda: constant.load().reshape(wide), shape=wide)


def _clamp(call: Call) -> Role:
    keys = ("min", "max") if call.op == "clamp" else ("min_val", "max_val")
    low, high = call[keys[0]], call[keys[1]]
    return Clamp(-np.inf if low is None else float(low), np.inf if high is None else float(high), keys)


def _spatial(call: Call, count: int) -> tuple[int, ...]:
    rank = len(call.x)
    return tuple(range(rank - count, rank))


def _max_pool(call: Call, count: int) -> Role:
    several = isinstance(call.node.meta["val"], (tuple, list))
    if several and any(user.args[1] != 0 for user in call.node.users):
        raise Refused("its indices are used, and a scale can change which of two equals they name")
    return Map(flat=_spatial(call, count))


def _average_pool(call: Call, count: int) -> Role:
    padded = any(call.integers("padding", count)) if call["padding"] else False
    if call["divisor_override"] is not None:
        raise Refused("divides by a number of its own")
    counted = "its padding is counted, where a shift would not be seen"
    return Map("any", counted if padded and call["count_include_pad"] else "", _spatial(call, count))


def _windowed(call: Call, count: int) -> Role:
    return Map("any", "", _spatial(call, count))


def _reduce(call: Call, sign: str) -> Map:
    rank = len(call.x)
    given = [call["dim"]] if isinstance(call["dim"], int) else call["dim"] or range(rank)
    flat = tuple(sorted({axis % rank for axis in given}))
    return Map(sign, "", flat, squeezed=() if call["keepdim"] else flat)


def _sum(call: Call) -> Role:
    role = _reduce(call, "any")
    sizes = [call.x[axis] for axis in role.flat]
    known = [size for size in sizes if isinstance(size, int)]
    return replace(role, gain=float(np.prod(known)) if len(known) == len(sizes) else 0.0)


def _flip(call: Call) -> Role:
    rank, dims = len(call.x), call["dims"]
    axis = dims[0] % rank if len(dims) == 1 else None
    size = None if axis is None else call.x[axis]
    if axis is None or not isinstance(size, int):
        raise Refused("turns round more than one axis, or one of a size that is not known")
    return Move(moves.entries(axis, tuple(range(size))[::-1], size, rank))


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


def _pixel_shuffle(call: Call) -> Role:
    if len(call.x) != 4:
        raise Refused("its input is not of rank 4")
    return Move(moves.DepthToSpace(int(call["upscale_factor"]), depth_first=False))


def _channel_shuffle(call: Call) -> Role:
    size, groups = call.x[1], int(call["groups"])
    if not isinstance(size, int):
        raise Refused("shuffles a number of channels that is not known")
    order = tuple(int(i) for i in np.arange(size).reshape(groups, -1).T.reshape(-1))
    return Move(moves.Take(1, order, size))


def _pad(call: Call) -> Role:
    rank, edges = len(call.x), call["pad"] or call["padding"]
    axes = tuple(sorted({rank - 1 - i // 2 for i, edge in enumerate(edges) if edge != 0}))
    constant = call.op == "constant_pad_nd" or call["mode"] == "constant"
    return Pad(axes, float(call["value"] or 0) if constant else None, "value")


def _softmax(call: Call) -> Role:
    return SoftmaxInput(call["dim"] % len(call.x))


DATA: dict[str, Callable[[Call], Role]] = {
    "relu": _map,
    "abs": partial(_map, sign="absolute"),
    "leaky_relu": _leaky,
    "prelu": _prelu,
    **dict.fromkeys(("clamp", "hardtanh"), _clamp),
    **dict.fromkeys(
        ("clone", "contiguous", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy"), _same
    ),
    "dropout": _dropout,
    **{f"max_pool{n}d": partial(_max_pool, count=n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": partial(_max_pool, count=n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": partial(_average_pool, count=n) for n in (1, 2, 3)},
    **{f"{p}adaptive_avg_pool{n}d": partial(_windowed, count=n) for n in (1, 2, 3) for p in ("", "_")},
    **{f"upsample_nearest{n}d": partial(_windowed, count=n) for n in (1, 2, 3)},
    "upsample_bilinear2d": partial(_windowed, count=2),
    "mean": partial(_reduce, sign="any"),
    "sum": _sum,
    "flip": _flip,
    **{f"adaptive_max_pool{n}d": partial(_max_pool, count=n) for n in (1, 2, 3)},
    **dict.fromkeys(("amax", "amin"), partial(_reduce, sign="positive")),
    **dict.fromkeys(RESHAPES, _reshape),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "cat": _cat,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"{kind}_pad{n}d": _pad for kind in ("reflection", "replication") for n in (1, 2, 3)},
    "pixel_shuffle": _pixel_shuffle,
    "channel_shuffle": _channel_shuffle,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
