"""How data is rearranged, as seen by an array with one number per channel.

A move maps an array of the input's rank to one of the output's rank (`push`) and back (`pull`). Both raise
`Refused` if the array varies along an axis that the move mixes. Channels that `pull` leaves open are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Dim, Refused

LARGEST = 1 << 26  # elements of one change: a file may claim any shape


def check_size(shape: Sequence[int]) -> None:
    """Raise `Refused` rather than ask for more memory than any model needs."""
    if math.prod(shape) > LARGEST:
        raise Refused(f"would vary over {math.prod(shape)} elements")


def flatten(array: Array, axes: tuple[int, ...]) -> Array:
    """The array with size 1 on `axes`, along which it must be constant."""
    for axis in axes:
        if array.shape[axis] > 1:
            first = array.take([0], axis)
            if not np.array_equal(np.broadcast_to(first, array.shape), array, equal_nan=True):
                raise Refused(f"varies along axis {axis}")
            array = first
    return array


@dataclass(frozen=True)
class Identity:
    def push(self, array: Array) -> Array:
        return array

    def pull(self, array: Array) -> Array:
        return array


@dataclass(frozen=True)
class Transpose:
    perm: tuple[int, ...]

    def push(self, array: Array) -> Array:
        return np.transpose(array, self.perm)

    def pull(self, array: Array) -> Array:
        return np.transpose(array, tuple(np.argsort(self.perm)))


def regroup(array: Array, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Array:
    """The same elements in the same order, from the shape `before` to the shape `after`."""
    shape: list[int] = []
    kept: list[int] = []
    for left, right in max(_groups(before, after), _groups_from_the_end(before, after), key=len):
        if not any(array.shape[i] > 1 for i in left):
            kept += [1] * len(left)
            shape += [1] * len(right)
            continue
        sizes = [before[i] for i in left] + [after[i] for i in right]
        if not all(isinstance(size, int) for size in sizes):
            raise Refused(f"is regrouped from {before} to {after} with a size that is not known")
        # expand within the group, so that a constant axis beside a varying one is spelt out
        kept += [int(before[i]) for i in left]  # type: ignore[arg-type]
        shape += [int(after[i]) for i in right]  # type: ignore[arg-type]
    if math.prod(kept) != math.prod(shape):
        raise Refused(f"is regrouped from {before} to {after}, which hold different numbers of elements")
    check_size(kept)
    array = np.broadcast_to(array, kept).reshape(shape)
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            try:
                array = flatten(array, (axis,))
            except Refused:
                continue
    return array


def _groups(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[tuple[list[int], list[int]]]:
    """Split both shapes into runs of provably equal product; axes that are equal stay alone."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        while not _equal([before[k] for k in left], [after[k] for k in right]):
            a, b = [before[k] for k in left], [after[k] for k in right]
            take_left = i < len(before) and (j >= len(after) or not left or (bool(right) and _smaller(a, b)))
            if take_left:
                left.append(i)
                i += 1
            elif j < len(after):
                right.append(j)
                j += 1
            else:
                break
        a, b = [before[k] for k in left], [after[k] for k in right]
        if groups and not _equal(a, b) and all(size == 1 for size in a + b):
            groups[-1][0].extend(left)  # trailing ones belong to the run before
            groups[-1][1].extend(right)
        else:
            groups.append((left, right))
    return groups


def _parts(dims: list[Dim]) -> tuple[int, list[str], bool]:
    """The product of a run: its static part, its symbols, and whether all of it is known."""
    static = math.prod(dim for dim in dims if isinstance(dim, int))
    return static, sorted(dim for dim in dims if isinstance(dim, str)), None not in dims


def _equal(a: list[Dim], b: list[Dim]) -> bool:
    left, right = _parts(a), _parts(b)
    return bool(a) and bool(b) and left[2] and right[2] and left[:2] == right[:2]


def _smaller(a: list[Dim], b: list[Dim]) -> bool:
    """Which side to lengthen: the one with fewer symbols, then the smaller one."""
    size_a, symbols_a, known_a = _parts(a)
    size_b, symbols_b, known_b = _parts(b)
    return (len(symbols_a) + (not known_a), size_a) < (len(symbols_b) + (not known_b), size_b)


def _groups_from_the_end(
    before: tuple[Dim, ...], after: tuple[Dim, ...]
) -> list[tuple[list[int], list[int]]]:
    """The same, matched from the last axis: `(N, 8, 1, 1) -> (unknown, 8)` keeps its 8 apart."""
    n, m = len(before) - 1, len(after) - 1
    groups = _groups(before[::-1], after[::-1])
    return [
        ([n - i for i in reversed(left)], [m - j for j in reversed(right)])
        for left, right in reversed(groups)
    ]


@dataclass(frozen=True)
class Take:
    """Slice, Gather with constant indices: entries of one axis. indices None: not known (then constant along
    it).
    """

    axis: int
    indices: tuple[int, ...] | None
    size: int | None
    scalar: bool = False  # the axis disappears

    def push(self, array: Array) -> Array:
        if array.shape[self.axis] > 1:
            if self.indices is None:
                raise Refused(f"varies along axis {self.axis}, of which unknown entries are taken")
            array = array.take(self.indices, self.axis)
        return array.squeeze(self.axis) if self.scalar else array

    def pull(self, array: Array) -> Array:
        if self.scalar:
            array = np.expand_dims(array, self.axis)
        if self.indices is None or self.size is None:
            return flatten(array, (self.axis,))
        if array.shape[self.axis] == 1 and sorted(self.indices) == list(range(self.size)):
            return array
        head, tail = array.shape[: self.axis], array.shape[self.axis + 1 :]
        check_size((*head, self.size, *tail))
        result = np.full((*head, self.size, *tail), math.nan)
        where = (slice(None),) * self.axis + (list(self.indices),)
        full = np.broadcast_to(array, (*head, len(self.indices), *tail))
        result[where] = full
        if not np.array_equal(result[where], full, equal_nan=True):
            raise Refused(f"takes an entry of axis {self.axis} twice, with different changes")
        return result


