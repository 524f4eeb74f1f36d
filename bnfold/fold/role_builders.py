"""Roles that every reader of graphs builds alike: convolutions, matrix products, frozen batch norms.

A reader says what its format stores and where; what that means for the solver stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.fold.affine import dead, from_batch_norm, unsound
from bnfold.fold.graph import Array, Constant, Dim, Node, Refused, Role
from bnfold.fold.roles import Affine, Contract, Linear, Product, Sum
from bnfold.fold.windows import PRODUCT, Windows

_PADDED = "its windows see zero padding, where a shift would not be seen"
_PAD_CURE = "pad with a value that maps to zero, or not at all"
_UNEVEN = "its taps overlap unevenly, so that a shift does not come out as a shift"
_BATCHED = "its weight is a batch of matrices, and a shift would come out as another one for each"

Shape = tuple[Dim, ...]

# What arithmetic is. With a constant: the kind of affine map, and how the constant enters it on the left and
# on the right ("": it is none). Of two tensors: the role.
ARITHMETIC: dict[str, tuple[str, tuple[str, str], Role]] = {
    "add": ("shift", ("x+c", "x+c"), Sum((1.0, 1.0))),
    "sub": ("shift", ("c-x", "x-c"), Sum((1.0, -1.0))),
    "mul": ("scale", ("x*c", "x*c"), Product((1, 1))),
    "div": ("scale", ("", "x/c"), Product((1, -1))),
}


def convolution(
    weight: Constant, groups: int, even: bool, windows: Windows | None = None, transposed: bool = False
) -> Linear:
    """A convolution. Its weight is at slot 1, and a bias belongs at slot 2.

    Args:
        weight: (outputs, inputs of a group, *taps); transposed: (inputs, outputs of a group, *taps).
        groups: of channels.
        even: a constant input gives a constant output: no window sees zeros beside the tensor; transposed:
            each output sees one input.
        windows: as numbers, if they are known.
        transposed: ConvTranspose.
    """
    first, second, *taps = weight.shape
    return Linear(
        weight=weight,
        weight_slot=1,
        x=0,
        in_axis=1,
        out_axis=1,
        split=(groups, first // groups, second, *taps),
        w_group=0,
        w_out=2 if transposed else 1,
        w_in=1 if transposed else 2,
        bias_slot=2,
        padded="" if even else _UNEVEN if transposed else _PADDED,
        padded_cure="" if even or transposed else _PAD_CURE,
        free=((0, 0),),
        windows=windows,
    )


def by_matrix(
    weight: Constant, slot: int, x: int, in_axis: int, out_axis: int, w_in: int, free: Any
) -> Linear:
    """A product with one matrix, summed over its axis `w_in`; all other arguments are those of `Linear`."""
    shape, w_out = weight.shape, 1 - w_in
    return Linear(weight, slot, x, in_axis, out_axis, shape, None, w_out, w_in, free=free, windows=PRODUCT)


def with_bias(role: Linear, slot: int, bias: Constant | None, unknown: str = "", cure: str = "") -> Linear:
    """The role with the bias at this slot.

    unknown: why a bias that is there is not constant, or "". cure: what would make it constant, or "".
    """
    role.bias, role.bias_slot, role.bias_open, role.bias_blocks_scale = bias, slot, unknown, bool(unknown)
    role.bias_cure = cure
    return role


def batch_norm(
    constants: Mapping[str, tuple[int, Constant]],
    values: Sequence[Array],
    eps: float,
    rank: int,
    damaged: Callable[[str], Exception] = Refused,
) -> Affine:
    """A frozen batch norm: `y = gamma * (x - mean) / sqrt(var + eps) + beta`.

    Args:
        constants: where gamma, beta, mean and var are kept.
        values: of these four, each of shape (channels,).
        eps: added to the variance.
        rank: of x; the channels lie on axis 1 (of a vector: 0).
        damaged: makes the error for a variance that no training gives.

    Raises:
        Refused: scale and shift are not finite.
    """
    var = np.asarray(values[3], np.float64)
    wrong = unsound(var)
    if wrong.any():
        channel = int(np.argmax(wrong))
        raise damaged(f"its running variance is {float(var[channel]):.3g} in channel {channel}")
    scale, shift = from_batch_norm(values[0], values[1], values[2], var, eps)
    if not np.isfinite(shift).all():
        channel = int(np.argmin(np.isfinite(shift)))
        raise Refused(f"its parameters give no finite scale and shift in channel {channel}")
    shape = (1, -1) + (1,) * (rank - 2) if rank > 1 else (-1,)
    silent = tuple(np.flatnonzero(dead(scale, var)).tolist())
    return Affine(
        scale.reshape(shape), shift.reshape(shape), "norm", constants=constants, eps=eps, dead=silent
    )


def set_moments(node: Node) -> None:
    """Tell the tensors around a batch norm what it knows of their means and variances."""
    role = node.role
    assert isinstance(role, Affine)
    if role.kind == "norm":
        gamma, beta, mean, var = (role.constants[name][1].load() for name in ("gamma", "beta", "mean", "var"))
        node.at(role.x).moments = mean, var
        node.outputs[0].moments = beta, gamma.astype(np.float64) ** 2


def summed_axis(shape: Shape, x: int) -> int:
    """The axis that is summed over: the last of the left operand, the last but one of the right (x = 1)."""
    return len(shape) - 1 if x == 0 else max(len(shape) - 2, 0)


def by_weight(weight: Constant, slot: int, shape: Shape, rank: int, costs: int) -> Linear:
    """A tensor of this shape times a constant.

    Args:
        weight: of rank 2 or more.
        slot: 1 if it is the right operand, 0 if it is the left one.
        shape: of the other operand, of rank 1 or more.
        rank: of the result.
        costs: nodes that a missing bias would add.
    """
    x, outer = 1 - slot, len(weight.shape)
    in_axis, batch = summed_axis(shape, x), weight.shape[:-2]
    return Linear(
        weight=weight,
        weight_slot=slot,
        x=x,
        in_axis=in_axis,
        out_axis=rank - 1 if slot == 1 or len(shape) == 1 else rank - 2,
        split=weight.shape,
        w_group=None,
        w_out=outer - 1 if slot == 1 else outer - 2,
        w_in=outer - 2 if slot == 1 else outer - 1,
        padded=_BATCHED if any(size != 1 for size in batch) else "",
        free=_passing(shape, in_axis, batch, rank) if len(shape) > 1 else (),
        costs=costs,
        windows=PRODUCT if outer == 2 else None,
    )


def of_tensors(shapes: tuple[Shape, Shape], y: Shape, stochastic: bool) -> Contract:
    """Two tensors of rank 2 or more; `stochastic`: the rows of the left one sum to one."""
    axes = []
    for side, shape in enumerate(shapes):
        extra = len(y) - len(shape)
        goals: list[int | None] = [axis + extra for axis in range(len(shape))]
        goals[-1 - side] = None
        for axis, size in enumerate(shape[:-2]):
            if not is_kept(size, y[axis + extra]):
                goals[axis] = None
        axes.append(tuple(goals))
    return Contract((axes[0], axes[1]), stochastic=0 if stochastic else None)


def _passing(shape: Shape, in_axis: int, batch: tuple[int, ...], rank: int) -> tuple[tuple[int, int], ...]:
    """The axes of x that y keeps: its rows or columns, and batch axes that the weight does not enlarge."""
    extra = rank - len(shape)
    free = []
    for axis, size in enumerate(shape):
        against = axis - (len(shape) - 2) + len(batch)  # the weight's batch axis beside it
        stretched = axis < len(shape) - 2 and against >= 0 and batch[against] not in (1, size)
        if axis != in_axis and not stretched:
            free.append((axis, axis + extra))
    return tuple(free)


def is_kept(size: Dim, out: Dim) -> bool:
    """An axis that is not broadcast: larger than 1, or surely the same on both sides."""
    return (isinstance(size, int) and size > 1) or (size is not None and size == out)
