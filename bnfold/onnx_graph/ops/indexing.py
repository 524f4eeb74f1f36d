"""What joins, takes, repeats or masks entries: Concat, Split, Slice, Gather, Expand, Tile, Pad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.fold import moves
from bnfold.fold.graph import Dim, Node, Refused, Role
from bnfold.fold.roles import Concat, Map, Move, Pad, Split
from bnfold.onnx_graph.ops.facts import (
    LARGEST,
    UNCHANGED,
    axis_of,
    check_size,
    integers,
    ints,
    known_integers,
    number,
    out_shape_of,
    rank_of,
    shape_of,
    text,
)
from bnfold.onnx_graph.ops.interval import Bounds
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator, Shape
from bnfold.onnx_graph.site import Site

__all__ = ["INDEXING"]

# Roles.


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
    size = shape[axis]
    if not isinstance(size, int):
        return moves.Take(axis, None, None, scalar)
    if indices is not None and len(indices) > LARGEST:
        raise Refused(f"takes more than {LARGEST} entries")
    if indices is not None and not all(-size <= index < size for index in indices):
        raise Refused(f"takes entries beyond its axis {axis} of size {size}")
    taken = None if indices is None else tuple(index % size for index in indices)
    return moves.entries(axis, taken, size, len(shape), scalar)


def _chain(steps: list[object]) -> Role:
    if not steps:
        return UNCHANGED
    return Move(steps[0] if len(steps) == 1 else moves.Chain(tuple(steps)))


def _slice(site: Site) -> Role:
    shape = shape_of(site, 0)
    bounds = [known_integers(site, name, slot) for name, slot in (("starts", 1), ("ends", 2), ("steps", 4))]
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
    repeats = known_integers(site, "repeats", 1)
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


def _pad(site: Site) -> Role:
    rank = rank_of(site, 0)
    pads = integers(site, "pads" if site.opset > 1 else "paddings", 1) or ()
    axes = integers(site, "axes", 3)
    axes = tuple(range(rank)) if axes is None else tuple(axis_of(axis, rank) for axis in axes)
    if len(pads) != 2 * len(axes):
        raise Refused("its pads do not match its input")
    framed = tuple(sorted(axis for i, axis in enumerate(axes) if pads[i] or pads[len(axes) + i]))
    if not framed:
        return UNCHANGED
    fill = None
    if text(site, "mode", "constant") == "constant" and max(pads) > 0:
        fill = number(site, "value", 2, 0.0)
        if math.isnan(fill):
            raise Refused("pads with NaN")
        if math.isinf(fill):  # stays what it is under any p > 0 and q
            return Map("positive", flat=framed)
    return Pad(framed, fill, 2 if site.opset >= 11 else "value")


def _trilu(site: Site) -> Role:
    """Sets entries of each matrix to zero: which, is the same for all matrices."""
    rank = len(out_shape_of(site))
    rank_of(site, 0)
    return Map("any", "sets a triangle to zero, where a shift would not be seen", flat=(rank - 2, rank - 1))


def _gather_elements(site: Site) -> Role:
    """Takes entries along one axis, at each place its own; along the others the first ones, mostly all."""
    shape = shape_of(site, 0)
    return Map("any", flat=_one_by_one_axes(site, shape, out_shape_of(site)))


def _scatter_elements(site: Site) -> Role:
    """Puts entries into zeros along one axis, or adds them up there: a scale passes, a shift does not."""
    stored = site.constant(0)
    if stored is None or np.prod(stored.shape, dtype=float) > LARGEST or np.any(stored.load()):
        raise Refused("puts entries into others than stored zeros")
    if text(site, "reduction", "none") not in ("none", "add"):
        raise Refused("takes extremes or products of the entries that it puts there")
    flat = _one_by_one_axes(site, shape_of(site, 2), out_shape_of(site))
    return Map("any", "puts entries among zeros, where a shift would not be seen", flat, x=2)


def _one_by_one_axes(site: Site, x: Shape, y: Shape) -> tuple[int, ...]:
    """The axis of the indices, and those along which not surely all entries are taken."""
    if len(x) != len(y):
        raise Refused("its shapes do not match")
    chosen = axis_of(int(site.attr("axis", 0)), len(x))
    sizes = enumerate(zip(x, y, strict=True))
    return tuple(axis for axis, (a, b) in sizes if axis == chosen or a is None or a != b)


# Shapes.


def _concat_shape(site: Site) -> Shape | None:
    shapes = [site.shape(slot) for slot in range(len(site.values))]
    first, axis = shapes[0], site.attr("axis", 1)
    if first is None or not -len(first) <= axis < len(first):
        return None
    axis %= len(first)
    total: Dim = 0
    for shape in shapes:
        if shape is None or len(shape) != len(first):
            return None
        size = shape[axis]
        total = total + size if isinstance(total, int) and isinstance(size, int) else None
    return (*first[:axis], total, *first[axis + 1 :])


def _slice_keeps(site: Site) -> Shape | None:
    """The sizes along all axes that it does not name, whatever it takes of those that it does."""
    x = site.shape(0)
    if x is None or not x:
        return None
    named = _named_axes(site, len(x))
    return None if named is None else tuple(None if axis in named else size for axis, size in enumerate(x))


def _named_axes(site: Site, rank: int) -> set[int] | None:
    """The axes of a Slice; None if they are computed."""
    axes = known_integers(site, "axes", 3)
    if axes is None and site.has(3):
        return None
    if axes is None:  # the first ones, as many as there are starts
        starts = site.shape(1) if site.has(1) else (len(site.attr("starts", ())),)
        count = starts[0] if starts is not None and len(starts) == 1 else None
        axes = tuple(range(count)) if isinstance(count, int) else None
    return None if axes is None else {axis_of(axis, rank) for axis in axes}


# Constants.


def _joined(site: Site, inputs: Inputs) -> Any:
    check_size([sum(array.size for array in inputs)], inputs[0].itemsize)
    return np.concatenate(inputs, site.attr("axis", 1))


def _parts(site: Site, inputs: Inputs) -> Any:
    data, given, count = inputs[0], inputs[1] if len(inputs) > 1 else None, len(site.outputs)
    axis = site.attr("axis", 0)
    total = data.shape[axis]
    step = -(-total // count)
    sizes = ints(site.attr("split") or [step] * (count - 1) + [total - step * (count - 1)])
    sizes = sizes if given is None else ints(given)
    if len(sizes) != count or sum(sizes) != total or min(sizes) < 0:
        raise ValueError("its parts do not match its input")
    return np.split(data, np.cumsum(sizes)[:-1], axis)


def _sliced(site: Site, inputs: Inputs) -> Any:
    data = inputs[0]
    if site.opset < 10:
        starts, ends, axes, steps = site.attr("starts"), site.attr("ends"), site.attr("axes"), None
    else:
        starts, ends, axes, steps = [*inputs[1:], None, None][:4]
    starts, ends = ints(starts), ints(ends)
    axes = list(range(len(starts))) if axes is None else ints(axes)
    steps = [1] * len(starts) if steps is None else ints(steps)
    where: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        # numpy counts an end below -size from the back once more, where ONNX clamps it
        stop: int | None = end if end >= -size else (0 if step > 0 else None)
        where[axis] = slice(max(start, -size), stop, step)
    return data[tuple(where)]


def _gathered(site: Site, inputs: Inputs) -> Any:
    data, indices = inputs
    axis = site.attr("axis", 0)
    check_size([indices.size, data.size // max(data.shape[axis], 1)], data.itemsize)
    return np.take(data, indices.astype(np.int64), axis)  # negative ones count from the end, as in ONNX


def _expanded(site: Site, inputs: Inputs) -> Any:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(ints(inputs[1])))
    check_size(shape, inputs[0].itemsize)
    return np.broadcast_to(inputs[0], shape)


# Bounds.


def _masked(node: Node, inputs: list[Bounds]) -> Bounds:
    """Of a Trilu."""
    if not isinstance(node.role, Map):
        raise ValueError("its axes are not known")
    return inputs[0].flat(node.role.flat).with_value(0.0)


def _adds_up(site: Site) -> str:
    """Why a ScatterElements stays float32."""
    reduction = text(site, "reduction", "none")
    adds = reduction in ("add", "mul")
    return f"onnxruntime runs ScatterElements with reduction {reduction!r} in float32 only" if adds else ""


_one_by_one = Operator(closed="has no rule: indexes entries one by one")

INDEXING: dict[str, Operator] = {
    "Concat": Operator(role=_concat, shape=_concat_shape, evaluate=_joined, half=Half.MOVES),
    "Expand": Operator(role=_expand, evaluate=_expanded, half=Half.MOVES),
    "Gather": Operator(role=_gather, evaluate=_gathered, half=Half.MOVES),
    "GatherElements": Operator(role=_gather_elements),
    "GatherND": _one_by_one,
    "Pad": Operator(role=_pad, half=Half.PASSES),
    "ScatterElements": Operator(
        role=_scatter_elements,
        data=2,
        float32=_adds_up,
    ),
    "ScatterND": _one_by_one,
    "Slice": Operator(role=_slice, keeps=_slice_keeps, evaluate=_sliced, half=Half.MOVES),
    "Split": Operator(
        role=_split, evaluate=_parts, several=True, half=Half.MOVES, changed=18, moved=("split", 13)
    ),
    "Tile": Operator(role=_tile, half=Half.MOVES),
    "Trilu": Operator(role=_trilu, bounds=_masked),
}
