"""Rows for the operators that rearrange data: joins, slices, reshapes, repetitions, padding, casts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bnfold.fold import moves
from bnfold.fold.graph import Dim, Role
from bnfold.fold.roles import Concat, Map, Move, Pad, Split
from bnfold.onnx_graph.model.site import FLOATS, Site
from bnfold.onnx_graph.ops.facts import (
    LARGEST,
    Refused,
    axes_of,
    axis_of,
    integers,
    number,
    out_shape_of,
    rank_of,
    shape_of,
    text,
)

__all__ = ["SHAPES"]

# TensorProto.DataType
_FLOAT_TYPES = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
_SAME = Move(moves.Identity())


def _concat(site: Site) -> Role:
    count = len(site.node.input)
    shapes = [shape_of(site, slot) for slot in range(count)]
    axis = axis_of(int(site.attr("axis", 1)), len(shapes[0]))
    sizes = (shape[axis] for shape in shapes)
    return Concat(axis, tuple(size if isinstance(size, int) else None for size in sizes))


def _split(site: Site) -> Role:
    shape, count = shape_of(site, 0), len(site.node.output)
    if not all(site.node.output):
        raise Refused("leaves out one of its outputs")
    axis = axis_of(int(site.attr("axis", 0)), len(shape))
    sizes = integers(site, "split", 1)
    total = shape[axis]
    if not sizes and isinstance(total, int):
        step = -(-total // count)
        sizes = (*(step,) * (count - 1), total - step * (count - 1))
    if not sizes or len(sizes) != count or min(sizes) < 0 or (isinstance(total, int) and sum(sizes) != total):
        raise Refused("the sizes of its parts are not known")
    return Split(axis, sizes)


def _take(
    axis: int, indices: tuple[int, ...] | None, shape: tuple[Dim, ...], scalar: bool = False
) -> moves.Take:
    """Entries of one axis. Other channels stay open; other rows, columns or tokens change with these."""
    size = shape[axis]
    if not isinstance(size, int):
        return moves.Take(axis, None, None, scalar)
    if indices is not None and len(indices) > LARGEST:
        raise Refused(f"takes more than {LARGEST} entries")
    if indices is not None and not all(-size <= index < size for index in indices):
        raise Refused(f"takes entries beyond its axis {axis} of size {size}")
    entries = None if indices is None else tuple(index % size for index in indices)
    places = (axis == 1 and len(shape) == 3) if scalar else axis > 1
    return (moves.Crop if places else moves.Take)(axis, entries, size, scalar)


def _chain(steps: list[object]) -> Role:
    if not steps:
        return _SAME
    return Move(steps[0] if len(steps) == 1 else moves.Chain(tuple(steps)))


def _slice(site: Site) -> Role:
    shape = shape_of(site, 0)
    bounds = [_perhaps(site, name, slot) for name, slot in (("starts", 1), ("ends", 2), ("steps", 4))]
    axes = integers(site, "axes", 3)
    if axes is None:
        count = len(bounds[0] or bounds[1] or ()) or len(shape)
        axes = tuple(range(count))
    starts, ends, steps = bounds
    if steps is None and not site.has(4):
        steps = (1,) * len(axes)
    taken: list[object] = []
    for i, axis in enumerate(axis_of(axis, len(shape)) for axis in axes):
        size = shape[axis]
        indices = None
        if starts is not None and ends is not None and steps is not None:
            if (starts[i], steps[i]) == (0, 1) and ends[i] >= (size if isinstance(size, int) else 2**31 - 1):
                continue  # all of it
            if isinstance(size, int):
                entries = range(size)[slice(starts[i], ends[i], steps[i])]
                if len(entries) > LARGEST:
                    raise Refused(f"takes more than {LARGEST} entries")
                indices = tuple(entries)
        taken.append(_take(axis, indices, shape))
    return _chain(taken)


def _perhaps(site: Site, name: str, slot: int) -> tuple[int, ...] | None:
    """A list of integers, or None if it is left out or computed at run time."""
    if site.has(slot) and site.value(slot) is None:
        return None
    return integers(site, name, slot)


def _gather(site: Site) -> Role:
    """Constant indices take entries; those of run time pass what is the same for all. Data may be a table."""
    shape = shape_of(site, 0)
    axis = axis_of(int(site.attr("axis", 0)), len(shape))
    rank, value = site.rank(1), site.value(1)
    if rank is None:
        raise Refused("the rank of its indices is not known")
    if rank < 2:
        indices = None if value is None else tuple(int(index) for index in value.reshape(-1))
        return Move(_take(axis, indices, shape, scalar=rank == 0))
    if axis != 0:
        raise Refused(f"takes entries by indices of rank {rank}")
    lookup = moves.Take(0, None, None, scalar=True), moves.Stretch(tuple(range(rank)), lead=rank)
    return Move(moves.Chain(lookup))


def _tile(site: Site) -> Role:
    if site.opset < 6:
        raise Refused("repeats in the way of opset 1")
    shape, goal = shape_of(site, 0), out_shape_of(site)
    if len(shape) != len(goal):
        raise Refused("its output has another rank than its input")
    repeats = _perhaps(site, "repeats", 1)
    if repeats is not None and len(repeats) == len(shape) and min(repeats, default=1) > 0:
        return Move(moves.Tiles(repeats))
    grown = (i for i, (a, b) in enumerate(zip(shape, goal, strict=True)) if a is None or a != b)
    return Move(moves.Stretch(tuple(grown)))


def _expand(site: Site) -> Role:
    shape, goal = shape_of(site, 0), out_shape_of(site)
    lead = len(goal) - len(shape)
    old = (1,) * lead + shape
    grown = (axis for axis, size in enumerate(old) if axis < lead or not (isinstance(size, int) and size > 1))
    return Move(moves.Stretch(tuple(grown), lead))


def _squeeze(site: Site) -> Role:
    shape = shape_of(site, 0)
    axes = axes_of(site, len(shape), 1)
    if axes is None:
        if not all(isinstance(size, int) for size in shape):
            raise Refused("drops axes of a size that is not known")
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return Move(moves.DropAxes(axes))


def _unsqueeze(site: Site) -> Role:
    rank = rank_of(site, 0)
    axes = axes_of(site, len(out_shape_of(site)), 1)
    if not axes:
        raise Refused("its axes are not given")
    if rank + len(axes) != len(out_shape_of(site)):
        raise Refused("its axes do not match its output")
    return Move(moves.AddAxes(axes))


def _flatten(site: Site) -> Role:
    before, after = _named(shape_of(site, 0)), out_shape_of(site)
    axis = int(site.attr("axis", 1))
    axis = axis if axis == len(before) else axis_of(axis, len(before))
    return _regroup(before, (_product(before[:axis]), _product(before[axis:])), after)


def _reshape(site: Site) -> Role:
    before, after = _named(shape_of(site, 0)), out_shape_of(site)
    target = _perhaps(site, "shape", 1)
    if target is None or len(target) != len(after):
        return _regroup(before, after, after)
    copies = not site.attr("allowzero", 0)
    wanted: list[Dim] = []
    for axis, size in enumerate(target):
        copied = copies and size == 0 and axis < len(before)
        wanted.append(before[axis] if copied else None if size == -1 else size)
    return _regroup(before, tuple(wanted), after)


def _named(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Unknown sizes get names, so that one can be recognized where it is surely the same."""
    return tuple(f"?axis{axis}" if size is None else size for axis, size in enumerate(shape))


