"""More ways in which data is rearranged: moves made of other moves, and reshapes with sizes that are not
known.

Each has the `push` and `pull` of the classes in moves.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.fold.graph import Array, Dim
from bnfold.fold.moves import Regroup, Stuck, Take

__all__ = ["AddAxes", "Chain", "Crop", "DropAxes", "Reshape", "Tiles"]


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


@dataclass(frozen=True)
class AddAxes:
    """Unsqueeze: `axes` (of the output) are new and of size 1."""

    axes: tuple[int, ...]

    def push(self, array: Array) -> Array:
        return np.expand_dims(array, self.axes)

    def pull(self, array: Array) -> Array:
        return array.squeeze(self.axes)


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
                raise Stuck(f"differs between the repetitions along axis {axis}")
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
        return Regroup((*start, *before[middle[0]], *stop), (*start, *after[middle[1]], *stop)).push(array)
