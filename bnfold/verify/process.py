"""The comparison in a process of its own: a crash of what runs the models, or its hanging, ends in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.run import evaluators
from bnfold.onnx_graph.run.evaluators import CannotRun, OnnxRuntime, Outputs
from bnfold.onnx_graph.run.inputs import samples_of
from bnfold.options import Check
from bnfold.report.verification import Verification
from bnfold.verify import models
from bnfold.verify.child import Child, Crashed

__all__ = ["Evaluated", "arrays", "evaluate", "refused", "refused_by_crash", "verify"]


def verify(original: Loaded, folded: Loaded, check: Check) -> Verification:
    """`models.verify`, in a process of its own if the check says so.

    There, onnxruntime also opens the second model as it will be used, with its optimizer on; what it does not
    take is noted.

    Raises:
        BnfoldError: the original crashes what runs it, memory or the check's time ran out.
    """
    if not check.in_child:
        return models.verify(original, folded, check)
    with closing(Child(check.timeout)) as child:
        first, second = child.placed(original), child.placed(folded)
        job = replace(check, inputs=arrays(check.inputs))
        found: Verification
        try:
            found, crash = child.run(_verified, first, second, job)
        except Crashed as error:
            own: Verification = _of_original(child, _verified, first, first, job)
            reason = f"the second model crashes onnxruntime ({error}), and the original does not"
            return Verification([], own.evaluator, "failed", reason, own.rtol, own.atol)
        found.notes += refused_by_crash(child, first, crash)
        return found


class Evaluated(NamedTuple):
    """What a model gives. notes: on what onnxruntime's optimizer does not take."""

    outputs: Outputs
    evaluator: str
    notes: list[str]


def evaluate(model: Loaded, feed: Mapping[str, Any], check: Check, original: Loaded) -> Evaluated:
    """Run a model, in a process of its own if the check says so; there with the optimizer as well.

    Args:
        model: what to run.
        feed: arrays by input.
        check: whose `apart` and `timeout` count.
        original: what the model was made from, with the same inputs; it tells whose fault a crash is.

    Raises:
        CannotRun: nothing runs it. Crashed: it crashes onnxruntime, and the original does not.
        BnfoldError: as `verify`.
    """
    if not check.in_child:
        return Evaluated(*evaluators.evaluate(model, feed), [])
    with closing(Child(check.timeout)) as child:
        first, second = child.placed(original), child.placed(model)
        found: Evaluated
        try:
            found, crash = child.run(_evaluated, first, second, feed)
        except Crashed:
            _of_original(child, _evaluated, first, first, feed)
            raise
        found.notes.extend(refused_by_crash(child, first, crash))
        return found


def arrays(given: Any) -> Any:
    """Inputs as a child can have them."""
    if isinstance(given, Mapping):
        return {name: np.asarray(array) for name, array in given.items()}
    return None if given is None else samples_of(given)


def refused(first: Path, second: Path) -> list[str]:
    """What onnxruntime's optimizer says against the second model, as a note."""
    said = _refusal(second)
    if not said:
        return []
    which = "and the original, a fault of onnxruntime" if _refusal(first) else "and not the original"
    return [f"with its optimizer on, onnxruntime refuses the second model, {which}: {said}"]


def refused_by_crash(child: Child, first: Path, crash: str) -> list[str]:
    """The same, where a child crashed after its work, which is when it tries the optimizer."""
    if not crash:
        return []
    try:
        own, _ = child.run(_tried, first)
    except Crashed as error:
        own = str(error)
    which = "as on the original: a fault of onnxruntime" if own else "and not on the original"
    return [f"with its optimizer on, onnxruntime crashes ({crash}) on the second model, {which}"]


def _of_original(child: Child, *job: Any) -> Any:
    """Where a child crashed: whose crash it is, the original by itself tells; what it gives."""
    try:
        return child.run(*job)[0]
    except Crashed as error:
        said = f"onnxruntime crashes on the original model ({error}), so that nothing can be compared"
        raise BnfoldError(f"{said}; --no-verify (verify=False) does without") from None


# -- what the child does


def _verified(first: Path, second: Path, check: Check) -> Iterator[Verification]:
    found = models.verify(load(first), load(second), replace(check, apart=False, timeout=None))
    yield found
    if found.ok and found.evaluator.startswith(OnnxRuntime.label):
        found.notes += refused(first, second)
        yield found


def _evaluated(first: Path, second: Path, feed: Mapping[str, Any]) -> Iterator[Evaluated]:
    outputs, by = evaluators.evaluate(load(second), feed)
    yield Evaluated(outputs, by, [])
    if by.startswith(OnnxRuntime.label):
        yield Evaluated(outputs, by, refused(first, second))


def _tried(path: Path) -> Iterator[str]:
    yield _refusal(path)


def _refusal(path: Path) -> str:
    try:
        OnnxRuntime(load(path), optimized=True)
    except CannotRun as error:
        return str(error)
    return ""
