"""A folded float32 model in half precision: measured, rescaled, converted, and compared with float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import BnfoldError, ModelError, UsageError, VerifyError
from bnfold.precision_report import Kept, PrecisionReport, Rescaled, Span

if TYPE_CHECKING:
    from bnfold.fold.fit import Moved
    from bnfold.fold.graph import Array, Graph, Tensor
    from bnfold.fold.narrow import Narrow
    from bnfold.onnx_graph.files import Loaded
    from bnfold.onnx_graph.ranges import Range
    from bnfold.onnx_graph.side_by_side import Feeds

__all__ = ["PRECISIONS", "check", "convert"]

PRECISIONS = {"fp16": "float16", "bf16": "bfloat16"}
OLDEST = 7  # the opset from which on numpy's broadcasting is the operators'
BFLOAT16_FROM = 22  # the opset in which the last of the common operators, Conv and the pools, takes it


def convert(
    loaded: Loaded,
    precision: str,
    *,
    original: Loaded | None = None,
    inputs: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    verify: bool = True,
) -> tuple[Loaded, PrecisionReport]:
    """Write half precision into a model.

    Graph inputs and outputs stay float32. A node stays float32 where its operator does not take the type, or
    where the numbers leave the type's range; channels that do are rescaled first, where that is possible.

    Args:
        loaded: a float32 model, folded as a rule; it is not changed.
        precision: "fp16" or "bf16".
        original: the model before it was folded; it is what the result is compared with, and it is also
            converted as it is, to show what folding first saves. None: `loaded` is all there is.
        inputs: arrays by input name on which ranges are measured and the models compared; None: generated.
        shapes: sizes of generated inputs by name.
        seed: of the generated inputs.
        rtol: max|difference| may be atol + rtol * max|output|; None: by type (`difference.TOLERANCES`).
        atol: as rtol.
        verify: compare with float32. Ranges are measured in any case.

    Returns:
        The converted model, and what became of it.

    Raises:
        UsageError: the precision is unknown, or the model computes in half precision already.
        ModelError: the model's operators are older than opset 7.
        VerifyError: an output is off by more than the tolerance; the message has the report.
    """
    from bnfold.onnx_graph import precision as types

    check(loaded, precision)
    half = PRECISIONS[precision]
    report = PrecisionReport(half)
    if types.rounds_to_integers(loaded):
        report.notes.append("the model is quantized: its types are left as they are")
        return loaded, report
    feeds = _feeds(loaded, inputs, shapes, seed, report)
    result, feed, ranges = _converted(loaded.copy(), half, feeds, report)
    if not report.half:
        report.notes.append(f"nothing became {half}: the model is as it was")
    if verify and feed is not None:
        _compare(original or loaded, result, feed, report, rtol, atol)
        if original is not None:
            _compare_convert_first(original, half, feed, ranges, report)
        if report.status == "failed":
            raise VerifyError(
                f"the {half} model strays too far from the float32 model; allow more by --check-rtol, "
                f"or keep float32\n{report}"
            )
    return result, report


def check(loaded: Loaded, precision: str) -> None:
    """Refuse, before any work, what cannot be converted; the errors of `convert`."""
    from bnfold.onnx_graph.precision import working_type
    from bnfold.onnx_graph.scopes import default_opset

    if precision not in PRECISIONS:
        raise UsageError(
            f"precision={precision!r} is unknown. Note: valid choices are {', '.join(PRECISIONS)}"
        )
    working = working_type(loaded)
    if working in PRECISIONS.values():
        raise UsageError(
            f"the model computes in {working} already; precision={precision} starts from float32"
        )
    opset = default_opset(loaded.proto.opset_import)
    if 0 < opset < OLDEST:
        raise ModelError(
            f"half precision needs opset {OLDEST} or newer, and the model has {opset}: export it anew"
        )


def _feeds(
    loaded: Loaded,
    inputs: Any,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    report: PrecisionReport,
) -> Feeds | None:
    from bnfold.onnx_graph.side_by_side import Feeds, NotRun

    try:
        return Feeds(loaded, inputs, shapes, seed)
    except NotRun as reason:
        report.reason = str(reason)
        return None


def _converted(
    model: Loaded, half: str, feeds: Feeds | None, report: PrecisionReport
) -> tuple[Loaded, Mapping[str, Array] | None, Mapping[str, Range]]:
    """The steps: ranges, opset, plain batch norms, rescaling, types."""
    from bnfold.onnx_graph.plain_norms import make_plain

    ranges, feed = _ranges(model, feeds, report)
    _raise_opset(model, half, ranges, report)
    make_plain(model)
    narrow = _narrow(half)
    _write(model, half, _rescale(model, ranges, narrow, report), report)
    return model, feed, ranges


def _narrow(half: str) -> Narrow:
    from bnfold.fold.narrow import BFLOAT16, FLOAT16

    return FLOAT16 if half == "float16" else BFLOAT16


def _raise_opset(model: Loaded, half: str, ranges: Mapping[str, Range], report: PrecisionReport) -> None:
    from bnfold.onnx_graph.opset import raised
    from bnfold.onnx_graph.scopes import default_opset

    opset = default_opset(model.proto.opset_import)
    if half != "bfloat16" or opset >= BFLOAT16_FROM:
        return
    why = raised(model, BFLOAT16_FROM, {name: len(seen.shape) for name, seen in ranges.items()})
    if why:
        told = f"the opset stays {opset}, in which fewer operators take bfloat16: {why}"
        report.notes.append(f"{told}; export with opset {BFLOAT16_FROM} for all of them")
    else:
        report.notes.append(f"opset {opset} became {BFLOAT16_FROM}, from which on convolutions take bfloat16")


def _ranges(
    model: Loaded, feeds: Any, report: PrecisionReport
) -> tuple[dict[str, Range], Mapping[str, Array] | None]:
    """What was seen of each tensor of the graph, and on which inputs."""
    from bnfold.onnx_graph.constants import constant_of
    from bnfold.onnx_graph.ranges import measure
    from bnfold.onnx_graph.run import CannotRun
    from bnfold.onnx_graph.scopes import build
    from bnfold.onnx_graph.shapes import infer

    if feeds is None:
        report.notes.append(f"ranges were not measured, and nothing was compared: {report.reason}")
        return {}, None
    graph, scopes = build(model, "duplicate")
    infer(graph, scopes)
    values = [
        value
        for value in scopes[0].values.values()
        if value.dtype == "float32" and value.site is not None and constant_of(value) is None
    ]
    problem = ""
    for feed in feeds:
        try:
            return measure(model, values, feed), feed
        except CannotRun as error:
            problem = problem or str(error)
    report.reason = problem
    report.notes.append(f"ranges were not measured, and nothing was compared: {problem}")
    return {}, None


def _rescale(
    model: Loaded, ranges: Mapping[str, Range], narrow: Narrow, report: PrecisionReport
) -> Mapping[str, Range]:
    """Bring channels into range, in float32 still; the ranges that they have then."""
    from bnfold.fold.absorb import OutOfRange, absorb
    from bnfold.fold.fit import fit
    from bnfold.onnx_graph.half_plan import MARGIN
    from bnfold.onnx_graph.ranges import carried
    from bnfold.onnx_graph.read import read
    from bnfold.onnx_graph.write import apply

    graph = read(model)
    result = fit(graph, _seen(ranges), narrow, MARGIN)
    report.stuck = result.stuck
    if not result.moved:
        return ranges
    try:
        edits = absorb(graph, result.state)
    except OutOfRange as error:
        report.stuck.append((error.node.name, error.reason))
        return ranges
    report.rescaled = [_told(moved) for moved in result.moved]
    factors = {tensor.name: factor for tensor, factor in result.state.p.items()}
    apply(model, graph, edits)
    return {n: carried(seen, factors[n]) if n in factors else seen for n, seen in ranges.items()}


def _seen(ranges: Mapping[str, Range]) -> Any:
    def seen(tensor: Tensor, axis: int) -> Array | None:
        found = ranges.get(tensor.name)
        return None if found is None else found.channels.get(axis)

    return seen


def _told(moved: Moved) -> Rescaled:
    def spans(pair: tuple[Array, Array] | None) -> tuple[Span | None, Span | None]:
        if pair is None:
            return None, None
        before, after = (Span(float(a.min()), float(a.max())) for a in pair)
        return before, after

    return Rescaled(
        moved.tensor.name, moved.channels, moved.factors.tolist(), *spans(moved.values), *spans(moved.weights)
    )


def _write(
    model: Loaded,
    half: str,
    ranges: Mapping[str, Range],
    report: PrecisionReport | None,
    guarded: bool = True,
) -> None:
    """Types and Casts. Without `guarded`, as a converter does it that does not look at numbers."""
    from bnfold.onnx_graph import half as writer
    from bnfold.onnx_graph.half_functions import typeless
    from bnfold.onnx_graph.half_plan import plan
    from bnfold.onnx_graph.read import read
    from bnfold.onnx_graph.scopes import build
    from bnfold.onnx_graph.shapes import infer

    narrow = _narrow(half)
    troubled = _troubled(read(model), ranges, narrow) if guarded else {}
    graph, scopes = build(model, "duplicate")
    infer(graph, scopes)
    root = scopes[0]
    by_name = {site.name: site for site in root.sites}
    reasons = {by_name[name]: reason for name, reason in troubled.items() if name in by_name}
    chosen = plan(root, narrow, ranges, reasons, typeless(root, half), guarded=guarded)
    casts = writer.write(root, chosen, half)
    if report is not None:
        report.casts = casts
        report.half = sum(chosen.is_half(site) and bool(any(chosen.slots[site])) for site in chosen.slots)
        report.kept = [Kept(site.name, site.op, reason) for site, reason in chosen.stays.items()]


def _troubled(graph: Graph, ranges: Mapping[str, Range], narrow: Narrow) -> dict[str, str]:
    """Nodes whose weights or inputs the type cannot hold, by name, and those that make such inputs."""
    from bnfold.fold.fit import makers, troubled
    from bnfold.fold.transact import State

    found: dict[str, str] = {}
    for node, head in troubled(graph, State(), _seen(ranges), narrow).items():
        name = narrow.name
        for where, what in (
            (head.overflowing, f"a weight would overflow {name}"),
            (head.vanishing, f"the weights would vanish in {name}"),
            (head.fading, f"an input channel is too small for {name}, and this node makes it large"),
        ):
            if where.any():
                channel = int(np.argmax(where))
                found[node.name] = f"channel {channel}: {what}"
        if head.fading.any():
            for maker in makers(node):
                found.setdefault(maker.name, f"makes a channel that {node.name} needs exactly")
    return found


def _compare(
    original: Loaded,
    result: Loaded,
    feed: Mapping[str, Array],
    report: PrecisionReport,
    rtol: float | None,
    atol: float | None,
) -> None:
    """The converted model, rounded as a device rounds it, against the float32 model."""
    from bnfold.difference import TOLERANCES, Tolerance
    from bnfold.onnx_graph.rounded import rounded_copy
    from bnfold.onnx_graph.side_by_side import Broken, NotRun, run_pair, seeded

    usual = TOLERANCES[report.precision]
    tolerance = Tolerance(
        usual.rtol if rtol is None else rtol, usual.atol if atol is None else atol, usual.why
    )
    report.rtol, report.atol = tolerance.rtol, tolerance.atol
    try:
        ran = run_pair(seeded(original), rounded_copy(seeded(result)), [feed])
    except (NotRun, UsageError) as reason:
        report.status, report.reason = "not run", str(reason)
        report.notes.append(f"not compared with float32: {reason}")
        return
    except Broken as reason:
        report.status, report.reason = "failed", str(reason)
        return
    report.evaluator = ran.evaluator
    report.outputs = _errors(ran.original, ran.folded, tolerance)
    bad = [error.name for error in report.outputs if not error.ok]
    report.status = "failed" if bad else "passed"
    report.reason = f"{', '.join(bad)}" if bad else ""


def _errors(exact: Mapping[str, Any], found: Mapping[str, Any], tolerance: Any) -> list[Any]:
    from bnfold.difference import compare

    errors = []
    for name, value in exact.items():
        errors += compare(name, value, found[name], tolerance)
    return errors


def _compare_convert_first(
    original: Loaded,
    half: str,
    feed: Mapping[str, Array],
    ranges: Mapping[str, Range],
    report: PrecisionReport,
) -> None:
    """The same for the unfolded model, converted whole."""
    from bnfold.difference import TOLERANCES
    from bnfold.onnx_graph.rounded import rounded_copy
    from bnfold.onnx_graph.side_by_side import Broken, NotRun, run_pair, seeded

    first = original.copy()
    try:
        _raise_opset(first, half, ranges, PrecisionReport(half))
        _write(first, half, {}, None, guarded=False)
        ran = run_pair(seeded(original), rounded_copy(seeded(first)), [feed])
    except (BnfoldError, Broken, NotRun) as reason:
        report.notes.append(f"the model could not be converted without folding it first: {reason}")
        return
    report.convert_first = _errors(ran.original, ran.folded, TOLERANCES[half])
