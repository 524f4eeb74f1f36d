"""What is known of the original's tensors from one run of it: their types and shapes, and integers made of
shapes.

Nothing is compared here but in the end: whether the folded model runs at all where the original does, and
whether a run is a counterexample (trial.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx

from bnfold.errors import BnfoldError, UsageError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import evaluators, inputs
from bnfold.onnx_graph.run.evaluators import CannotRun, OnnxRuntime
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.proof.claims import Entry
from bnfold.proof.graph import FileNode, FileScope, Model
from bnfold.proof.infer import inferred, integers, of_shapes
from bnfold.proof.operator import Array, Undecided, is_float
from bnfold.proof.scope import LARGEST, Scope
from bnfold.proof.trial import alike, trial

__all__ = ["KnownOfFile"]


class KnownOfFile:
    """Types and shapes: inferred, and what cannot be, from one run of the original, made when it is needed.

    shapes: of inputs, where the model leaves them open. premises: what inputs keep to.
    """

    def __init__(
        self,
        model: Model,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
        premises: Mapping[str, tuple[Array, Array]] | None = None,
    ) -> None:
        self._model, self._shapes, self._seed, self._premises = model, shapes, seed, premises
        self.sizes: dict[str, tuple[int, ...]] = {}  # of the inputs, where shapes were needed
        self.work = 0.0  # multiplications of all that was evaluated
        self._tried: tuple[str, Entry | None] | None = None

    def value(self, name: str, path: str = "") -> Array:
        """Zeros of the type and shape of a tensor of floats; integers and truth values as they are.

        path: of the scope that it is in.

        Raises:
            Undecided: nothing is known of it, or its integers depend on more than shapes.
        """
        value = self._inferred.get(path + name)
        if value is None:
            if isinstance(self._found, str):
                raise Undecided(
                    f"the original cannot be run, and the shape of {name} is not known: {self._found}"
                )
            value = self._found.get(path + name)
        if value is None:
            raise Undecided(f"the shape of {name} is not known")
        if value.size > LARGEST:
            raise Undecided(f"{name} has too many numbers to make up: {list(value.shape)}")
        if not is_float(value) and name not in self._of_shapes:
            raise Undecided(f"{name} is made of data, and not of floating numbers: one run says too little")
        return value

    @cached_property
    def _inferred(self) -> dict[str, Array]:
        """Floats and what is made of shapes, of a model whose inputs have one size; other sizes are tried out
        first.
        """
        try:
            wanted = inputs.wanted(self._model.loaded)
        except UsageError:
            return {}
        if self._shapes or any(i.dims is None or not all(isinstance(d, int) for d in i.dims) for i in wanted):
            return {}
        self.sizes = {i.name: tuple(d for d in i.dims or () if isinstance(d, int)) for i in wanted}
        found = inferred(self._model, self.sizes)
        return found | integers(self._model.main, self._of_shapes, found)

    @cached_property
    def _found(self) -> dict[str, Array] | str:
        """Of all tensors by name; or why not."""
        reason = "its inputs cannot be made up"
        try:
            for proto, feed in ((proto, feed) for proto in _runnable(self._model) for feed in self._feeds()):
                sizes = {name: value.shape for name, value in feed.items()}
                known = inferred(self._model, sizes)
                loaded, have = self._model.loaded.copy(), {output.name for output in proto.graph.output}
                loaded.proto = onnx.ModelProto()
                loaded.proto.CopyFrom(proto)
                for name in (name for node in proto.graph.node for name in node.output if name):
                    if name not in have and name not in known and self._model.main.constant(name) is None:
                        loaded.proto.graph.output.add().name = name
                try:
                    run, _ = evaluators.evaluate(loaded, feed)
                except CannotRun as error:
                    reason = str(error)
                    continue
                self.sizes = sizes
                values = {**{k: v for k, v in run.items() if isinstance(v, np.ndarray)}, **feed}
                return known | {name: _type_and_shape(value) for name, value in values.items()}
        except UsageError:
            raise
        except (BnfoldError, MemoryError) as error:
            reason = str(error) or "not enough memory"
        return reason

    def _feeds(self) -> Feeds:
        return Feeds(self._model.loaded, None, self._shapes, self._seed, self._premises)

    @cached_property
    def _of_shapes(self) -> frozenset[str]:
        return frozenset(of_shapes(self._model.main))

    def runs(self, folded: Loaded) -> tuple[bool, str]:
        """Whether the folded model runs; and why it does not where the original does, or ""."""
        try:
            sizes = self.sizes
            feed = next(
                feed
                for feed in self._feeds()
                if all(feed[n].shape == s for n, s in sizes.items() if n in feed)
            )
            OnnxRuntime(folded).run(feed)
            return True, ""
        except (BnfoldError, MemoryError, StopIteration):
            return False, self.trial(folded)[0]

    def counterexample(self, other: Scope) -> Entry | None:
        """See `scope.Known`."""
        assert isinstance(other, FileScope)
        return self.trial(other.model.loaded, suspect=True)[1]

    def trial(self, folded: Loaded, suspect: bool = False) -> tuple[str, Entry | None]:
        """One run of both models, as `trial.trial`; not again, if it was asked for all that it can tell."""
        if self._tried is not None:
            return self._tried
        try:
            found = trial(self._model.loaded, folded, self._feeds(), suspect)
        except (BnfoldError, MemoryError):  # the original does not run here either, and nothing is learned
            found = "", None
        self._tried = found if suspect else None
        return found

    def alike(self, folded: Loaded, name: str, most: float) -> bool:
        """As `trial.alike`; not so where there is no run."""
        try:
            return alike(self._model.loaded, folded, self._feeds(), name, most)
        except (BnfoldError, MemoryError):
            return False


def _runnable(model: Model) -> Iterator[onnx.ModelProto]:
    """The model; and if that cannot be run, what of it does not depend on custom operators."""
    yield model.proto
    lost, left = set[str](), list[onnx.NodeProto]()
    for node in model.main.nodes:
        assert isinstance(node, FileNode)
        if node.operator.custom or not lost.isdisjoint(node.reads()):
            lost.update(node.outputs)
        else:
            left.append(node.proto)
    if lost:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        outputs = [output for output in proto.graph.output if output.name not in lost]
        for entries, kept in ((proto.graph.node, left), (proto.graph.output, outputs)):
            del entries[:]
            entries.extend(kept)
        yield proto


def _type_and_shape(value: Array) -> Array:
    """Without the numbers, where these are floats: they need no memory so."""
    return np.broadcast_to(np.zeros((), value.dtype), value.shape) if is_float(value) else value
