"""Where the taps of convolutions look, and what that becomes when two are added, or follow each other.

Along one axis of n entries, output i of a convolution reads the inputs `i*stride + first + j*step` for its
taps j = 0, 1, ..., and there are `(n - 1 + end) // stride + 1` outputs; outside the tensor there are zeros.
That says all that kernels, pads and dilations say, and makes sums and rows of convolutions plain arithmetic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bnfold.fold.graph import Refused

__all__ = [
    *("POINT", "PRODUCT", "Axis", "Windows"),
    *("added", "axes_of", "count", "in_a_row", "with_valid_pads", "stated"),
]


class Windows(NamedTuple):
    """The windows of a convolution as files state them, with one entry for each spatial axis.

    heads, tails: zeros before and behind the tensor. A matrix product has no such axes: all are ().
    """

    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    tails: tuple[int, ...] = ()


PRODUCT = Windows()


class Axis(NamedTuple):
    """One spatial axis of a convolution."""

    stride: int
    first: int  # where the first tap looks, seen from the place of the output
    step: int  # from tap to tap
    taps: int
    end: int

    @property
    def last(self) -> int:
        return self.first + (self.taps - 1) * self.step

    @property
    def head(self) -> int:
        """Zeros before the tensor."""
        return -self.first

    @property
    def tail(self) -> int:
        """Zeros behind the tensor."""
        return self.end + self.last

    @property
    def padded(self) -> bool:
        return self.head != 0 or self.tail != 0


POINT = Axis(1, 0, 1, 1, 0)  # what the identity map looks at


def axes_of(windows: Windows, taps: tuple[int, ...]) -> tuple[Axis, ...]:
    """The axes of a convolution with kernels of `taps`."""
    rows = zip(windows.strides, windows.dilations, windows.heads, windows.tails, taps, strict=True)
    return tuple(Axis(s, -head, d, k, tail - (k - 1) * d + head) for s, d, head, tail, k in rows)


def stated(axes: tuple[Axis, ...]) -> Windows:
    """The axes as files state them."""
    return Windows(
        tuple(axis.stride for axis in axes),
        tuple(axis.step for axis in axes),
        tuple(axis.head for axis in axes),
        tuple(axis.tail for axis in axes),
    )


def count(axis: Axis, size: int) -> int:
    """How many outputs there are along an axis of this size."""
    return (size - 1 + axis.end) // axis.stride + 1


def added(a: Axis, b: Axis, size: int | None) -> Axis:
    """The taps of both, for the sum of two convolutions that read the same tensor (None: of unknown size).

    Raises:
        Refused: the strides differ, or the numbers of outputs do, or may.
    """
    if a.stride != b.stride:
        raise Refused(f"have strides {a.stride} and {b.stride}")
    if a.end != b.end and (size is None or count(a, size) != count(b, size)):
        raise Refused("do not look at the same places: their pads do not match their kernels")
    return _spanned(a.stride, (a.first, b.first), (a.last, b.last), _steps(a, b), a.end)


def in_a_row(one: Axis, two: Axis) -> Axis:
    """The taps of a convolution that does what `two` does after `one`.

    Raises:
        Refused: the second one's padding is not what the first one gives outside the tensor.
    """
    if two.padded and (one.taps > 1 or one.padded):
        raise Refused("have zero padding between them, which the first one would not give")
    steps = [one.step * (one.taps > 1), one.stride * two.step * (two.taps > 1)]
    first, last = one.first + one.stride * two.first, one.last + one.stride * two.last
    return _spanned(one.stride * two.stride, (first,), (last,), steps, one.end + one.stride * two.end)


def with_valid_pads(axis: Axis, size: int | None, symmetric: bool) -> Axis:
    """The axis with pads that can be stated: none negative, equal on both sides if `symmetric`.

    Raises:
        Refused: there are no such pads.
    """
    if symmetric and axis.head != axis.tail:
        other = axis._replace(end=axis.head - axis.last)
        if size is None or count(other, size) != count(axis, size):
            raise Refused("would need different pads on both sides, which torch does not have")
        axis = other
    if min(axis.head, axis.tail) < 0:
        raise Refused("would need a negative pad")
    return axis


def _steps(*axes: Axis) -> list[int]:
    return [axis.step for axis in axes if axis.taps > 1]


def _spanned(
    stride: int, firsts: tuple[int, ...], lasts: tuple[int, ...], steps: list[int], end: int
) -> Axis:
    """The narrowest row of taps that has all of these."""
    first, last = min(firsts), max(lasts)
    step = math.gcd(*steps, *(other - first for other in firsts)) or 1
    return Axis(stride, first, step, (last - first) // step + 1, end)
