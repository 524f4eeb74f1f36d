"""A newer version of the default operators for a whole model, where that changes no operator's meaning.

bfloat16 came to the operators one by one: to Add with opset 13, to Conv with opset 22. Most versions only
widen the types that an operator takes, and for them the number in the file is all that has to change. What
else a version may have changed is read from onnx's schemas: an attribute or input that went away, another
default. A few changed their meaning under the same signature.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs

from bnfold.onnx_graph import precision
from bnfold.onnx_graph.files import Loaded
from bnfold.onnx_graph.half_slots import schema_of
from bnfold.onnx_graph.scopes import default_opset

__all__ = ["raised"]

# From these versions on the same node means something else (Split: it needs to be told how many).
_CHANGED = {
    "Softmax": 13,
    "LogSoftmax": 13,
    "Hardmax": 13,
    "GroupNormalization": 21,
    "DFT": 20,
    "GridSample": 20,
}


def raised(loaded: Loaded, opset: int) -> str:
    """Raise the opset of the model in place, or say why not ("" if it was raised, or is as new already)."""
    proto = loaded.proto
    old = default_opset(proto.opset_import)
    if old >= opset:
        return ""
    for node in precision.nodes(proto):
        if node.domain not in ("", "ai.onnx"):
            continue
        reason = _changed(node, old, opset)
        if reason:
            return reason
    for entry in (*proto.opset_import, *(e for f in proto.functions for e in f.opset_import)):
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    needed = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    if proto.ir_version >= 4:
        proto.ir_version = max(proto.ir_version, needed)
    return ""


def _changed(node: onnx.NodeProto, old: int, new: int) -> str:
    """How a newer version of the operator differs for this node; "" if it does not."""
    op = node.op_type
    before, after = schema_of(op, old), schema_of(op, new)
    if before is None or after is None or after.deprecated:
        return f"{op} is not in opset {new if before is not None else old}"
    if before.since_version == after.since_version:
        return ""
    changed = f"{op} changed in opset {after.since_version}"
    if old < _CHANGED.get(op, 0) <= new:
        return f"{op} changed in opset {_CHANGED[op]}"
    if op == "Split" and old < 18 <= new and len(node.input) < 2:
        return "Split changed in opset 18"
    for attribute in node.attribute:
        if attribute.name in before.attributes and attribute.name not in after.attributes:
            return changed
    for name, meant in after.attributes.items():
        was = before.attributes.get(name)
        if meant.required if was is None else _default(was) != _default(meant):
            return changed
    names = [formal.name.lower() for formal in after.inputs]
    for slot, formal in enumerate(before.inputs):
        if slot >= len(names) or (len(before.inputs) != len(names) and names[slot] != formal.name.lower()):
            return changed
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    if any(formal.option != optional for formal in list(after.inputs)[len(before.inputs) :]):
        return changed
    return changed if len(node.output) > len(after.outputs) else ""


def _default(attribute: Any) -> bytes:
    value: bytes = attribute.default_value.SerializeToString()
    return value
