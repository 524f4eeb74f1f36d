"""What is known of the original's tensors from one run of it: their types and shapes, and integers made of
shapes.

Nothing is compared here but in the end: whether the folded model runs at all where the original does, and
whether what it gives is something else altogether, which is a counterexample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx

from bnfold.errors import BnfoldError, UsageError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import evaluators
from bnfold.onnx_graph.run.evaluators import CannotRun
from bnfold.onnx_graph.run.side_by_side import Broken, Feeds, Ran, run_pair
from bnfold.proof.claims import Entry
from bnfold.proof.graph import Model, Scope
from bnfold.proof.operator import Array, Undecided, is_float, wide

__all__ = ["Known"]

GROSS = 0.05  # of the largest value: no rounding of stored numbers does that to a network that is of use
SHAPES = frozenset({"Shape", "Size"})


class Known:
    """One run of the original, made when it is first needed.

    shapes: of inputs, where the model leaves them open.
    """

    def __init__(self, model: Model, shapes: Mapping[str, Sequence[int]] | None, seed: int) -> None:
        self._model, self._shapes, self._seed = model, shapes, seed
        self.ran = False

    def value(self, name: str) -> Array:
        """Zeros of the type and shape of a tensor of floats; integers and truth values as they are.

        Raises:
            Undecided: nothing is known of it, or its integers depend on more than shapes.
        """
        if isinstance(self._values, str):
            raise Undecided(
                f"the original cannot be run, and the shape of {name} is not known: {self._values}"
            )
        value = self._values.get(name)
        if value is None:
            raise Undecided(f"the shape of {name} is not known")
        if not is_float(value) and name not in self._of_shapes:
            raise Undecided(f"{name} is made of data, and not of floating numbers: one run says too little")
        return value

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs in the run; empty if none was needed."""
        if not self.ran or isinstance(self._values, str):
            return {}
        return {name: self._values[name].shape for name in self._model.main.inputs if name in self._values}

    @cached_property
    def _values(self) -> dict[str, Array] | str:
        """Of all tensors by name; or why not."""
        self.ran = True
        whole = self._model.loaded.copy()
        whole.proto = onnx.ModelProto()
        whole.proto.CopyFrom(self._model.proto)
        have = {output.name for output in whole.proto.graph.output}
        scope = self._model.main
        for name in scope.made:
            if name not in have and scope.constant(name) is None:
                whole.proto.graph.output.add().name = name
        reason = "its inputs cannot be made up"
        try:
            for feed in Feeds(self._model.loaded, None, self._shapes, self._seed):
                try:
                    found, _ = evaluators.evaluate(whole, feed)
                except CannotRun as error:
                    reason = str(error)
                    continue
                values = {**{k: v for k, v in found.items() if isinstance(v, np.ndarray)}, **feed}
                return {name: _type_and_shape(value) for name, value in values.items()}
        except UsageError:
            raise
        except (BnfoldError, MemoryError) as error:
            reason = str(error) or "not enough memory"
        return reason

    @cached_property
    def _of_shapes(self) -> frozenset[str]:
        return frozenset(_of_shapes(self._model.main))

    def trial(self, folded: Loaded) -> tuple[str, Entry | None]:
        """One run of both models.

        Returns:
            Why the folded model does not run where the original does, or "". And an entry of an output that
            is something else altogether, or None.
        """
        try:
            feeds = Feeds(self._model.loaded, None, self._shapes, self._seed)
            return "", _gross(run_pair(self._model.loaded, folded, feeds))
        except Broken as error:
            return str(error), None
        except (BnfoldError, MemoryError):  # the original does not run here either, and nothing is learned
            return "", None


def _type_and_shape(value: Array) -> Array:
    """Without the numbers, where these are floats: they need no memory so."""
    return np.broadcast_to(np.zeros((), value.dtype), value.shape) if is_float(value) else value


def _of_shapes(scope: Scope) -> set[str]:
    """Tensors that depend on shapes and constants only: whatever an input holds, they are the same."""
    found: set[str] = set()
    for node in scope.nodes:
        if node.control or node.random:
            continue
        if node.op in SHAPES or all(x in found or scope.constant(x) is not None for x in node.reads()):
            found.update(filter(None, node.outputs))
    return found


def _gross(ran: Ran) -> Entry | None:
    for name, value in ran.original.items():
        other = ran.folded.get(name)
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray) or not is_float(value):
            continue
        if value.shape != other.shape:
            continue
        x, y = wide(value), wide(other)
        if not x.size or not np.isfinite(x).all() or not np.isfinite(y).all():
            continue
        error = np.abs(x - y)
        if error.max() > GROSS * np.abs(x).max() > 0:
            at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            return Entry(f"the output {name}, run in float32,", at, float(y[at]), float(x[at]))
    return None
