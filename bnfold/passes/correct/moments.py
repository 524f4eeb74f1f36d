"""Mean and deviation of each channel of a layer's output, over samples that are run a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run.evaluators import Outputs, opened
from bnfold.onnx_graph.run.part import part
from bnfold.onnx_graph.run.samples import Samples

__all__ = ["Moments", "Runs"]

AT_ONCE = 1 << 27  # bytes of outputs that a run may give, beyond those of one unit
MOST = 32  # units in a run


class Moments(NamedTuple):
    """Of each channel, float64: mean, standard deviation, and mean of squares."""

    mean: Array
    deviation: Array
    square: Array

    @property
    def finite(self) -> bool:
        """Whether all are numbers."""
        return bool(np.isfinite(self.square).all())


class Runs:
    """Runs parts of models on the same samples.

    tell: is called after each run with how many units it had, and what was run.
    """

    def __init__(self, samples: Samples, units: Sequence[int], tell: Callable[[int, str], None]) -> None:
        self.samples, self.units, self.tell = samples, units, tell
        self.evaluator = ""

    def moments(self, loaded: Loaded, tensors: Mapping[str, int], what: str) -> dict[str, Moments]:
        """The moments of tensors of the main graph, by name. tensors: the axis of the channels of each.

        Raises:
            CannotRun: nothing runs the model on these samples.
        """
        sums: dict[str, tuple[Array, Array, int]] = {}
        for outputs in self._outputs(part(loaded, tensors), what):
            for name, axis in tensors.items():
                array = np.moveaxis(np.asarray(outputs[name]), axis, 0)
                rows = array.reshape(len(array), -1).astype(np.float64)
                with np.errstate(all="ignore"):
                    total, squares, count = sums.get(name, (0.0, 0.0, 0))
                    found = rows.sum(1), np.einsum("ij,ij->i", rows, rows), rows.shape[1]
                    sums[name] = total + found[0], squares + found[1], count + found[2]
        return {name: _moments(*sums[name]) for name in tensors}

    def _outputs(self, loaded: Loaded, what: str) -> Iterator[Outputs]:
        """What a model gives for a few samples at a time: one unit first, then as many as memory allows."""
        evaluator = opened(loaded)
        self.evaluator = evaluator.name
        at_once = 1
        for units in (self.units[:1], self.units[1:]):
            for count, feed in self.samples.feeds(units, at_once):
                outputs = evaluator.run(feed)
                self.tell(count, what)
                size = sum(np.asarray(array).nbytes for array in outputs.values())
                if at_once == 1:
                    at_once = max(1, min(MOST, AT_ONCE // max(size, 1)))
                yield outputs


def _moments(total: Array, squares: Array, count: int) -> Moments:
    with np.errstate(all="ignore"):
        mean, square = total / max(count, 1), squares / max(count, 1)
        return Moments(mean, np.sqrt(np.maximum(square - mean**2, 0)), square)