@dataclass(frozen=True)
class Stretch:
    """Expand, Tile: `axes` of the output are repetitions; `lead` axes are new in front."""

    axes: tuple[int, ...]
    lead: int = 0

    def push(self, array: Array) -> Array:
        array = array.reshape((1,) * self.lead + array.shape)
        return flatten(array, self.axes)

    def pull(self, array: Array) -> Array:
        array = flatten(array, tuple({*self.axes, *range(self.lead)}))
        return array.reshape(array.shape[self.lead :])


@dataclass(frozen=True)
class DepthToSpace:
    """Channels to blocks of pixels; `depth_first` is the mode DCR, else CRD. Axis 1 of rank 4."""

    block: int
    depth_first: bool = True

    def push(self, array: Array) -> Array:
        array = flatten(array, (2, 3))
        if array.shape[1] == 1:
            return array
        b = self.block * self.block
        rest = array.shape[1] // b
        shape = (array.shape[0], b, rest) if self.depth_first else (array.shape[0], rest, b)
        grid = flatten(array.reshape(shape), (1 if self.depth_first else 2,))
        return grid.reshape(array.shape[0], rest, 1, 1)

    def pull(self, array: Array) -> Array:
        array = flatten(array, (2, 3))
        if array.shape[1] == 1:
            return array
        b = self.block * self.block
        if self.depth_first:
            return np.tile(array, (1, b, 1, 1))
        return np.repeat(array, b, 1)


class SpaceToDepth(DepthToSpace):
    """The inverse."""

    push, pull = DepthToSpace.pull, DepthToSpace.push


@dataclass(frozen=True)
class Chain:
    """Several moves, one after the other."""

    moves: tuple[Any, ...]

    def push(self, array: Array) -> Array:
        for move in self.moves:
            array = move.push(array)
        return array

    def pull(self, array: Array) -> Array:
        for move in reversed(self.moves):
            array = move.pull(array)
        return array


@dataclass(frozen=True)
class DropAxes:
    """Squeeze: `axes` (of size 1, whatever the other sizes are) disappear."""

    axes: tuple[int, ...]

    def push(self, array: Array) -> Array:
        return array.squeeze(self.axes)

    def pull(self, array: Array) -> Array:
        return np.expand_dims(array, self.axes)


class AddAxes(DropAxes):
    """Unsqueeze, the inverse: `axes` (of the output) are new and of size 1."""

    push, pull = DropAxes.pull, DropAxes.push


class Crop(Take):
    """Entries of an axis that is not a channel axis: a change that is uniform along it stays so for the rest
    too.

    (`Take` leaves the rest open, which suits channels: the rest of them goes elsewhere. The rest of an image
    row does not, and no convolution could take a change that ends at the edge of the crop.)
    """

    def pull(self, array: Array) -> Array:
        if self.scalar:
            return np.expand_dims(array, self.axis)
        return array if array.shape[self.axis] == 1 else super().pull(array)


def entries(
    axis: int, indices: tuple[int, ...] | None, size: int | None, rank: int, scalar: bool = False
) -> Take:
    """Entries of an axis of a tensor of this rank; scalar: one, and the axis disappears.

    Other channels stay open (`Take`); other rows, columns or tokens change with these (`Crop`).
    """
    places = (axis == 1 and rank == 3) if scalar else axis > 1
    return (Crop if places else Take)(axis, indices, size, scalar)


@dataclass(frozen=True)
class Tiles:
    """Tile: axis i is repeated `repeats[i]` times, as a whole."""

    repeats: tuple[int, ...]

    def push(self, array: Array) -> Array:
        return np.tile(
            array, [n if size > 1 else 1 for n, size in zip(self.repeats, array.shape, strict=True)]
        )

    def pull(self, array: Array) -> Array:
        for axis, count in enumerate(self.repeats):
            size = array.shape[axis]
            if count == 1 or size == 1:
                continue
            parts = np.split(array, count, axis)
            if not all(np.array_equal(parts[0], part, equal_nan=True) for part in parts[1:]):
                raise Refused(f"differs between the repetitions along axis {axis}")
            array = parts[0]
        return array


@dataclass(frozen=True)
class Reshape:
    """The same elements in the same order, where only the axes between a common head and tail differ.

    Both products are equal, and so are the products of what lies between: this holds for sizes that are not
    known, and then only a change that is constant between head and tail can pass.
    """

    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    head: int
    tail: int

    @classmethod
    def between(cls, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Reshape:
        """Finds the longest head and tail (None is a size that equals nothing)."""
        most = min(len(before), len(after))
        head = 0
        while head < most and before[head] is not None and before[head] == after[head]:
            head += 1
        tail = 0
        while tail < most - head and before[-1 - tail] is not None and before[-1 - tail] == after[-1 - tail]:
            tail += 1
        return cls(before, after, head, tail)

    def push(self, array: Array) -> Array:
        return self._turn(array, self.before, self.after)

    def pull(self, array: Array) -> Array:
        return self._turn(array, self.after, self.before)

    def _turn(self, array: Array, before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Array:
        start, stop = array.shape[: self.head], array.shape[array.ndim - self.tail :]
        middle = slice(self.head, len(before) - self.tail), slice(self.head, len(after) - self.tail)
        if all(size == 1 for size in array.shape[middle[0]]):
            return array.reshape(start + (1,) * len(after[middle[1]]) + stop)
        return regroup(array, (*start, *before[middle[0]], *stop), (*start, *after[middle[1]], *stop))
