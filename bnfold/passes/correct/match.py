"""Which layer of the float model a quantized layer is: by names of tensors; the weights must agree."""

from __future__ import annotations

import numpy as np

from bnfold.errors import UsageError
from bnfold.onnx_graph.site import Scope, Site, Value
from bnfold.passes.correct.layers import Layer, constant_operand, numbers_of, weight_of
from bnfold.report.correct import LeftLayer

__all__ = ["matched"]

# onnxruntime's quantizer adds it to the name of a graph output, which its DequantizeLinear gives then.
BEFORE_OUTPUT = "_QuantizeLinear_Input"
# It drops these where the range of the codes does their work; the layer before gets the name of their output.
DROPPED = ("Relu", "Clip")
# Of the weights' squares: rounding to two bits leaves less; those of another network are about twice as far.
FAR = 0.5


def matched(layers: list[Layer], floats: Scope) -> tuple[list[Layer], list[LeftLayer]]:
    """The layers with a `target` in the float model, and those that have none.

    Raises:
        UsageError: a layer of that name has other weights: the float model is that of another network.
    """
    by_node = {site.node.name: site for site in floats.sites if site.node.name}
    found, left = [], []
    for layer in layers:
        name, reason = layer.tensor.removesuffix(BEFORE_OUTPUT), ""
        value = floats.values.get(layer.tensor) or floats.values.get(name)
        own = None if value is None else _maker(value, layer)
        if own is None:  # other tools rename tensors, and keep the names of nodes
            site = by_node.get(layer.site.node.name)
            if site is not None and site.op == layer.site.op and site.outputs[0] is not None:
                own = site, _with_bias(site.outputs[0], layer)
            elif value is None:
                reason = f"the float model has no tensor {name!r}, and no such node"
            else:
                maker = "an input" if value.site is None else f"made by {value.site.op}"
                reason = f"in the float model {name!r} is {maker}"
        if own is not None:
            site, layer.target = own
            reason = _compared(layer, site)
        if reason:
            left.append(LeftLayer(layer.site.name, layer.site.op, reason))
        else:
            found.append(layer)
    return found, left


def _maker(value: Value, layer: Layer) -> tuple[Site, str] | None:
    """The layer that makes a value of the float model, and its output's name."""
    site = value.site
    if site is not None and site.op in DROPPED and site.values[0] is not None:
        value = site.values[0]
        site = value.site
    if site is not None and site.op == layer.site.op:
        return site, value.name
    slot = constant_operand(site) if site is not None and site.op == "Add" and layer.add is not None else None
    if site is None or slot is None:
        return None
    other = site.values[1 - slot]
    inner = None if other is None else other.site
    return (inner, value.name) if inner is not None and inner.op == layer.site.op else None


def _with_bias(value: Value, layer: Layer) -> str:
    """The output's name of a layer that was found by its node's name: a MatMul's own Add is behind it."""
    if layer.add is None:
        return value.name
    adds = [site for site, _ in value.uses if site.op == "Add" and constant_operand(site) is not None]
    return adds[0].outputs[0].name if len(adds) == 1 and adds[0].outputs[0] is not None else value.name


def _compared(layer: Layer, site: Site) -> str:
    """Why the layers cannot be compared; "" if they can. Raises as `matched`."""
    if weight_of(site).dequantize is not None:
        raise UsageError(f"layer {site.name!r} of the float model is quantized itself: {OTHER}")
    here, there = numbers_of(layer.site), site.value(1)
    if here is None or there is None:
        return "its weight is not stored in both models"
    if here.shape != there.shape:
        raise UsageError(
            f"layer {layer.site.name!r} ({layer.site.op}) has a weight of shape {list(here.shape)}, but "
            f"{site.name!r} of the float model one of {list(there.shape)}: {OTHER}"
        )
    error = size = 0.0
    for found, wanted in zip(here, there, strict=True):  # part by part, in little memory
        wide = wanted.astype(np.float64)
        error, size = error + float(((found - wide) ** 2).sum()), size + float((wide**2).sum())
    if not error <= FAR * size:
        raise UsageError(
            f"layer {layer.site.name!r} ({layer.site.op}) has other weights than {site.name!r} of the float "
            f"model (they differ by {np.sqrt(error / size) if size else np.inf:.0%}): {OTHER}"
        )
    return ""


OTHER = "give the float model that was quantized, batch norms folded as they were then"
