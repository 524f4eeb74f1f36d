"""The arithmetic of per-channel affine maps, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.fold.graph import Array

TINY = float(np.finfo(np.float32).tiny)


def any_nonzero(array: Any) -> bool:
    """`np.any`, at a fifth of its cost where the array is short, as most here are."""
    return bool(np.count_nonzero(array))


def all_finite(array: Array) -> bool:
    """No infinity and no NaN."""
    return bool(np.count_nonzero(np.isfinite(array)) == array.size)


def from_batch_norm(gamma: Array, beta: Array, mean: Array, var: Array, eps: Any) -> tuple[Array, Array]:
    """`y = scale*x + shift` of a frozen batch norm (Ioffe and Szegedy, 2015, algorithm 2), in float64.

    Arrays of shape (C,), or those of several norms, (n, C), with eps (n, 1).
    """
    with np.errstate(all="ignore"):
        scale: Array = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(var, np.float64) + eps)
        return scale, np.asarray(beta, np.float64) - scale * np.asarray(mean, np.float64)


def unsound(var: Array) -> Array:
    """Where a running variance is one that no training gives: negative, infinite, or no number."""
    wrong: Array = ~((var >= 0) & (var < np.inf))  # NaN fails both
    return wrong


def dead(scale: Array, var: Array) -> Array:
    """Where a batch norm's output never changes: scale 0, or a running variance that is 0 but for rounding
    (below the smallest normal float32), since its input never changed in training.
    """
    where: Array = (np.abs(scale) < TINY) | (np.asarray(var) < TINY)
    return where


def varying(array: Array) -> list[int]:
    """The axes along which an array has more than one entry."""
    return [axis for axis, size in enumerate(array.shape) if size > 1]


def along(array: Array, axis: int) -> Array:
    """The entries along one axis as a vector (length 1 if all are equal); it varies nowhere else."""
    vector: Array = array.reshape(array.shape[axis])
    return vector


def compact(array: Array, near: float = 0.0, lines: bool = False) -> Array:
    """The array with one entry along each axis along which all are equal (near: to such a part).

    lines: also if it varies along one axis only, as one number per channel does.
    """
    for axis in varying(array) if lines or array.size > max(array.shape, default=1) else ():
        first = array.take([0], axis)
        if (np.abs(array - first) <= near * np.abs(first)).all():
            array = first
    return array


def line(array: Any, axis: int) -> Any:
    """The entries along one axis, at the first place of all others; of the same rank. A number stays one."""
    if np.ndim(array) == 0:
        return array
    return array[tuple(slice(None) if other == axis else slice(1) for other in range(array.ndim))]


def at_axis(vector: Array, axis: int, rank: int) -> Array:
    """A vector along one axis of an array of this rank; the reverse of `along`."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def align(array: Array, rank: int) -> Array:
    """The array with axes of size 1 in front, or without such axes, so that it has this rank (numpy
    broadcasting).
    """
    if array.ndim < rank:
        return array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.ndim > rank:
        extra = array.ndim - rank
        if any(size > 1 for size in array.shape[:extra]):
            raise ValueError("varies along an axis that the smaller tensor does not have")
        return array.reshape(array.shape[extra:])
    return array


def _full(entry: float, like: Array) -> Array:
    return np.full((1,) * like.ndim, entry)


# How a constant c enters arithmetic with a tensor x, and the scale and shift that this is.
MAPS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "x+c": lambda c: (_full(1.0, c), c),
    "x-c": lambda c: (_full(1.0, c), -c),
    "c-x": lambda c: (_full(-1.0, c), c),
    "x*c": lambda c: (c, _full(0.0, c)),
    "x/c": lambda c: (1.0 / c, _full(0.0, c)),
}
