"""Matrix products as numpy broadcasts them (MatMul, `torch.matmul`, `bmm`), for every reader of graphs."""

from __future__ import annotations

from bnfold.fold.graph import Constant, Dim
from bnfold.fold.roles import Contract, Linear
from bnfold.fold.windows import PRODUCT

__all__ = ["by_weight", "is_kept", "of_tensors", "summed_axis"]

_BATCHED = "its weight is a batch of matrices, and a shift would come out as another one for each"

Shape = tuple[Dim, ...]


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
