"""What takes a maximum or a mean: pools, reductions, and resampling of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from bnfold.fold.graph import Node, Refused, Role
from bnfold.fold.roles import Map
from bnfold.onnx_graph.ops.facts import (
    axes_of,
    axis_of,
    integers,
    ints,
    out_shape_of,
    rank_of,
    shape_of,
    text,
)
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Evaluate, Half, Inputs, Operator, Shape
from bnfold.onnx_graph.ops.windows import Window, counts, windows
from bnfold.onnx_graph.site import Site

__all__ = ["WINDOWED"]

_COUNTED = "its windows count zero padding, where a shift would not be seen"
_EMPTY = "a window of it may see padding only"


def _no_shift(site: Site) -> str:
    return f"{site.op} does not pass a shift"


def _spatial(site: Site) -> tuple[int, ...]:
    rank = rank_of(site, 0)
    if rank < 3:
        raise Refused(f"its input of rank {rank} has no spatial axes")
    return tuple(range(2, rank))


def _grid(site: Site) -> tuple[Window, ...]:
    return windows(site, integers(site, "kernel_shape") or (), shape_of(site, 0)[2:]).windows


def _max_pool(site: Site) -> Role:
    flat = _spatial(site)
    if site.used(1):
        raise Refused("its indices are used, and a scale can change which of two equals they name")
    if any(window.may_be_empty for window in _grid(site)):
        raise Refused(_EMPTY)
    return Map(flat=flat)


def _average_pool(site: Site) -> Role:
    flat, grid = _spatial(site), _grid(site)
    counted = site.attr("count_include_pad", 0) and any(w.padded or w.hangs_over for w in grid)
    reason = _COUNTED if counted else _EMPTY if any(w.may_be_empty for w in grid) else ""
    return Map("any", reason, flat)


def _lp_pool(site: Site) -> Role:
    return Map("absolute", _no_shift(site), _spatial(site))


def _global(site: Site, sign: str, shifts: bool = True) -> Role:
    return Map(sign, "" if shifts else _no_shift(site), _spatial(site))


def _reduce(site: Site, sign: str, shifts: bool = True, flip: str = "", adds: bool = False) -> Role:
    """Over `axes`, an attribute or (from opset 13 or 18 on) an input; without them over all."""
    shape = shape_of(site, 0)
    axes = axes_of(site, len(shape), 1)
    if not axes:
        if site.attr("noop_with_empty_axes", 0):
            raise Refused("reduces over no axis at all")
        axes = tuple(range(len(shape)))
    gain = 1.0
    if adds:
        sizes = [shape[axis] for axis in axes]
        gain = float(math.prod(size for size in sizes if isinstance(size, int)))
        if not all(isinstance(size, int) for size in sizes):
            gain = 0.0  # so many that nobody knows
    squeezed = () if site.attr("keepdims", 1) else axes
    return Map(sign, "" if shifts else _no_shift(site), axes, squeezed, gain, flip=flip)


def _cum_sum(site: Site) -> Role:
    """Sums along one axis, over a growing number of entries."""
    rank, axis = rank_of(site, 0), site.value(1)
    if axis is None or axis.size != 1:
        raise Refused("its axis is not constant")
    flat = (axis_of(int(axis.reshape(-1)[0]), rank),)
    return Map("any", "adds up a growing number of entries, so that a shift does not come out as one", flat)


def _top_k(site: Site) -> Role:
    """The largest or smallest entries along one axis, sorted or not."""
    if site.used(1):
        raise Refused("its indices are used, and a scale can change which of two equals they name")
    return Map(flat=(axis_of(int(site.attr("axis", -1)), rank_of(site, 0)),))


def _resize(site: Site) -> Role:
    """Resize, Upsample: the weights of all modes sum to one, but for what lies outside the image."""
    mode = text(site, "coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        raise Refused("looks outside the image (tf_crop_and_resize)")
    # these may move pixels where the size stays the same
    moves = mode == "tf_half_pixel_for_nn" or text(site, "keep_aspect_ratio_policy", "stretch") != "stretch"
    return Map("any", flat=tuple(range(rank_of(site, 0))) if moves else _resized(site))


def _resized(site: Site) -> tuple[int, ...]:
    shape, goal = shape_of(site, 0), out_shape_of(site)
    axes = integers(site, "axes")
    axes = tuple(axis % len(shape) for axis in axes) if axes is not None else tuple(range(len(shape)))
    slot, by_size = (2, True) if site.opset >= 11 else (1, False)
    if by_size and _given(site, 3):
        # the same size again is no resampling, in every mode
        return tuple(axis for axis in axes if not isinstance(goal[axis], int) or shape[axis] != goal[axis])
    if _given(site, slot) or site.attr("scales", None) is not None:
        scales = site.value(slot) if _given(site, slot) else np.asarray(site.attr("scales", ()))
        if scales is not None and scales.size == len(axes):
            return tuple(axis for axis, scale in zip(axes, scales.reshape(-1), strict=True) if scale != 1)
    return axes


def _given(site: Site, slot: int) -> bool:
    """An input that is there, and not an empty list in place of one."""
    constant = site.constant(slot) if site.has(slot) else None
    return site.has(slot) and (constant is None or math.prod(constant.shape) > 0)


def _grid_sample(site: Site) -> Role:
    zeros = text(site, "padding_mode", "zeros") == "zeros"
    reason = "sees zero padding outside the image, where a shift would not be seen" if zeros else ""
    return Map("any", reason, _spatial(site))


# Shapes.


def _pool_shape(site: Site) -> Shape | None:
    x, kernel = site.shape(0), site.attr("kernel_shape")
    if x is None or not kernel or len(x) != len(kernel) + 2:
        return None
    spatial = counts(site, x[2:], kernel)
    return None if spatial is None else (*x[:2], *spatial)


def _global_shape(site: Site) -> Shape | None:
    x = site.shape(0)
    return None if x is None else (*x[:2], *(1,) * (len(x) - 2))


# Bounds.


_MANY = Bounds(np.asarray(0.0), np.asarray(np.inf))  # summands, so many that nobody knows


def _flat(node: Node, inputs: list[Bounds]) -> tuple[Map, Bounds]:
    """The role, and what the entries that it takes together have in common."""
    if not isinstance(node.role, Map):
        raise ValueError("its axes are not known")
    return node.role, inputs[0].flat(node.role.flat)


def _entries(node: Node, inputs: list[Bounds]) -> Bounds:
    """Of some of the entries along the flat axes, or the largest of them; zeros count where a row says so."""
    role, x = _flat(node, inputs)
    if role.shift and node.op != "MaxPool":
        x = x.with_value(0.0)
    return _squeezed(role, x)


def _squeezed(role: Map, x: Bounds) -> Bounds:
    return x.each(lambda end: end.squeeze(role.squeezed)) if role.squeezed else x


def _total(node: Node, inputs: list[Bounds]) -> Bounds:
    role, x = _flat(node, inputs)
    count = Bounds(np.asarray(role.gain), np.asarray(role.gain)) if role.gain else _MANY
    return _squeezed(role, x.times(count))


def _length(node: Node, inputs: list[Bounds]) -> Bounds:
    """A norm: zero for zeros, and never negative."""
    role, x = _flat(node, inputs)
    zero = (x.lo == 0) & (x.hi == 0)
    return _squeezed(role, Bounds(np.zeros(zero.shape), np.where(zero, 0.0, np.inf)))


def _weighted(node: Node, inputs: list[Bounds]) -> Bounds:
    """Weights sum to one; those of the cubic modes may be negative, so that only one value is sure."""
    role, x = _flat(node, inputs)
    if role.shift:
        x = x.with_value(0.0)
    if node.source.attr("mode", "") in ("", "nearest", "linear", "bilinear"):
        return x
    one = x.constant
    return Bounds(np.where(one, x.lo, -np.inf), np.where(one, x.hi, np.inf))


# Constants.


def _reduced(function: Callable[..., Any], integers_too: bool = False) -> Evaluate:
    """function: of an array, `axis` and `keepdims`, as numpy's are."""

    def evaluate(site: Site, inputs: Inputs) -> Any:
        x, given = inputs[0], inputs[1] if len(inputs) > 1 else None
        axes = tuple(ints(site.attr("axes", ()) if given is None else given))
        real = x.dtype.kind == "f" or x.dtype.name == "bfloat16"
        if not x.size or not (real or integers_too):
            raise ValueError("no numbers, or none of a floating point type")
        if not axes and site.attr("noop_with_empty_axes", 0):
            raise ValueError("it reduces over no axis")
        wide = x.astype(np.float64) if real else x
        found = function(wide, axis=axes or None, keepdims=bool(site.attr("keepdims", 1)))
        return np.asarray(found).astype(x.dtype)

    return evaluate


