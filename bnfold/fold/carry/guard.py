"""Folds that are exact on paper and lose precision or range in the type that the tensors have."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.fold.affine import any_nonzero
from bnfold.fold.carry.spread import Conflict, Spread, State
from bnfold.fold.graph import Node

__all__ = ["CARRIED", "KAPPA", "check_precision", "check_range"]

# |p| that an activation may carry, by its type: beyond it the activation itself could overflow or turn
# subnormal
CARRIED = {"float16": 2.0**6, "bfloat16": 2.0**40, "float32": 2.0**40, "float64": 2.0**200}
SAFE = (2.0**-40, 2.0**40)  # of a positive factor: the quick way to see that all is well
# how many times its own size a shift may be: a reader that takes it off again loses so many units in the last
# place
KAPPA = 2.0**6


def check_range(state: State, scale: Spread) -> None:
    """Raise `Conflict` if a carried tensor would leave the comfortable range of its type.

    The ends of the folded node are exempt: each takes the values that the other end had before.
    """
    x, y = scale.target.at(scale.target.role.x), scale.target.outputs[0]  # type: ignore[attr-defined]
    ends = (x, y) if x not in state.p and y not in state.p else ()
    safe: dict[int, bool] = {}  # most tensors carry the same array
    for tensor, factor in scale.values.items():
        limit = CARRIED.get(tensor.dtype)
        if limit is None or tensor.constant is not None or tensor in ends:
            continue
        if not scale.zeros and tensor not in state.p and tensor.dtype == "float32":
            fine = safe.get(id(factor))
            if fine is None:
                fine = safe[id(factor)] = bool(factor.min() > SAFE[0] and factor.max() < SAFE[1])
            if fine:
                continue
        size = np.abs(factor if scale.zeros else state.p.get(tensor, 1.0) * factor)
        if not size.all():
            size = size[size > 0]
        worst = max(size.max(initial=1.0), 1.0 / size.min(initial=1.0))
        if worst > limit:
            channel = int(np.argmax(np.maximum(size, 1.0 / size).reshape(-1)))
            raise Conflict(
                tensor.name,
                f"channel {channel} would be carried at {size.reshape(-1)[channel]:.3g} times its size, "
                f"beyond the range kept for {tensor.dtype} activations",
            )


def check_precision(state: State, target: Node, scale: Spread, shift: Spread) -> None:
    """Raise `Conflict` if a reader would have to take a shift off that drowns the signal."""
    for tensor, extra in shift.values.items():
        if tensor.moments is None or tensor.constant is not None:
            continue
        readers = [node for node, _ in tensor.readers if node is not target and node not in state.gone]
        if not readers or not any_nonzero(extra):
            continue
        p: Any = shift.scale_of(tensor)
        q: Any = extra if shift.zeros else extra + state.q.get(tensor, 0.0) * scale.values.get(tensor, 1.0)
        mean, var = (_channels(m, extra.ndim, extra.shape) for m in tensor.moments)
        size = np.sqrt(mean * mean + var) * (1.0 if shift.zeros else np.abs(p))
        with np.errstate(divide="ignore", invalid="ignore"):
            kappa = np.nan_to_num(np.abs(q) / size, nan=0.0, posinf=np.inf)
        factor = scale.values.get(tensor, np.ones(())) if shift.zeros else np.asarray(p)
        kappa = np.where(np.broadcast_to(factor, kappa.shape) == 0, 0.0, kappa)  # nobody needs what is lost
        if kappa.max() > KAPPA:
            channel = int(np.argmax(kappa.reshape(-1)))
            raise Conflict(
                readers[0].name,
                f"would have to take a shift off {tensor.name} that is {kappa.max():.2g} times the signal "
                f"(channel {channel}), and lose that many units in the last place",
            )


def _channels(values: Any, rank: int, shape: tuple[int, ...]) -> Any:
    """Per-channel statistics against an array of a tensor of this rank (channels on the axis that varies,
    else 1).
    """
    axis = next(
        (axis for axis, size in enumerate(shape) if size == values.size and size > 1), 1 if rank > 1 else 0
    )
    return np.asarray(values, np.float64).reshape([-1 if a == axis else 1 for a in range(rank)])
