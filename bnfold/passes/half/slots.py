"""Which inputs and outputs of a node may be half precision: asked of onnx's own operator schemas.

A type that a schema fixes (the scales of a Resize), or a variable that does not admit the half type, stays
float32. What the schemas do not say is in the operator's record (`Operator.float32`). Functions of the model
have no schema: a call of theirs is typed by onnx's inference.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import onnx
import onnx.defs
import onnx.shape_inference

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.scopes import default_opset
from bnfold.onnx_graph.site import CODES, Model, Scope, Site, Value

__all__ = ["HALVES", "Slots", "float32_slots", "of_function", "schema_of", "slots_of", "typeless"]

HALVES = ("float16", "bfloat16")


class Slots(NamedTuple):
    """Input and output slots, 0, 1, ..., whose float32 values may be half instead."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def float32_slots(values: Iterable[Value | None]) -> frozenset[int]:
    """Where among a node's inputs or outputs float32 values are."""
    return frozenset(i for i, value in enumerate(values) if value is not None and value.dtype == "float32")


@cache
def schema_of(op: str, opset: int) -> Any:
    """The schema of an operator of the default domain at this version, or None."""
    try:
        return onnx.defs.get_schema(op, opset, "")
    except (onnx.defs.SchemaError, TypeError):  # a name that is no text
        return None


def slots_of(site: Site, half: str) -> Slots | str:
    """What of a node may be `half` ("float16" or "bfloat16"), or why all of it stays float32.

    A node without floating point values gives empty `Slots`.
    """
    reads, makes = float32_slots(site.values), float32_slots(site.outputs)
    if not reads and not makes:
        return Slots()
    if site.node.domain not in ("", "ai.onnx"):
        return f"{site.op} is not an operator of onnx"
    schema = schema_of(site.op, site.opset)
    if schema is None:
        return f"{site.op} is not known in opset {site.opset}"
    allowed = f"tensor({half})"
    inputs = frozenset(slot for slot in reads if _admits(schema.inputs, slot, allowed))
    outputs = frozenset(j for j in makes if _admits(schema.outputs, j, allowed))
    if not inputs and not outputs:
        return _too_old(site, half) or f"{site.op} does not take {half}"
    if any(_holds_others(schema.outputs, j) for j in range(len(site.outputs))):
        return f"{site.op} makes a sequence or an optional value"
    for slot, value in enumerate(site.values):
        if value is not None and not value.dtype and _admits(schema.inputs, slot, allowed):
            return f"the type of its input {value.name} is not known"
    if site.op == "Cast":  # to float32: `to` says the type, and follows
        return Slots(inputs, outputs)
    bound = {_formal(schema.inputs, slot).type_str for slot in inputs}
    follow = frozenset(j for j in outputs if _formal(schema.outputs, j).type_str in bound)
    if follow < outputs and "stash_type" not in schema.attributes:
        return f"{site.op} makes float32, as its attributes say"
    return Slots(inputs, follow)  # the others of LayerNormalization are of the stash type


def _formal(formals: Any, slot: int) -> Any:
    """The declared parameter at a slot; the last one repeats if it is variadic."""
    return formals[min(slot, len(formals) - 1)] if formals else None


def _admits(formals: Any, slot: int, allowed: str) -> bool:
    formal = _formal(formals, slot)
    return formal is not None and allowed in formal.types


def _holds_others(formals: Any, slot: int) -> bool:
    """Whether the parameter is a sequence or an optional value, whose elements have a type of their own."""
    formal = _formal(formals, slot)
    return formal is not None and not any(t.startswith("tensor(") for t in formal.types)


def _too_old(site: Site, half: str) -> str:
    """Where a newer version of the operator takes the type: which."""
    for opset in range(site.opset + 1, onnx.defs.onnx_opset_version() + 1):
        schema = schema_of(site.op, opset)
        if schema is not None and _admits(schema.outputs, 0, f"tensor({half})"):
            return f"{site.op} takes {half} from opset {opset} on; the model has {site.opset}"
    return ""


def of_function(site: Site, model: Model, free: frozenset[tuple[str, str, str]]) -> Slots | str | None:
    """The same for the call of a function of the model, given those that are `typeless`; None: no call."""
    key = (site.node.domain, site.node.op_type, site.node.overload)
    if key not in model.functions:
        return None
    if key not in free:
        return f"calls the function {site.node.op_type}, whose body is float32"
    return Slots(float32_slots(site.values), float32_slots(site.outputs))


def typeless(scope: Scope, half: str) -> frozenset[tuple[str, str, str]]:
    """The functions (domain, name, overload) all of whose calls in the graph may have `half` for float32.

    A body of standard operators takes any type until a constant in it fixes one. So a call is typed by onnx's
    inference with half inputs, and the function may be called so if that gives half outputs.
    """
    answers: dict[tuple[str, str, str], bool] = {}
    for site in () if scope.model.explodes else scope.sites:
        key = (site.node.domain, site.node.op_type, site.node.overload)
        if key in scope.model.functions and answers.get(key, True):
            answers[key] = _takes(scope.model.loaded, site, half)
    return frozenset(key for key, fine in answers.items() if fine)


def _takes(loaded: Loaded, site: Site, half: str) -> bool:
    model = onnx.ModelProto(
        ir_version=max(loaded.proto.ir_version, 8), opset_import=loaded.proto.opset_import
    )
    if not default_opset(model.opset_import):
        return False
    model.functions.extend(loaded.proto.functions)
    graph = model.graph
    graph.name = "call"
    graph.node.append(site.node)
    for value in site.values:
        if value is None or any(entry.name == value.name for entry in graph.input):
            continue
        code = CODES.get(half if value.dtype == "float32" else value.dtype, 0)
        graph.input.append(onnx.helper.make_tensor_value_info(value.name, code, value.shape))
    wanted = {}
    for value in site.outputs:
        if value is not None:
            graph.output.add(name=value.name)
            wanted[value.name] = CODES[half] if value.dtype == "float32" else CODES.get(value.dtype, 0)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception:  # of any kind: it does not take the type, or says nothing about it
        return False
    return all(o.type.tensor_type.elem_type == wanted[o.name] for o in inferred.graph.output)
