"""The types and shapes of all values: as the model states them, else inferred.

The operators that most nets consist of have a rule of ours (`Operator.shape`), at a few microseconds a node.
Where that does not give every floating point value a rank, onnx's own inference is asked once, at ten times
the cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bnfold.onnx_graph.model.constants import resolve
from bnfold.onnx_graph.model.scopes import CONTROL, declare
from bnfold.onnx_graph.ops.facts import shape_by
from bnfold.onnx_graph.ops.table import OPERATORS, UNKNOWN
from bnfold.onnx_graph.site import (
    CODES,
    FLOATS,
    Model,
    Scope,
    Site,
)

__all__ = ["infer"]

FOLLOWED = 100_000  # functions that onnx's inference is given, all times together
Calls = dict[tuple[str, str, str], list[Site]]


def infer(model: Model, scopes: list[Scope]) -> None:
    """Fill in `dtype` and `shape` of all values, as far as they can be known; never fails."""
    calls: Calls = {}
    for scope in scopes:
        function = scope.proto if isinstance(scope.proto, onnx.FunctionProto) else None
        if function is not None:
            _from_calls(scope, calls.get((function.domain, function.name, function.overload), []))
        if not _pass(scope, calls):
            graph = _inferred(model, scope)
            if graph is not None:
                _merge(scope, graph)
            for site in _all_sites(scope):
                for value in site.outputs:
                    if value is not None and value.constant is None:
                        value.resolved = False
            _pass(scope, {}, last=True)


def _all_sites(scope: Scope) -> Iterator[Site]:
    for site in scope.sites:
        for body in site.bodies or ():
            yield from _all_sites(body)
        yield site


def _pass(scope: Scope, calls: Calls, last: bool = False) -> bool:
    """One walk in the order of the nodes; False if onnx's inference is needed."""
    complete = True
    functions = scope.model.functions
    for site in _all_sites(scope):
        if functions:
            key = (site.node.domain, site.node.op_type, site.node.overload)
            if key in functions:
                calls.setdefault(key, []).append(site)
        record = OPERATORS.get(site.op, UNKNOWN)
        if (
            record.evaluate is not None
            and site.outputs
            and (first := site.outputs[0]) is not None
            and not first.resolved
        ):
            resolve(first)
        if last and record.ranks is not None:
            shape_by(record.ranks, site)
        for value in site.outputs:
            if value is None or (value.shape is not None and value.dtype):
                continue
            rule = None if value.slot else record.shape
            source = site.values[0] if site.values else None
            if rule is not None and source is not None:
                if value.shape is None:
                    value.shape = shape_by(rule, site)
                value.dtype = value.dtype or source.dtype
            if complete and (value.count or value.is_output):
                unknown = value.shape is None and (not value.dtype or value.dtype in FLOATS)
                complete = not unknown and bool(value.dtype)
    return complete


def _from_calls(scope: Scope, calls: list[Site]) -> None:
    """The inputs of a function: what all of its calls agree on."""
    for slot, name in enumerate(scope.proto.input):
        value = scope.values[name]
        dtypes = {call.dtype(slot) for call in calls}
        shapes = {call.shape(slot) for call in calls}
        if len(dtypes) == 1 and not value.dtype:
            value.dtype = dtypes.pop()
        known = [shape for shape in shapes if shape is not None]
        if value.shape is None and known and len(known) == len(shapes) and len({len(s) for s in known}) == 1:
            value.shape = tuple(d[0] if len(set(d)) == 1 else None for d in zip(*known, strict=True))


def _inferred(model: Model, scope: Scope) -> onnx.GraphProto | None:
    import onnx.shape_inference

    try:
        proto = _as_model(model, scope) if scope.in_function else model.loaded.proto
        if _negative(proto.graph):
            return None
        calls = model.loaded.proto.functions
        model.followed += len(calls)
        if model.explodes or model.followed > FOLLOWED:  # it would follow each call
            proto = onnx.ModelProto(
                ir_version=proto.ir_version, opset_import=proto.opset_import, graph=proto.graph
            )
        elif scope.in_function:
            proto.functions.extend(calls)
        return onnx.shape_inference.infer_shapes(
            proto.SerializeToString(), strict_mode=False, data_prop=True
        ).graph
    except (
        Exception
    ):  # of any kind: this is C++ on a model that need not be valid, and all it gives is optional
        return None


def _negative(graph: onnx.GraphProto) -> bool:
    """A size below zero is declared: onnx's inference may end the whole process on it."""
    return any(
        dim.dim_value < 0
        for info in (*graph.input, *graph.output, *graph.value_info)
        for dim in info.type.tensor_type.shape.dim
    )


def _as_model(model: Model, scope: Scope) -> onnx.ModelProto:
    """A function as a model of its own, without those that it calls."""
    proto = onnx.ModelProto(ir_version=model.loaded.proto.ir_version, opset_import=scope.proto.opset_import)
    proto.graph.name = scope.proto.name
    proto.graph.node.extend(scope.proto.node)
    for name in scope.proto.input:
        value = scope.values[name]
        code = CODES.get(value.dtype, 0)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, code, value.shape))
    for name in scope.proto.output:
        proto.graph.output.add(name=name)
    return proto


def _merge(scope: Scope, graph: onnx.GraphProto) -> None:
    """Take over what is new; what the model states itself comes first."""
    values = scope.values
    names = {name for name, value in values.items() if value.shape is None or not value.dtype}
    stated = {name: (values[name].shape, values[name].dtype) for name in names}
    for entries in (graph.output, graph.value_info):
        declare(scope, [entry for entry in entries[:] if entry.name in names])
    for name, (shape, dtype) in stated.items():
        value = values[name]
        value.shape = shape if shape is not None else value.shape
        value.dtype = dtype or value.dtype
    if not any(site.bodies for site in scope.sites):
        return
    twins = {tuple(node.output): node for node in graph.node if node.op_type in CONTROL}
    for site in scope.sites:
        if site.bodies:
            twin = twins.get(tuple(site.node.output))
            graphs = (
                []
                if twin is None
                else [g for a in twin.attribute for g in ([a.g] if a.type == 5 else a.graphs)]
            )
            for body, other in zip(site.bodies, graphs, strict=False):
                _merge(body, other)
