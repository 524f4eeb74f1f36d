"""Interval arithmetic on per-channel bounds, in float64.

Zero times infinity is zero: a weight of zero hides whatever stands behind it, as long as that is finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array

__all__ = ["Bounds", "collapsed", "unknown"]

# significant bits and smallest normal and largest number of each type
_TYPES = {
    "float16": (11, 2.0**-14, 65504.0),
    "bfloat16": (8, 2.0**-126, 3.3895313892515355e38),
    "float32": (24, 2.0**-126, 3.4028234663852886e38),
    "float64": (53, 2.0**-1022, 1.7976931348623157e308),
}


class Bounds(NamedTuple):
    """What lies between `lo` and `hi`: arrays of the tensor's rank; each axis is 1 or the full size."""

    lo: Array
    hi: Array

    @property
    def constant(self) -> Array:
        """Where there is one value only."""
        where: Array = (self.lo == self.hi) & np.isfinite(self.lo)
        return where

    def each(self, move: Callable[[Array], Array]) -> Bounds:
        """Both arrays rearranged in the same way."""
        return Bounds(move(self.lo), move(self.hi))

    def flat(self, axes: Sequence[int]) -> Bounds:
        """Of size 1 along the axes: what holds for all entries there."""
        where = tuple(axes)
        if all(self.lo.shape[axis] == self.hi.shape[axis] == 1 for axis in where):
            return self
        return Bounds(
            self.lo.min(where, keepdims=True, initial=np.inf),
            self.hi.max(where, keepdims=True, initial=-np.inf),
        )

    def along(self, axis: int, size: int) -> Bounds:
        """What holds for each entry of one axis: two vectors."""
        flat = self.flat([i for i in range(self.lo.ndim) if i != axis])
        return flat.each(lambda a: np.broadcast_to(a.reshape(-1), (size,)))

    def with_value(self, value: float) -> Bounds:
        """And this value as well."""
        return Bounds(np.minimum(self.lo, value), np.maximum(self.hi, value))

    def hull(self, other: Bounds) -> Bounds:
        """What lies in one or the other."""
        return Bounds(np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi))

    def plus(self, other: Bounds) -> Bounds:
        with np.errstate(invalid="ignore"):
            return _sound(self.lo + other.lo, self.hi + other.hi)

    def times(self, other: Bounds) -> Bounds:
        ends = [_product(a, b) for a in self for b in other]
        return Bounds(np.minimum.reduce(ends), np.maximum.reduce(ends))

    def scaled(self, factor: Array) -> Bounds:
        """Times known numbers."""
        return self.times(Bounds(factor, factor))


def unknown(rank: int) -> Bounds:
    """Any number."""
    return Bounds(np.full((1,) * rank, -np.inf), np.full((1,) * rank, np.inf))


def collapsed(bounds: Bounds, dtype: str) -> Bounds:
    """The bounds, where an interval too narrow for the type to tell its ends apart becomes one value.

    Where the ends are less than half a unit in the last place apart, only rounding tells values apart; what
    is below the smallest normal number becomes zero. Values that the type does not hold are not known.
    """
    bits, smallest, largest = _TYPES.get(dtype, _TYPES["float64"])
    lo, hi = np.broadcast_arrays(*bounds)
    size = np.maximum(np.abs(lo), np.abs(hi))
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = (hi - lo <= np.ldexp(size, -bits - 1)) & np.isfinite(size)
        middle = np.where(lo == hi, lo, lo + (hi - lo) / 2)
    middle = np.where(size < smallest, 0.0, middle)
    narrow |= size < smallest
    lo, hi = np.where(narrow, middle, lo), np.where(narrow, middle, hi)
    odd = ~(lo <= hi) | (narrow & (size > largest))
    return Bounds(np.where(odd, -np.inf, lo), np.where(odd, np.inf, hi))


def _product(a: Array, b: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        result: Array = np.where((a == 0) | (b == 0), 0.0, a * b)
    return result


def _sound(lo: Array, hi: Array) -> Bounds:
    """Without NaN, which stands for an infinity minus another."""
    return Bounds(np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi))
