"""Merged nodes in an ONNX graph: other windows for a Conv, and a sum of fewer branches."""

from __future__ import annotations

from onnx import helper

from bnfold.fold.edits import Operand, Resum, SetWindows
from bnfold.fold.graph import Node
from bnfold.onnx_graph.model.new_nodes import emit, take_over
from bnfold.onnx_graph.model.site import Site, Value
from bnfold.onnx_graph.model.surgery import Surgery

__all__ = ["place", "resum", "set_windows"]

_STATED = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "group")


def place(node: Node) -> object:
    """The graph, body or function in which a node stands."""
    site: Site = node.source
    return site.scope


def set_windows(site: Site, edit: SetWindows) -> None:
    """State windows and groups anew, in numbers."""
    proto, windows = site.node, edit.windows
    kept = [attribute for attribute in proto.attribute if attribute.name not in _STATED]
    stated = {
        "strides": windows.strides,
        "dilations": windows.dilations,
        "pads": (*windows.heads, *windows.tails),
        "kernel_shape": edit.taps,
        "group": edit.groups,
    }
    kept += [helper.make_attribute(name, value) for name, value in stated.items()]
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
    del proto.attribute[:]
    proto.attribute.extend(copies)
    site._attributes = None


def resum(surgery: Surgery, edit: Resum) -> None:
    """Let one value, or the sum of several, take the place of what a node gives."""
    site: Site = edit.node.source
    values = [_value(operand) for operand in edit.operands]
    y = site.outputs[0]
    assert y is not None
    if len(values) == 1:
        if values[0].shape != y.shape:  # of the first of two in a row: the description of its output is old
            values[0].shape = y.shape
            surgery.stale[values[0].scope].add(values[0].name)
        surgery.connect(site, 0, values[0])
        surgery.bypass(site, 0)
        return
    whole, *others = values
    for value in others[:-1]:
        whole = emit(surgery, "Add", [whole, value], f"{y.name}_part", site)
    take_over(surgery, site, 0, ("", "Add"), [whole, others[-1]], site.node.name)
    surgery.kill(site)


def _value(operand: Operand) -> Value:
    node, slot = operand
    site: Site = node.source
    value = site.values[slot] if slot >= 0 else site.outputs[-1 - slot]
    assert value is not None
    return value