def _product(sizes: tuple[Dim, ...]) -> Dim:
    names = [size for size in sizes if not isinstance(size, int)]
    total = math.prod(size for size in sizes if isinstance(size, int))
    if not names:
        return total
    return names[0] if len(names) == 1 and total == 1 else None


def _regroup(before: tuple[Dim, ...], wanted: tuple[Dim, ...], inferred: tuple[Dim, ...]) -> Role:
    """From `before` to `wanted`, whose gaps come from shape inference; the last follows from the total."""
    if len(wanted) != len(inferred):
        raise Refused("its new shape is not known")
    after = [b if a is None else a for a, b in zip(wanted, inferred, strict=True)]
    gaps = [axis for axis, size in enumerate(after) if not isinstance(size, int) and size not in before]
    if len(gaps) == 1:
        after[gaps[0]] = _missing(before, after[: gaps[0]] + after[gaps[0] + 1 :])
    return Move(moves.Reshape.between(before, tuple(after)))


def _missing(before: tuple[Dim, ...], after: list[Dim]) -> Dim:
    """The one size that is not in `after`, given that both shapes have as many elements."""
    names = [size for size in before if isinstance(size, str)]
    for size in after:
        if isinstance(size, str):
            if size not in names:
                return None
            names.remove(size)
    whole = math.prod(size for size in before if isinstance(size, int))
    part = math.prod(size for size in after if isinstance(size, int))
    if part == 0 or whole % part:
        return None
    return _product((*names, whole // part))


def _transpose(site: Site) -> Role:
    rank = rank_of(site, 0)
    perm = integers(site, "perm") or tuple(range(rank))[::-1]
    if sorted(perm) != list(range(rank)):
        raise Refused(f"its permutation {list(perm)} does not match rank {rank}")
    return Move(moves.Transpose(perm))


def _identity(site: Site) -> Role:
    rank_of(site, 0)
    return _SAME


def _dropout(site: Site) -> Role:
    if site.opset < 7 and not site.attr("is_test", 0):
        raise Refused("drops entries at random (is_test=0)")
    if site.has(2):
        training = site.value(2)
        if training is None or bool(np.any(training)):
            raise Refused("may drop entries at random (training_mode)")
    if site.used(1):
        raise Refused("its mask is used")
    return _identity(site)


def _cast(site: Site) -> Role:
    code = site.attr("to", 0)  # a word before opset 6
    return _to_float(site, _FLOAT_TYPES.get(code, "no float type"))


def _cast_like(site: Site) -> Role:
    return _to_float(site, site.dtype(1))


def _to_float(site: Site, name: str) -> Role:
    if name not in FLOATS:
        raise Refused(f"casts to {name or 'an unknown type'}")
    return _identity(site)


def _depth_to_space(site: Site) -> Role:
    if rank_of(site, 0) != 4:
        raise Refused("its input is not of rank 4")
    return Move(moves.DepthToSpace(int(site.attr("blocksize", 1)), text(site, "mode", "DCR") == "DCR"))


def _space_to_depth(site: Site) -> Role:
    if rank_of(site, 0) != 4:
        raise Refused("its input is not of rank 4")
    return Move(moves.SpaceToDepth(int(site.attr("blocksize", 1))))


def _pad(site: Site) -> Role:
    rank = rank_of(site, 0)
    pads = integers(site, "pads" if site.opset > 1 else "paddings", 1) or ()
    axes = integers(site, "axes", 3)
    axes = tuple(range(rank)) if axes is None else tuple(axis_of(axis, rank) for axis in axes)
    if len(pads) != 2 * len(axes):
        raise Refused("its pads do not match its input")
    framed = tuple(sorted(axis for i, axis in enumerate(axes) if pads[i] or pads[len(axes) + i]))
    if not framed:
        return _SAME
    fill = None
    if text(site, "mode", "constant") == "constant" and max(pads) > 0:
        fill = number(site, "value", 2, 0.0)
        if math.isnan(fill):
            raise Refused("pads with NaN")
        if math.isinf(fill):  # stays what it is under any p > 0 and q
            return Map("positive", flat=framed)
    return Pad(framed, fill, 2 if site.opset >= 11 else "value")


SHAPES: dict[str, Callable[[Site], Role]] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
