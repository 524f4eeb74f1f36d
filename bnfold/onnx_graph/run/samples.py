"""Many samples for the inputs of a model: taken in turn, so many at a time as the model and memory allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bnfold.errors import UsageError
from bnfold.onnx_graph.run.inputs import Array, Given, Input, feed_from

__all__ = ["Samples"]


class Samples:
    """Arrays for inputs, with samples along their first axis.

    A unit is what a run needs at least: one sample, or as many as a fixed first axis has. An array that fits
    a fixed axis as it is goes whole into every run; if that is so for all of them, there is one unit.

    count: how many units there are; each: the samples in one.

    Raises:
        UsageError: an input is missing or does not fit, or the numbers of samples disagree.
    """

    def __init__(self, inputs: Sequence[Input], given: Given) -> None:
        relaxed = [
            replace(i, dims=(None, *i.dims[1:])) if i.dims and isinstance(i.dims[0], int) else i
            for i in inputs
        ]
        self._arrays = feed_from(relaxed, given)
        self._units: dict[str, int] = {}  # samples in a unit, of the inputs that are taken in turn
        self._joins = True
        counts: dict[str, int] = {}
        for i in inputs:
            array = self._arrays[i.name]
            fixed = i.dims[0] if i.dims and isinstance(i.dims[0], int) else None
            if array.ndim == 0 or fixed == len(array):
                continue
            unit = 1 if fixed is None else fixed
            counts[i.name], rest = divmod(len(array), unit) if unit else (0, len(array))
            if rest:
                raise UsageError(
                    f"the input {i.name!r} takes {unit} samples at a time, and {len(array)} were given; "
                    f"give a multiple of {unit}"
                )
            self._units[i.name] = unit
            self._joins &= fixed is None
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(f"the inputs have different numbers of samples: {told}")
        self.count = next(iter(counts.values()), 1)
        self.each = max(self._units.values(), default=1)
        if self.count == 0:
            raise UsageError("there are no samples: the arrays that were given are empty")

    def feeds(self, units: Sequence[int], at_once: int = 1) -> Iterator[tuple[int, dict[str, Array]]]:
        """Feeds of these units, up to `at_once` in each if the model allows; with each how many it has."""
        step = at_once if self._joins else 1
        for start in range(0, len(units), step):
            chosen = units[start : start + step]
            yield len(chosen), {name: self._taken(name, chosen) for name in self._arrays}

    def _taken(self, name: str, chosen: Sequence[int]) -> Array:
        array, unit = self._arrays[name], self._units.get(name)
        if unit is None:
            return array
        return np.concatenate([array[i * unit : (i + 1) * unit] for i in chosen])
