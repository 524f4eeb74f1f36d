"""Weight ranges of a folded model balanced for int8: the solver's choice, written and reported.

A Clip has one bound for all channels. Where its channels are carried at different sizes, Max and Min with
bounds for each channel follow it, and the Clip keeps the outermost of them: it could go, or be a Relu, but a
quantizer that sees a Clip behind a convolution knows where the convolution's range ends.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import numpy as np

from bnfold.fold.absorb.absorb import OutOfRange, absorb
from bnfold.fold.carry.spread import State
from bnfold.fold.edits import Edit, SetValue
from bnfold.fold.graph import Array, Graph, Node
from bnfold.fold.rescale.equalize import Equalized, NotRescaled, equalize
from bnfold.fold.rescale.int8_loss import WeightSizes
from bnfold.fold.roles import Clamp
from bnfold.onnx_graph.annotations import drop_annotations
from bnfold.onnx_graph.describe import Sketch
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.new_nodes import append
from bnfold.onnx_graph.model.scopes import without_gc
from bnfold.onnx_graph.model.surgery import Surgery
from bnfold.onnx_graph.read import analysed, read
from bnfold.onnx_graph.site import FLOATS, Site, numpy_dtype
from bnfold.onnx_graph.write import apply
from bnfold.report.data import Span
from bnfold.report.equalize import EqualizeReport, KeptTensor, LayerRanges, RescaledRegion

__all__ = ["balance"]

PER_CHANNEL = "--split-relu6, split_relu6=True: bounds for each channel"
BROADCASTS_FROM = 8  # the opset from which on Max and Min do
Bounds: TypeAlias = "dict[str, tuple[Array, Array]]"  # of Clips by name: lower and upper ones, of its rank


def balance(
    loaded: Loaded, split_relu6: bool, shared: str, report: EqualizeReport, sketch: Sketch | None = None
) -> Loaded:
    """Balance the weight ranges of a folded model in place, and fill in the report.

    split_relu6: a Clip may be given bounds for each channel. shared: as for `read`. sketch: is shown the
    model before it is changed.
    """
    graph = read(loaded, shared=shared)
    if sketch is not None:
        sketch.draw(loaded, graph)
    clips = [node for node in graph.nodes if isinstance(node.role, Clamp) and _can_split(node)]
    barred: dict[Node, str] = {}
    while True:  # each time a layer is left alone that was not before
        found = equalize(graph, split=clips if split_relu6 else (), barred=barred)
        bounds = _bounds_of(graph, found.state)
        try:
            edits = _edits_of(graph, found.state, bounds)
            break
        except OutOfRange as error:
            if error.node in barred:
                raise
            barred[error.node] = error.reason
    _describe(report, found, {node.name for node in clips} if not split_relu6 else set())
    report.split = list(bounds)
    moved = {tensor.name for tensor in found.state.p}
    apply(loaded, graph, edits)
    drop_annotations(loaded, lambda key: key[1] in moved)
    _split(loaded, bounds)
    return loaded


def _can_split(node: Node) -> bool:
    """Whether a Clip of the main graph may be given bounds for each channel."""
    site: Site = node.source
    return (
        site.op == "Clip"
        and site.opset >= BROADCASTS_FROM
        and site.scope is site.scope.model.scopes[0]
        and site.dtype(0) in FLOATS
    )


def _bounds_of(graph: Graph, state: State) -> Bounds:
    """The Clips whose channels are carried at different sizes, and what their bounds become."""
    bounds: Bounds = {}
    for node in graph.nodes:
        role = node.role
        p = state.p.get(node.at(0)) if isinstance(role, Clamp) else None
        if isinstance(role, Clamp) and p is not None and _varies(p):
            low, high = role.low * p, role.high * p
            if _varies(low) or _varies(high):
                bounds[node.name] = (low, high)
    return bounds


def _varies(array: Array) -> bool:
    return bool((array != array.flat[0]).any())


def _edits_of(graph: Graph, state: State, bounds: Bounds) -> list[Edit]:
    """What the writer has to do; the Clips in `bounds` keep the outermost of theirs."""
    own = dict.fromkeys(n for n in graph.nodes if isinstance(n.role, Clamp) and n.name in bounds)
    edits: list[Edit] = [edit for edit in absorb(graph, state) if edit.node not in own]
    for node in own:
        role, (low, high) = node.role, bounds[node.name]
        assert isinstance(role, Clamp)
        for key, new, old in zip(role.keys, (low.min(), high.max()), (role.low, role.high), strict=True):
            if new != old:
                edits.append(SetValue(node, key, np.asarray(new, np.float64)))
    return edits


def _split(loaded: Loaded, bounds: Bounds) -> None:
    """Let Max and Min follow the Clips that have bounds for each channel."""
    if not bounds:
        return
    with without_gc():
        model = analysed(loaded)
        surgery = Surgery(model)
        for site in list(model.scopes[0].sites):
            if site.name in bounds:
                _follow(surgery, site, *bounds[site.name])
        surgery.finish()


def _follow(surgery: Surgery, site: Site, low: Array, high: Array) -> None:
    """Max and Min behind a Clip; the last of them gives what the Clip gave, under the same name."""
    y, dtype = site.outputs[0], numpy_dtype(site.dtype(0))
    assert y is not None
    for op, bound in (("Max", low), ("Min", high)):
        if _varies(bound):
            stored = surgery.constant(f"{y.name}_{op.lower()}", bound.astype(dtype), site)
            name = surgery.name(f"{site.node.name or y.name}_{op.lower()}")
            append(surgery, y, f"{y.name}_clip", (op, name), [stored], site)


def _describe(report: EqualizeReport, found: Equalized, clips: Collection[str]) -> None:
    """What was found, in names and numbers. clips: those that could be split, and may not."""
    before = State()
    report.layers = [_ranges(layer, before, found.state) for layer in found.layers]
    report.bits_before, report.bits_after = found.before, found.after
    for region in found.regions:
        which = np.flatnonzero(region.factors != 1)
        names = ([node.name for node in nodes] for nodes in (region.made_by, region.read_by))
        members = [tensor.name for tensor in region.members]
        report.regions.append(
            RescaledRegion(
                region.tensor.name, which.tolist(), region.factors[which].tolist(), members, *names
            )
        )
    report.kept = [_kept(entry, clips) for entry in found.stuck]


def _kept(entry: NotRescaled, clips: Collection[str]) -> KeptTensor:
    cure = PER_CHANNEL if entry.clip and entry.blocked_by in clips else ""
    return KeptTensor(entry.tensor, entry.blocked_by, entry.reason, cure)


def _ranges(layer: WeightSizes, before: State, after: State) -> LayerRanges:
    spans = []
    for side in (0, 1):
        for state in (before, after):
            own = layer.ranges(state)[side]
            own = own[own > 0]
            spans.append(Span(float(own.min()), float(own.max())) if own.size else Span(0.0, 0.0))
    bits = layer.lost(before), layer.lost(after)
    return LayerRanges(layer.node.name, layer.node.op, spans[0], spans[1], spans[2], spans[3], *bits)
