"""Two models side by side: the same inputs, the same evaluator, one after the other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import evaluators as run
from bnfold.onnx_graph.run import inputs
from bnfold.onnx_graph.run.evaluators import CannotRun, Evaluator, Outputs
from bnfold.onnx_graph.run.input_ranges import Range, inside, outside
from bnfold.onnx_graph.run.inputs import Given, Input
from bnfold.onnx_graph.run.widened import float64_copy, nodes
from bnfold.report.table import first

Array = np.ndarray[Any, Any]

# Seconds that the reference evaluator may take, by rough estimate: to compare at all, and to distinguish a
# fault from rounding.
PATIENCE, PATIENCE_FOR_ROUNDING = 600.0, 60.0


# Operators that draw random numbers, all with an attribute `seed` (an integer for Dropout, else a float).
_RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


class Broken(Exception):
    """The second model does not run where the first does; the message is the reason."""


class Feeds:
    """What to feed: what was given, or guesses until one runs.

    Raises:
        CannotRun: nothing was given, and the model does not say enough to guess.
        UsageError: what was given does not fit.
    """

    def __init__(
        self,
        model: Loaded,
        given: Given | None,
        shapes: Mapping[str, Sequence[int]] | None,
        seed: int,
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        self._shapes, self._seed, self._ranges = shapes, seed, ranges or {}
        self._positive = False
        self._growth, self._tried = inputs.growth(model), dict[str, None]()
        try:
            self._wanted: list[Input] = inputs.wanted(model)
            self._given = None if given is None else inputs.feed_from(self._wanted, given)
            if self._given is None:
                next(iter(self), None)
            elif text := outside(self._given, self._ranges):
                raise UsageError(text)
        except inputs.NoGuess as error:
            raise CannotRun(str(error)) from None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        if self._given is not None:
            yield self._given
        else:
            try:
                for feed in inputs.generate(self._wanted, self._seed, self._shapes, growth=self._growth):
                    yield inside(feed, self._ranges)
            except inputs.NoGuess as error:
                raise CannotRun(str(error)) from None

    def tried(self, feed: Mapping[str, Array]) -> None:
        """Remember the shapes of a guess for `advice`."""
        shapes = {i.name: "x".join(map(str, feed[i.name].shape)) for i in self._wanted if i.name in feed}
        self._tried[", ".join(f"{name} {shape}" for name, shape in shapes.items())] = None

    @property
    def advice(self) -> str:
        """What was tried in vain, and what to give; "" where there was no choice."""
        if len(self._tried) < 2:
            return ""
        free = [i for i in self._wanted if not all(isinstance(d, int) for d in i.dims or ())]
        shapes = [f"{i.name}:{','.join(str(d or '?') for d in i.dims or ())}" for i in free]
        flags = " ".join(f"--overwrite-input-shape {shape}" for shape in shapes)
        return f". Tried {first(list(self._tried), 4)}; give the right sizes (shapes=): {flags}"

    def positive(self, feed: Mapping[str, Array]) -> dict[str, Array] | None:
        """The same shapes with numbers from 0 to 1, where the feed was a guess."""
        if self._given is not None:
            return None
        self._positive = True
        return self.another(feed, 0)

    def another(self, feed: Mapping[str, Array], more: int) -> dict[str, Array] | None:
        """The same shapes with the numbers of a later seed; near to the feed's, where it was given."""
        if self._given is not None:
            found = inputs.near(feed, more)
            return None if found is None or outside(found, self._ranges) else found
        shapes = {name: array.shape for name, array in feed.items()}
        found = next(inputs.generate(self._wanted, self._seed + more, shapes, positive=self._positive), None)
        return None if found is None else inside(found, self._ranges)


@dataclass
class Ran:
    """Both models' outputs on one feed (for float32 copies, too, the feed of what they came from)."""

    original: Outputs
    folded: Outputs
    feed: Mapping[str, Array]
    evaluator: str
    refused: str = ""  # why an evaluator before this one does not run the original


