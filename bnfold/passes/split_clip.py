"""Clip with bounds for each channel, which the operator itself does not have: a Clip, then Max and Min.

The Clip's own bounds become the outermost ones. It could go, or be a Relu; but a quantizer that sees a Clip
behind a convolution knows where the convolution's range ends.
"""

from __future__ import annotations

from collections.abc import Mapping

from bnfold.fold.graph import Array, Node
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.infer import infer
from bnfold.onnx_graph.model.scopes import build, without_gc
from bnfold.onnx_graph.model.site import FLOATS, Site, Value, numpy_dtype
from bnfold.onnx_graph.model.surgery import Surgery

__all__ = ["can_split", "split"]

BROADCASTS_FROM = 8  # the opset from which on Max and Min do


def can_split(node: Node) -> bool:
    """Whether a Clip of the main graph may be given bounds for each channel."""
    site: Site = node.source
    return (
        site.op == "Clip"
        and site.opset >= BROADCASTS_FROM
        and site.scope.parent is None
        and site.scope is site.scope.model.scopes[0]
        and site.dtype(0) in FLOATS
    )


def split(loaded: Loaded, bounds: Mapping[str, tuple[Array, Array]]) -> None:
    """Let Max and Min follow Clips, in place.

    Args:
        loaded: the model.
        bounds: by the Clip's name: the lower and the upper bounds, of the rank of what is clipped. The Clip's
            own must be the outermost of them.
    """
    if not bounds:
        return
    with without_gc():
        model, scopes = build(loaded, "duplicate")
        infer(model, scopes)
        surgery = Surgery(model)
        for site in list(scopes[0].sites):
            if site.name in bounds:
                _split(site, *bounds[site.name], surgery)
        surgery.finish()


def _split(site: Site, low: Array, high: Array, surgery: Surgery) -> None:
    """The Clip gives a new value; the last node behind it gives what it gave, under the same name."""
    dtype, y = numpy_dtype(site.dtype(0)), site.outputs[0]
    assert y is not None
    steps = [(op, bound) for op, bound in (("Max", low), ("Min", high)) if (bound != bound.flat[0]).any()]
    last, given = site, y
    for op, bound in steps:
        given = Value(surgery.name(f"{y.name}_clip"), site.scope, last, 0)
        given.shape, given.dtype = y.shape, y.dtype
        site.scope.values[given.name] = given
        last.outputs[0], last.node.output[0] = given, given.name
        stored = surgery.constant(f"{y.name}_{op.lower()}", bound.astype(dtype), site.scope, before=site)
        name = surgery.name(f"{site.node.name or y.name}_{op.lower()}")
        last = surgery.node(op, name, [given, stored], y.name, site)  # behind what was put there before
        last.outputs.append(y)
        y.site, y.slot = last, 0
