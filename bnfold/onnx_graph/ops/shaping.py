"""What rearranges data and keeps every entry: reshapes, transpositions, and what does nothing at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.fold import moves
from bnfold.fold.graph import Dim, Refused, Role
from bnfold.fold.roles import Move
from bnfold.onnx_graph.ops.facts import (
    UNCHANGED,
    axes_of,
    axis_of,
    integers,
    ints,
    known_integers,
    out_shape_of,
    rank_of,
    same_shape,
    shape_of,
    text,
)
from bnfold.onnx_graph.ops.operator import Half, Inputs, Operator, Shape
from bnfold.onnx_graph.site import Site

__all__ = ["SHAPING"]

# Roles.


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
    target = known_integers(site, "shape", 1)
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
    return UNCHANGED


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


def _depth_to_space(site: Site) -> Role:
    if rank_of(site, 0) != 4:
        raise Refused("its input is not of rank 4")
    return Move(moves.DepthToSpace(int(site.attr("blocksize", 1)), text(site, "mode", "DCR") == "DCR"))


def _space_to_depth(site: Site) -> Role:
    if rank_of(site, 0) != 4:
        raise Refused("its input is not of rank 4")
    return Move(moves.SpaceToDepth(int(site.attr("blocksize", 1))))


# Shapes.


def _ranks(site: Site) -> None:
    """The rank of a Reshape at least: it is the length of the wanted shape."""
    wanted, x, y = site.shape(1), site.values[0], site.outputs[0]
    rank = wanted[0] if wanted is not None and len(wanted) == 1 else None
    if x is not None and y is not None:
        if y.shape is None and isinstance(rank, int) and rank <= 64:
            y.shape = (None,) * rank
        y.dtype = y.dtype or x.dtype


def _flatten_shape(site: Site) -> Shape | None:
    x, axis = site.shape(0), site.attr("axis", 1)
    if x is None:
        return None
    axis += len(x) if axis < 0 else 0
    return _product(x[:axis]), _product(x[axis:])


def _transpose_shape(site: Site) -> Shape | None:
    x = site.shape(0)
    if x is None:
        return None
    perm = site.attr("perm") or range(len(x))[::-1]
    return tuple(x[axis] for axis in perm) if sorted(perm) == list(range(len(x))) else None


# Constants.


def _axes(site: Site, inputs: Inputs, rank: int) -> list[int] | None:
    """`axes` as attribute, or from opset 13 on as input; from the front."""
    given = inputs[1] if len(inputs) > 1 else site.attr("axes")
    if given is None:
        return None
    axes = ints(given)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError("an axis is out of range")
    return [axis % rank for axis in axes]


def _transposed(site: Site, inputs: Inputs) -> Any:
    perm = site.attr("perm")
    return np.transpose(inputs[0], perm if perm else None)


def _reshaped(site: Site, inputs: Inputs) -> Any:
    array = inputs[0]
    wanted = ints(inputs[1] if len(inputs) > 1 else site.attr("shape"))
    if not site.attr("allowzero", 0):
        wanted = [array.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return array.reshape(wanted)


def _squeezed(site: Site, inputs: Inputs) -> Any:
    axes = _axes(site, inputs, inputs[0].ndim)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _unsqueezed(site: Site, inputs: Inputs) -> Any:
    given = inputs[1] if len(inputs) > 1 else site.attr("axes")
    rank = inputs[0].ndim + np.size(given)
    return np.expand_dims(inputs[0], tuple(_axes(site, inputs, rank) or ()))


def _flattened(site: Site, inputs: Inputs) -> Any:
    array, axis = inputs[0], site.attr("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return array.reshape(math.prod(array.shape[:axis]), -1)


SHAPING: dict[str, Operator] = {
    "DepthToSpace": Operator(role=_depth_to_space, half=Half.MOVES),
    "Dropout": Operator(role=_dropout, shape=same_shape, half=Half.PASSES),
    "Flatten": Operator(role=_flatten, shape=_flatten_shape, evaluate=_flattened, half=Half.MOVES),
    "Identity": Operator(
        role=_identity, shape=same_shape, evaluate=lambda site, inputs: inputs[0], half=Half.MOVES
    ),
    "Reshape": Operator(role=_reshape, ranks=_ranks, evaluate=_reshaped, half=Half.MOVES),
    "SpaceToDepth": Operator(role=_space_to_depth, half=Half.MOVES),
    "Squeeze": Operator(role=_squeeze, evaluate=_squeezed, half=Half.MOVES, moved=("axes", 13)),
    "Transpose": Operator(role=_transpose, shape=_transpose_shape, evaluate=_transposed, half=Half.MOVES),
    "Unsqueeze": Operator(role=_unsqueeze, evaluate=_unsqueezed, half=Half.MOVES, moved=("axes", 13)),
}
