"""A folded float32 model in half precision: measured, rescaled, converted, and compared with float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, ModelError, UsageError, VerifyError
from bnfold.fold.graph import Array
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.model.scopes import default_opset
from bnfold.onnx_graph.read import analysed
from bnfold.onnx_graph.run import widened
from bnfold.onnx_graph.run.evaluators import CannotRun, OnnxRuntime
from bnfold.onnx_graph.run.side_by_side import Broken, Feeds, run_pair, seeded
from bnfold.options import PRECISIONS, Check, choice
from bnfold.passes.half.convert import converted, feeds_of, ranges_of, whole
from bnfold.passes.half.ranges import Range
from bnfold.passes.half.rounded import rounded_copy
from bnfold.report.precision import PrecisionReport
from bnfold.report.verification import OutputError
from bnfold.verify.child import Child, Crashed
from bnfold.verify.difference import SEEDS, TOLERANCES, Tolerance, compare, tolerance_of
from bnfold.verify.process import arrays, refused, refused_by_crash

__all__ = ["check", "convert", "converted_whole"]

RESULT = "half.onnx"
OLDEST = 7  # the opset from which on numpy's broadcasting is the operators'


def convert(
    loaded: Loaded,
    precision: str,
    how: Check = Check(),  # noqa: B008  (frozen)
    *,
    original: Loaded | None = None,
) -> tuple[Loaded, PrecisionReport]:
    """Write half precision into a model.

    Graph inputs and outputs stay float32. A node stays float32 where its operator does not take the type, or
    where the numbers leave the type's range; channels that do are rescaled first, where that is possible.

    Args:
        loaded: a float32 model, folded as a rule; it is not changed.
        precision: "fp16" or "bf16".
        original: the model before it was folded; it is what the result is compared with, and it is also
            converted as it is, to show what folding first saves. None: `loaded` is all there is.
        how: the inputs on which ranges are measured and the models compared; the tolerances; and whether to
            compare with float32. Ranges are measured in any case. If apart, all of it is done in a process of
            its own, and the result is also opened as it will be used, with onnxruntime's optimizer on.

    Returns:
        The converted model, and what became of it.

    Raises:
        UsageError: the precision is unknown, or the model computes in half precision already.
        ModelError: the model's operators are older than opset 7.
        VerifyError: an output is off by more than the tolerance; the message says by how much.
        BnfoldError: apart, what runs the models crashed, or memory or time ran out.
    """
    check(loaded, precision)
    return (_apart if how.in_child else _here)(loaded, precision, how, original)


def _here(
    loaded: Loaded, precision: str, how: Check, original: Loaded | None
) -> tuple[Loaded, PrecisionReport]:
    half = PRECISIONS[precision]
    report = PrecisionReport(half)
    if widened.rounds_to_integers(loaded):
        report.notes.append("the model is quantized: its types are left as they are")
        return loaded, report
    feeds = feeds_of(loaded, how.inputs, how.shapes, how.seed, report, how.ranges)
    result, feed, ranges = converted(loaded, feeds, report)
    if how.verify and feeds is not None and feed is not None:
        _compare(original or loaded, result, feeds, feed, report, how)
        if original is not None:
            _compare_convert_first(original, half, feed, ranges, report)
        if report.status == "failed":
            raise VerifyError(_too_far(report))
    return result, report


def _apart(
    loaded: Loaded, precision: str, how: Check, original: Loaded | None
) -> tuple[Loaded, PrecisionReport]:
    child = Child(how.timeout)
    first, source = child.placed(loaded), None if original is None else child.placed(original)
    job = replace(how, inputs=arrays(how.inputs), apart=False, timeout=None)
    report: PrecisionReport
    try:
        (changed, report), crash = child.run(_work, first, source, precision, job)
    except Crashed as error:
        said = f"onnxruntime crashes ({error}) on the model while it is measured for {precision}"
        raise BnfoldError(f"{said}; without half precision it is only folded") from None
    report.notes += refused_by_crash(child, source or first, crash)
    if not changed:
        return loaded, report
    result = load(child.folder / RESULT)
    result.holds = child  # its weights are in that folder
    return result, report


def _work(
    first: Path, source: Path | None, precision: str, how: Check
) -> Iterator[tuple[bool, PrecisionReport]]:
    """What the child does: whether something was converted, then into a file, and the report."""
    loaded = load(first)
    result, report = _here(loaded, precision, how, None if source is None else load(source))
    if result is loaded:
        yield False, report
        return
    save(result, Path(RESULT), external=True)
    yield True, report
    if report.evaluator.startswith(OnnxRuntime.label):
        report.notes += refused(source or first, Path(RESULT))
        yield True, report


def check(loaded: Loaded, precision: str) -> None:
    """Refuse, before any work, what cannot be converted; the errors of `convert`."""
    choice("precision", precision, PRECISIONS)
    working = widened.working_type(loaded)
    if working in PRECISIONS.values() and _computes_in(working, loaded):
        raise UsageError(
            f"the model computes in {working} already; precision={precision} starts from float32"
        )
    opset = default_opset(loaded.proto.opset_import)
    if 0 < opset < OLDEST:
        raise ModelError(
            f"half precision needs opset {OLDEST} or newer, and the model has {opset}: export it anew"
        )


def _computes_in(half: str, loaded: Loaded) -> bool:
    """Whether anything but stored values is of this type: weights may be stored so for a float32 model."""
    return any(
        value.dtype == half and constant_of(value) is None
        for scope in analysed(loaded).scopes
        for value in scope.values.values()
    )


def _too_far(report: PrecisionReport) -> str:
    """What a failed comparison says."""
    first = {error.name: error.max_rel for error in report.convert_first}
    parts = []
    for error in report.outputs:
        if not error.ok:
            size = f"{error.max_rel:.2g} of its largest value" if not error.note else error.note
            other = f" ({first[error.name]:.2g} if converted first)" if error.name in first else ""
            parts.append(f"{error.name} is off by {size}{other}")
    said = "; ".join(parts) or report.reason
    return (
        f"the {report.precision} model strays too far from the float32 model: {said}; {report.rtol:g} is "
        "allowed: allow more by rtol= (--check-rtol), or keep float32"
    )


def converted_whole(
    loaded: Loaded, precision: str, *, inputs: Any = None, seed: int = 0
) -> tuple[Loaded, PrecisionReport]:
    """The model with all of it in half precision, whatever its numbers: what `convert` is compared with."""
    check(loaded, precision)
    report = PrecisionReport(PRECISIONS[precision])
    ranges, _ = ranges_of(loaded, feeds_of(loaded, inputs, None, seed, report), report)
    return whole(loaded, ranges, report), report


def _compare(
    original: Loaded,
    result: Loaded,
    feeds: Feeds,
    feed: Mapping[str, Array],
    report: PrecisionReport,
    how: Check,
) -> None:
    """The converted model, rounded as a device rounds it, against the float32 model.

    Of the usual tolerance the largest rounding among many may go beyond by chance: then the median of three
    inputs decides.
    """
    tolerance = tolerance_of(report.precision, how)
    report.rtol, report.atol = tolerance.rtol, tolerance.atol
    one, other = seeded(original), rounded_copy(seeded(result))
    try:
        ran = run_pair(one, other, [feed])
        report.evaluator = ran.evaluator
        report.outputs = _errors(ran.original, ran.folded, tolerance)
        if not tolerance.given and not all(error.ok for error in report.outputs):
            found = [report.outputs]
            for more in range(1, SEEDS):
                if (another := feeds.another(feed, more)) is not None:
                    ran = run_pair(one, other, [another])
                    found.append(_errors(ran.original, ran.folded, tolerance))
            report.outputs = [_median(errors) for errors in zip(*found, strict=True)]
    except (CannotRun, UsageError) as reason:
        report.status, report.reason = "not run", str(reason)
        report.notes.append(f"not compared with float32: {reason}")
        return
    except Broken as reason:
        report.status, report.reason = "failed", str(reason)
        return
    bad = [error.name for error in report.outputs if not error.ok]
    report.status = "failed" if bad else "passed"
    report.reason = ", ".join(bad)


def _median(errors: tuple[OutputError, ...]) -> OutputError:
    return sorted(errors, key=lambda error: error.max_rel)[len(errors) // 2]


def _errors(exact: Mapping[str, Any], found: Mapping[str, Any], tolerance: Tolerance) -> list[OutputError]:
    return [error for name, value in exact.items() for error in compare(name, value, found[name], tolerance)]


def _compare_convert_first(
    original: Loaded,
    half: str,
    feed: Mapping[str, Array],
    ranges: Mapping[str, Range],
    report: PrecisionReport,
) -> None:
    """The same for the unfolded model, converted whole."""
    try:
        first = whole(original, ranges, PrecisionReport(half))
        ran = run_pair(seeded(original), rounded_copy(seeded(first)), [feed])
    except (BnfoldError, Broken) as reason:
        report.notes.append(f"the model could not be converted without folding it first: {reason}")
        return
    report.convert_first = _errors(ran.original, ran.folded, TOLERANCES[half])
