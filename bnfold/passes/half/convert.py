"""The steps of a conversion to half precision: ranges, opset, plain batch norms, rescaling, types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.fold.absorb.absorb import OutOfRange, absorb
from bnfold.fold.carry.spread import State
from bnfold.fold.graph import Array, Graph, Tensor
from bnfold.fold.rescale.fit_range import RescaledTensor, fit, makers, troubled
from bnfold.fold.rescale.headroom import BFLOAT16, FLOAT16, Narrow
from bnfold.onnx_graph.annotations import drop_annotations
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.constants import constant_of
from bnfold.onnx_graph.model.scopes import default_opset
from bnfold.onnx_graph.read import analysed, read
from bnfold.onnx_graph.run.evaluators import CannotRun
from bnfold.onnx_graph.run.side_by_side import Feeds
from bnfold.onnx_graph.write import apply
from bnfold.passes.half.opset import raised
from bnfold.passes.half.plain_norms import make_plain
from bnfold.passes.half.plan import MARGIN, plan
from bnfold.passes.half.ranges import Range, carried, measure
from bnfold.passes.half.slots import typeless
from bnfold.passes.half.write import write
from bnfold.report.data import Span
from bnfold.report.precision import KeptNode, PrecisionReport, Rescaled

__all__ = ["converted", "feeds_of", "ranges_of", "whole"]

BFLOAT16_FROM = 22  # the opset in which the last of the common operators, Conv and the pools, takes it
STAYS = "the opset stays"
TYPES = {"float16": FLOAT16, "bfloat16": BFLOAT16}


def feeds_of(
    loaded: Loaded,
    inputs: Any,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
    report: PrecisionReport,
    value_ranges: Mapping[str, tuple[Any, Any]] | None = None,
) -> Feeds | None:
    """The inputs on which ranges are measured; None, and why in the report, where the model cannot be fed."""
    try:
        return Feeds(loaded, inputs, shapes, seed, value_ranges)
    except CannotRun as reason:
        report.reason = str(reason)
        return None


def converted(
    loaded: Loaded, feeds: Feeds | None, report: PrecisionReport
) -> tuple[Loaded, Mapping[str, Array] | None, Mapping[str, Range]]:
    """The steps: ranges, opset, plain batch norms, rescaling, types.

    Returns:
        The converted model (`loaded` itself if nothing became half), the inputs on which ranges were
        measured (None: they were not), and the ranges of `loaded`.
    """
    ranges, feed = ranges_of(loaded, feeds, report)
    model = loaded.copy()
    opset = _raise_opset(model, report.precision, ranges)
    make_plain(model)
    _write(model, _rescale(model, ranges, report), report)
    if report.half:
        report.notes += [opset] if opset else []
        return model, feed, ranges
    nothing = f"nothing became {report.precision}: the model is as it was"
    report.notes += [opset, nothing] if opset.startswith(STAYS) else [nothing]
    report.rescaled, report.casts, report.factors = [], 0, {}
    return loaded, feed, ranges


def whole(loaded: Loaded, ranges: Mapping[str, Range], report: PrecisionReport) -> Loaded:
    """A copy converted as a whole, whatever the numbers are: what a plain converter makes of it."""
    result = loaded.copy()
    _raise_opset(result, report.precision, ranges)
    _write(result, {}, report, guarded=False)
    return result


def _raise_opset(model: Loaded, half: str, ranges: Mapping[str, Range]) -> str:
    """What became of the opset, in words; "" if it may stay."""
    opset = default_opset(model.proto.opset_import)
    if half != "bfloat16" or opset >= BFLOAT16_FROM:
        return ""
    why = raised(model, BFLOAT16_FROM, {name: len(seen.shape) for name, seen in ranges.items()})
    if why:
        fewer = f"{STAYS} {opset}, in which fewer operators take bfloat16: {why}"
        return f"{fewer}; export with opset {BFLOAT16_FROM} for all of them"
    return f"opset {opset} became {BFLOAT16_FROM}, from which on convolutions take bfloat16"


def ranges_of(
    model: Loaded, feeds: Any, report: PrecisionReport
) -> tuple[dict[str, Range], Mapping[str, Array] | None]:
    """What was seen of each tensor of the graph, and on which inputs."""
    if feeds is None:
        report.notes.append(f"ranges were not measured, and nothing was compared: {report.reason}")
        return {}, None
    values = [
        value
        for value in analysed(model).scopes[0].values.values()
        if value.dtype == "float32" and value.site is not None and constant_of(value) is None
    ]
    problems: list[str] = []
    for feed in feeds:
        try:
            return measure(model, values, feed), feed
        except CannotRun as error:
            problems.append(str(error))
    report.reason = next(iter(problems), "")
    report.notes.append(f"ranges were not measured, and nothing was compared: {report.reason}")
    return {}, None


def _rescale(model: Loaded, ranges: Mapping[str, Range], report: PrecisionReport) -> Mapping[str, Range]:
    """Bring channels into range, in float32 still; the ranges that they have then."""
    graph = read(model)
    result = fit(graph, _seen(ranges), TYPES[report.precision], MARGIN)
    report.stuck = result.stuck
    if not result.moved:
        return ranges
    try:
        edits = absorb(graph, result.state)
    except OutOfRange as error:
        report.stuck.append((error.node.name, error.reason))
        return ranges
    report.rescaled = [_rescaled(moved) for moved in result.moved]
    report.factors = factors = {tensor.name: factor for tensor, factor in result.state.p.items()}
    apply(model, graph, edits)
    drop_annotations(model, lambda key: key[1] in factors)
    return {n: carried(seen, factors[n]) if n in factors else seen for n, seen in ranges.items()}


def _seen(ranges: Mapping[str, Range]) -> Any:
    def seen(tensor: Tensor, axis: int) -> Array | None:
        found = ranges.get(tensor.name)
        return None if found is None else found.channels.get(axis)

    return seen


def _rescaled(moved: RescaledTensor) -> Rescaled:
    def spans(pair: tuple[Array, Array] | None) -> tuple[Span | None, Span | None]:
        if pair is None:
            return None, None
        before, after = (Span(float(a.min()), float(a.max())) for a in pair)
        return before, after

    return Rescaled(
        moved.tensor.name, moved.channels, moved.factors.tolist(), *spans(moved.values), *spans(moved.weights)
    )


def _write(model: Loaded, ranges: Mapping[str, Range], report: PrecisionReport, guarded: bool = True) -> None:
    """Types and Casts. Without `guarded`, as a converter does it that does not look at numbers."""
    half, narrow = report.precision, TYPES[report.precision]
    outside = _outside(read(model), ranges, narrow) if guarded else {}
    root = analysed(model).scopes[0]
    by_name = {site.name: site for site in root.sites}
    reasons = {by_name[name]: reason for name, reason in outside.items() if name in by_name}
    chosen = plan(root, narrow, ranges, reasons, typeless(root, half), guarded=guarded)
    report.casts = write(root, chosen, half)
    report.half = sum(chosen.is_half(site) and bool(any(chosen.slots[site])) for site in chosen.slots)
    report.kept = [KeptNode(site.name, site.op, reason) for site, reason in chosen.stays.items()]


def _outside(graph: Graph, ranges: Mapping[str, Range], narrow: Narrow) -> dict[str, str]:
    """Nodes whose weights or inputs the type cannot hold, by name, and those that make such inputs."""
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
