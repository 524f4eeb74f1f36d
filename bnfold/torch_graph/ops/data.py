"""Rows for the operators without parameters: activations, pooling, reductions, sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bnfold.fold import moves
from bnfold.fold.graph import Constant, Refused, Role
from bnfold.fold.roles import Clamp, Leaky, Map, Move, Same, SoftmaxInput, Sum
from bnfold.torch_graph.arrays import FLOATS
from bnfold.torch_graph.call import Call

__all__ = ["DATA"]

_NEAREST = (("", ""), ("_", "_exact"))
_SMOOTH = {"linear1d": 1, "bilinear2d": 2, "bicubic2d": 2, "trilinear3d": 3}


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


def _softmax(call: Call) -> Role:
    return SoftmaxInput(call["dim"] % len(call.x))


def _spread(call: Call, power: float) -> Role:
    """Variance or standard deviation: any shift vanishes, and a scale comes out without its sign."""
    return replace(_reduce(call, "absolute"), power=power, centred=True)


def _norm(call: Call) -> Role:
    order = call["ord"] if call.op == "linalg_vector_norm" else call["p"]
    if order == 0:
        raise Refused("counts entries")
    return replace(_reduce(call, "absolute"), shift=f"{call.op} does not pass a shift")


def _power(call: Call) -> Role:
    exponent = 2 if call.op == "square" else call["exponent"]
    if not isinstance(exponent, (int, float)) or exponent <= 0 or exponent % 2:
        raise Refused("pow is not linear")
    return Map("absolute", f"{call.op} does not pass a shift", power=float(exponent))


def _clamp_min(call: Call) -> Role:
    if call["min"] != 0:
        raise Refused("has a lower bound other than zero")
    return _map(call)


def _extreme(call: Call) -> Role:
    """Against zero it is a Relu, whose scale may differ from channel to channel."""
    for x, other in (("self", "other"), ("other", "self")):
        if call.fill(other) == 0 and call.tensor(x) == call.out:
            return Map(shift=f"{call.op} does not pass a shift", x=call.slot(x))
    return Same((0, 1))


def _grid_sample(call: Call) -> Role:
    zeros = "sees zero padding outside the image, where a shift would not be seen"
    return Map("any", zeros if call["padding_mode"] == 0 else "", tuple(range(2, len(call.x))))


def _scatter(call: Call) -> Role:
    """Rows are added up in a tensor of zeros: which, and how many, is not known."""
    source = "source" if call.op == "index_add" else "src"
    if call.fill("self") != 0:
        raise Refused("adds to what is not zero")
    if call["reduce"] not in (None, "sum", "mean"):
        raise Refused(f"takes the {call['reduce']} of what it finds")
    shape, out = call.tensor(source), call.out
    if len(shape) != len(out):
        raise Refused("its operands are of different ranks")
    flat = {call["dim"] % len(out)} | {i for i, size in enumerate(shape) if size is None or size != out[i]}
    why = "adds up a number of entries that is not known"
    return Map("any", why, tuple(sorted(flat)), x=call.slot(source))


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
    **{f"{p}upsample_nearest{e}{n}d": partial(_windowed, count=n) for n in (1, 2, 3) for p, e in _NEAREST},
    **{f"upsample_{kind}": partial(_windowed, count=n) for kind, n in _SMOOTH.items()},
    **{f"_upsample_{kind}2d_aa": partial(_windowed, count=2) for kind in ("bilinear", "bicubic")},
    "mean": partial(_reduce, sign="any"),
    "sum": _sum,
    **{f"adaptive_max_pool{n}d": partial(_max_pool, count=n) for n in (1, 2, 3)},
    **dict.fromkeys(("amax", "amin"), partial(_reduce, sign="positive")),
    "neg": lambda call: Sum((-1.0,)),
    "var": partial(_spread, power=2.0),
    "std": partial(_spread, power=1.0),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _norm),
    **dict.fromkeys(("pow", "square"), _power),
    "clamp_min": _clamp_min,
    **dict.fromkeys(("maximum", "minimum"), _extreme),
    "grid_sampler": _grid_sample,
    **dict.fromkeys(("scatter_add", "index_add", "scatter_reduce"), _scatter),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
}
