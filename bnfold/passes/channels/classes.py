"""Channels that can only leave together: disjoint sets, each with the first reason why it must stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array

__all__ = ["Classes", "Reason"]


class Reason(NamedTuple):
    """Why a channel stays, and the node or tensor that keeps it."""

    text: str
    where: str


class Classes:
    """Numbers from 0 on, united by `unite`; `find` tells the number that stands for all of a set."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reasons: dict[int, Reason] = {}  # of the numbers that stand for their sets

    def new(self, count: int) -> Array:
        """So many sets of one number each."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, number: int) -> int:
        parent = self.parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def found(self, numbers: Array) -> Array:
        """`find` for an array of any shape."""
        flat = [self.find(number) for number in numbers.reshape(-1).tolist()]
        return np.asarray(flat, np.int64).reshape(numbers.shape)

    def unite(self, left: Array, right: Array) -> None:
        """Each number of the left with the one of the right at the same place."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.find(a), self.find(b)
            if a == b:
                continue
            a, b = min(a, b), max(a, b)
            self.parent[b] = a
            reason = self.reasons.pop(b, None)
            if reason is not None:
                self.reasons.setdefault(a, reason)

    def lock(self, numbers: Iterable[int], reason: Reason) -> None:
        """These must stay."""
        for number in numbers:
            self.reasons.setdefault(self.find(number), reason)
