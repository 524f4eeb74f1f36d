"""A newer version of the default operators for a whole model, where that changes no operator's meaning.

bfloat16 came to the operators one by one: to Add with opset 13, to Conv with opset 22. Most versions only
widen the types that an operator takes, and for them the number in the file is all that has to change. Some
turned an attribute into an input, which is moved. What else a version may have changed is read from onnx's
schemas: an attribute or input that went away, another default. A few changed their meaning under the same
signature, as their records say (`Operator.changed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx.defs

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.scopes import default_opset
from bnfold.onnx_graph.model.surgery import restate
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.read import analysed
from bnfold.onnx_graph.site import Site
from bnfold.passes.half.slots import schema_of

__all__ = ["raised"]

_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional


def raised(loaded: Loaded, opset: int, ranks: Mapping[str, int]) -> str:
    """Raise the opset of the model in place, or say why not ("" if it was raised, or is as new already).

    `ranks`: of tensors, by name, as a run has shown them; the file may not tell.
    """
    proto = loaded.proto
    old = default_opset(proto.opset_import)
    if old >= opset:
        return ""
    model = analysed(loaded)
    edits: list[tuple[Site, Callable[[Site, onnx.GraphProto], None]]] = []
    for scope in model.scopes:
        for site in scope.sites:
            if site.node.domain not in ("", "ai.onnx"):
                continue
            edit = _edit(site, opset, ranks)
            reason = "" if edit is not None else _changed(site, opset)
            if reason:
                return reason
            if edit is not None:
                edits.append((site, edit))
    if edits and proto.ir_version < 4:
        return f"{edits[0][0].op} changed, and in IR version {proto.ir_version} weights are inputs"
    for site, edit in edits:
        edit(site, proto.graph)
    for entry in (*proto.opset_import, *(e for f in proto.functions for e in f.opset_import)):
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    if proto.ir_version >= 4:
        needed = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
        proto.ir_version = max(proto.ir_version, needed)
    return ""


def _edit(site: Site, new: int, ranks: Mapping[str, int]) -> Callable[[Site, onnx.GraphProto], None] | None:
    """What makes a node of the newer version of this one, where that is known."""
    attribute, version = record_of(site.op).moved or ("", 0)
    if site.opset < version <= new and attribute in site.attributes and not site.scope.in_function:
        return partial(_move_attribute, attribute)
    if site.op in ("Softmax", "LogSoftmax") and site.opset < 13 <= new:
        rank = site.rank(0) or ranks.get(site.node.input[0])
        if rank and site.attr("axis", 1) in (-1, rank - 1):  # over the last axis it was the same before
            return _last_axis
    return None


def _move_attribute(name: str, site: Site, graph: onnx.GraphProto) -> None:
    tensor = f"{site.name} {name}"  # names of sites are unique
    array = np.array(site.attr(name), np.int64).reshape(-1)
    graph.initializer.append(onnx.numpy_helper.from_array(array, tensor))
    restate(site.node, {name: None})
    site.node.input.append(tensor)


def _last_axis(site: Site, graph: onnx.GraphProto) -> None:
    restate(site.node, {"axis": -1})


def _changed(site: Site, new: int) -> str:
    """How a newer version of the operator differs for this node; "" if it does not."""
    op, old = site.op, site.opset
    before, after = schema_of(op, old), schema_of(op, new)
    if before is None or after is None or after.deprecated:
        return f"{op} is not in opset {new if before is not None else old}"
    if before.since_version == after.since_version:
        return ""
    changed = f"{op} changed in opset {after.since_version}"
    if old < record_of(op).changed <= new and not (op == "Split" and site.has(1)):  # which says the sizes
        return f"{op} changed in opset {record_of(op).changed}"
    if any(name in before.attributes and name not in after.attributes for name in site.attributes):
        return changed
    for name, meant in after.attributes.items():
        was = before.attributes.get(name)
        if meant.required if was is None else _default(was) != _default(meant):
            return changed
    names = [formal.name.lower() for formal in after.inputs]
    for slot, formal in enumerate(before.inputs):
        if slot >= len(names) or (len(before.inputs) != len(names) and names[slot] != formal.name.lower()):
            return changed
    if any(formal.option != _OPTIONAL for formal in list(after.inputs)[len(before.inputs) :]):
        return changed
    return changed if len(site.outputs) > len(after.outputs) else ""


def _default(attribute: Any) -> bytes:
    value: bytes = attribute.default_value.SerializeToString()
    return value