_pool = partial(Operator, shape=_pool_shape)
_whole = partial(Operator, shape=_global_shape)
_reduces = partial(Operator, moved=("axes", 18))
_LENGTH = partial(_reduce, sign="absolute", shifts=False)

WINDOWED: dict[str, Operator] = {
    "AveragePool": _pool(role=_average_pool, bounds=_entries, half=Half.SUMS),
    "CumSum": Operator(role=_cum_sum, half=Half.SUMS),
    "GlobalAveragePool": _whole(role=partial(_global, sign="any"), bounds=_entries, half=Half.SUMS),
    "GlobalLpPool": _whole(
        role=partial(_global, sign="absolute", shifts=False), bounds=_length, half=Half.SQUARES
    ),
    "GlobalMaxPool": _whole(role=partial(_global, sign="positive"), bounds=_entries, half=Half.MOVES),
    "GridSample": Operator(role=_grid_sample, bounds=_weighted, changed=20),
    "LpPool": _pool(role=_lp_pool, bounds=_length, half=Half.SQUARES),
    "MaxPool": _pool(role=_max_pool, bounds=_entries, half=Half.MOVES),
    "ReduceL1": _reduces(
        role=_LENGTH,
        evaluate=_reduced(lambda x, **how: np.sum(np.abs(x), **how), True),
        bounds=_length,
        half=Half.SUMS,
    ),
    "ReduceL2": _reduces(
        role=_LENGTH,
        evaluate=_reduced(lambda x, **how: np.sqrt(np.sum(x * x, **how))),
        bounds=_length,
        half=Half.SQUARES,
    ),
    "ReduceLogSum": _reduces(evaluate=_reduced(lambda x, **how: np.log(np.sum(x, **how)))),
    "ReduceLogSumExp": _reduces(evaluate=_reduced(lambda x, **how: np.log(np.sum(np.exp(x), **how)))),
    "ReduceMax": _reduces(
        role=partial(_reduce, sign="positive", flip="ReduceMin"),
        evaluate=_reduced(np.max, True),
        bounds=_entries,
        half=Half.MOVES,
    ),
    "ReduceMean": _reduces(
        role=partial(_reduce, sign="any"), evaluate=_reduced(np.mean), bounds=_entries, half=Half.SUMS
    ),
    "ReduceMin": _reduces(
        role=partial(_reduce, sign="positive", flip="ReduceMax"),
        evaluate=_reduced(np.min, True),
        bounds=_entries,
        half=Half.MOVES,
    ),
    "ReduceProd": _reduces(evaluate=_reduced(np.prod, True)),
    "ReduceSum": Operator(
        role=partial(_reduce, sign="any", adds=True),
        evaluate=_reduced(np.sum, True),
        bounds=_total,
        half=Half.SUMS,
        moved=("axes", 13),
    ),
    "ReduceSumSquare": _reduces(
        evaluate=_reduced(lambda x, **how: np.sum(x * x, **how), True), half=Half.SQUARES
    ),
    "Resize": Operator(role=_resize, bounds=_weighted),
    "TopK": Operator(role=_top_k),
    "Upsample": Operator(role=_resize, bounds=_weighted),
}
