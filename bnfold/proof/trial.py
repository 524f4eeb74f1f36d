"""A run of both models as a counterexample: what no rounding explains.

It never proves anything. What it shows is an output that is something else altogether, or that is off by far
more than what the original makes of the last bits of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.run import inputs
from bnfold.onnx_graph.run.evaluators import OnnxRuntime, Outputs
from bnfold.onnx_graph.run.side_by_side import Broken, Feeds, Ran, run_pair
from bnfold.onnx_graph.run.widened import nodes
from bnfold.proof.claims import Entry
from bnfold.proof.operator import Array, is_float, wide

__all__ = ["alike", "trial"]

GROSS = 0.05  # of the largest value: no rounding of stored numbers does that to a network that is of use
# Where a claim has failed: of the largest value, and of what the last bits of the inputs do, at least.
SMALL, TIMES, NUDGES = 1e-5, 256.0, 8
# What jumps where it is moved a little: a few nudges may all miss what rounding does to it.
JUMPS = frozenset(
    {
        *("ArgMax", "ArgMin", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater"),
        *("GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod", "NonMaxSuppression"),
        *("QuantizeLinear", "Round", "Sign", "TopK"),
    }
)
NARROW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def trial(original: Loaded, folded: Loaded, feeds: Feeds, suspect: bool) -> tuple[str, Entry | None]:
    """One run of both models.

    suspect: whether something is known to be wrong, so that smaller differences are worth a look.

    Returns:
        Why the folded model does not run where the original does, or "". And an entry of an output that
        rounding does not explain, or None.

    Raises:
        CannotRun, UsageError: the original does not run either.
    """
    try:
        ran = run_pair(original, folded, feeds)
    except Broken as error:
        return str(error), None
    found = _first(ran, dict.fromkeys(ran.original, GROSS))
    if found is not None or not suspect or _first(ran, dict.fromkeys(ran.original, SMALL)) is None:
        return "", found
    if not _smooth(original) or not _smooth(folded):
        return "", None
    return "", _first(ran, {name: max(SMALL, TIMES * own) for name, own in _own(original, ran).items()})


def alike(original: Loaded, folded: Loaded, feeds: Feeds, name: str, most: float) -> bool:
    """Whether one run of both models gives the same outputs, but for rounding.

    most: what any number of the output `name` may be off, however large the others are; of all outputs, if
    that is none.

    Raises:
        CannotRun, UsageError: the original does not run.
    """
    try:
        ran = run_pair(original, folded, feeds)
    except Broken:
        return False
    for output, value in ran.original.items():
        against = ran.folded.get(output)
        if not isinstance(value, np.ndarray) or not isinstance(against, np.ndarray):
            return False
        if value.shape != against.shape or value.dtype != against.dtype:
            return False
        x, y = wide(value), wide(against)
        limit = SMALL * np.abs(x[np.isfinite(x)]).max(initial=0.0)
        if output == name or name not in ran.original:
            limit = min(limit, most)
        if not np.allclose(x, y, rtol=0.0, atol=limit, equal_nan=True):
            return False
    return True


def _smooth(model: Loaded) -> bool:
    """Whether no operator jumps, and no number is narrower than those that are nudged."""
    for node in nodes(model.proto):
        types = {a.i for a in node.attribute if a.name == "to"} | {a.t.data_type for a in node.attribute}
        if node.op_type in JUMPS or types & NARROW:
            return False
    return not any(tensor.data_type in NARROW for tensor in model.proto.graph.initializer)


def _own(original: Loaded, ran: Ran) -> dict[str, float]:
    """How far each output moves with the last bits of the inputs, of its largest value."""
    evaluator, found = OnnxRuntime(original), dict[str, float]()
    for seed in range(NUDGES):
        feed = inputs.nudged(ran.feed, seed)
        if feed is None:
            break
        for name, error, largest in _errors(ran.original, evaluator.run(feed)):
            found[name] = max(found.get(name, 0.0), float(error.max()) / largest)
    return found


def _first(ran: Ran, limits: dict[str, float]) -> Entry | None:
    """The largest error of the first output that is off by more than its limit, of its largest value."""
    for name, error, largest in _errors(ran.original, ran.folded):
        if name in limits and error.max() > limits[name] * largest:
            at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
            got, want = (float(wide(np.asarray(outputs[name]))[at]) for outputs in (ran.folded, ran.original))
            return Entry(f"the output {name}, run in float32,", at, got, want)
    return None


def _errors(original: Outputs, other: Outputs) -> Iterator[tuple[str, Array, float]]:
    """By name, how far floating outputs are off that are finite, and their largest value."""
    for name, value in original.items():
        against = other.get(name)
        if not isinstance(value, np.ndarray) or not isinstance(against, np.ndarray) or not is_float(value):
            continue
        if value.shape != against.shape or not value.size:
            continue
        x, y = wide(value), wide(against)
        if np.isfinite(x).all() and np.isfinite(y).all() and (largest := float(np.abs(x).max())) > 0:
            yield name, np.abs(x - y), largest