def run_pair(
    a: Loaded,
    b: Loaded,
    feeds: Feeds | list[Mapping[str, Array]],
    *,
    as_float32: bool = False,
    patience: float = PATIENCE,
) -> Ran:
    """Both models in the first evaluator that can run the original, on the first feed that runs.

    as_float32: the models are float32 copies, and the feeds still in the type of what they came from.
    patience: seconds that the reference evaluator may take.

    Raises:
        CannotRun: no evaluator runs the original, or nothing finite comes out.
        Broken: the original runs, the other does not.
        UsageError: as CannotRun, while onnxruntime is not installed.
    """
    reasons = []
    for make in run.EVALUATORS:
        try:
            evaluator = make(a)
            feed, original = _first_that_runs(evaluator, feeds, as_float32, patience)
        except CannotRun as error:
            reasons.append(f"{make.label}: {error}")
            continue
        if not _has_finite(original):
            why = "every output is empty, NaN or infinite on these inputs, which shows nothing"
            raise CannotRun(f"{why}; give other inputs")
        name = evaluator.name
        del evaluator  # its weights make room for the other model's
        try:
            return Ran(original, make(b).run(_ready(feed, as_float32)), feed, name, "; ".join(reasons))
        except CannotRun as error:
            if _versions(a) == _versions(b) and not isinstance(error, run.NoMemory):
                reason = f"the second model does not run in {name}, where the first does: {error}"
                raise Broken(reason) from None
            reasons.append(f"{make.label}, the second model: {error}")
    if any(run.MISSING in reason for reason in reasons):
        raise UsageError(f"the models cannot be run to compare them: {'; '.join(reasons)}")
    raise CannotRun("; ".join(reasons) + (feeds.advice if isinstance(feeds, Feeds) else ""))


def _first_that_runs(
    evaluator: Evaluator, feeds: Feeds | list[Mapping[str, Array]], as_float32: bool, patience: float
) -> tuple[Mapping[str, Array], Outputs]:
    """The first feed that runs, and its outputs; where these are not finite, a feed of positive numbers."""
    problem = ""
    for feed in feeds:
        if isinstance(feeds, Feeds):
            feeds.tried(feed)
        ready = _ready(feed, as_float32)
        seconds = evaluator.seconds(ready)
        if seconds > patience:
            problem = problem or f"it would take about {seconds:.0f} s"
            continue
        try:
            outputs = evaluator.run(ready)
            finite = _has_finite(outputs)
        except (CannotRun, MemoryError) as error:
            problem = problem or str(error) or "not enough memory"
            continue
        other = feeds.positive(feed) if not finite and isinstance(feeds, Feeds) else None
        return (feed, outputs) if other is None else (other, evaluator.run(_ready(other, as_float32)))
    raise CannotRun(problem)


def _ready(feed: Mapping[str, Array], as_float32: bool) -> Mapping[str, Array]:
    return _cast(feed, ("float16", "bfloat16"), np.float32) if as_float32 else feed


def _cast(feed: Mapping[str, Array], names: tuple[str, ...], to: type[np.floating[Any]]) -> dict[str, Array]:
    return {k: array.astype(to) if array.dtype.name in names else array for k, array in feed.items()}


def _has_finite(value: Any) -> bool:
    """Whether anything in it is finite and can be compared."""
    if isinstance(value, dict):
        return any(_has_finite(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_finite(v) for v in value)
    if value is None:
        return False
    array = np.asarray(value)
    if array.dtype.kind in "biuOUS" or "int" in array.dtype.name:
        return bool(array.size)
    return bool(np.isfinite(array if array.dtype.kind == "c" else array.astype(np.float64)).any())


def seeded(loaded: Loaded) -> Loaded:
    """The model itself, or a copy in which random nodes draw the same numbers whatever is around them."""
    if not any(node.op_type in (*_RANDOM, "Dropout") for node in nodes(loaded.proto)):
        return loaded
    loaded = loaded.copy()
    for node in nodes(loaded.proto):
        if node.domain in ("", "ai.onnx") and not any(a.name == "seed" for a in node.attribute):
            seed = zlib.crc32(node.output[0].encode()) % 1000
            if node.op_type in _RANDOM:
                node.attribute.add(name="seed", type=onnx.AttributeProto.FLOAT, f=seed)
            elif (
                node.op_type == "Dropout" and len(node.input) > 2
            ):  # from opset 12 on, where it may be training
                node.attribute.add(name="seed", type=onnx.AttributeProto.INT, i=seed)
    return loaded


def in_float64(a: Loaded, feed: Mapping[str, Array]) -> tuple[Outputs | None, str]:
    """The original's outputs with next to no rounding, or None and why not."""
    try:
        seconds = run.reference_seconds(a, feed)
        if seconds > PATIENCE_FOR_ROUNDING:
            return None, f"in float64 it would take about {seconds:.0f} s"
        exact = run.Reference(float64_copy(a)).run(_cast(feed, ("float32",), np.float64))
    except CannotRun as error:
        return None, f"onnx reference evaluator: {error}"
    return exact, ""


def _versions(model: Loaded) -> tuple[int, frozenset[tuple[str, int]]]:
    return model.proto.ir_version, frozenset((o.domain, o.version) for o in model.proto.opset_import)
