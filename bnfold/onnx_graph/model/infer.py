"""The types and shapes of all values: as the model states them, else inferred.

The operators that most nets consist of have a rule of ours (`Operator.shape`), at a few microseconds a node.
Where that does not give every floating point value a rank, onnx's own inference is asked once, at ten times
the cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bnfold.fold.graph import Dim
from bnfold.onnx_graph.model.constants import resolve
from bnfold.onnx_graph.model.scopes import CONTROL, declare
from bnfold.onnx_graph.ops.facts import same_shape, shape_by
from bnfold.onnx_graph.ops.operator import Operator, Shape
from bnfold.onnx_graph.ops.table import OPERATORS, UNKNOWN
from bnfold.onnx_graph.site import (
    CODES,
    FLOATS,
    Model,
    Scope,
    Site,
    Value,
)

__all__ = ["infer"]

FOLLOWED = 100_000  # functions that onnx's inference is given, all times together
Calls = dict[tuple[str, str, str], list[Site]]
# names of sizes that onnx's inference made up, each with what it has turned out to stand for, or None
Loose = dict[Dim, Dim]


def infer(model: Model, scopes: list[Scope]) -> None:
    """Fill in `dtype` and `shape` of all values, as far as they can be known; never fails."""
    calls: Calls = {}
    for scope in scopes:
        function = scope.proto if isinstance(scope.proto, onnx.FunctionProto) else None
        if function is not None:
            _from_calls(scope, calls.get((function.domain, function.name, function.overload), []))
        if not _pass(scope, calls, {None: None}):
            graph = _inferred(model, scope)
            loose: Loose = {None: None}
            if graph is not None:
                stated = set(_named(scope))
                _merge(scope, graph)
                loose.update(dict.fromkeys(set(_named(scope)) - stated))
            for site in _all_sites(scope):
                for value in site.outputs:
                    if value is not None and value.constant is None:
                        value.resolved = False
            if not _pass(scope, {}, loose, last=True) and _from_readers(scope):
                _pass(scope, {}, loose, last=True)
            if any(loose.values()):
                _settle(scope, loose)


def _all_sites(scope: Scope) -> Iterator[Site]:
    for site in scope.sites:
        for body in site.bodies or ():
            yield from _all_sites(body)
        yield site


def _pass(scope: Scope, calls: Calls, loose: Loose, last: bool = False) -> bool:
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
            if value is None:
                continue
            if value.shape is not None and value.dtype:
                if not value.slot and not loose.keys().isdisjoint(value.shape):
                    _fill(value, record, site, loose)
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


def _from_readers(scope: Scope) -> bool:
    """What readers tell of values whose producer nobody knows; whether it is anything new."""
    told = False
    for site in reversed(list(_all_sites(scope))):
        record = OPERATORS.get(site.op, UNKNOWN)
        if record.ranks is not None:
            shape_by(record.ranks, site)
        x, y = site.values[0] if site.values else None, site.outputs[0] if site.outputs else None
        if x is None or y is None or record.shape is None:
            continue
        if not x.dtype and y.dtype:
            x.dtype, told = y.dtype, True
        if x.shape is None and y.shape and record.shape is same_shape:  # () may be a shape that nobody gave
            x.shape, told = y.shape, True
    return told


def _fill(value: Value, record: Operator, site: Site, loose: Loose) -> None:
    """Sizes that nobody has stated, and what names made up by onnx stand for, as the operator tells them."""
    rule, shape = record.keeps or record.shape, value.shape
    found = None if rule is None or not site.values or site.values[0] is None else shape_by(rule, site)
    if found is None or shape is None or len(found) != len(shape):
        return
    for size, told in zip(shape, found, strict=True):
        a, b = _meant(size, loose), _meant(told, loose)
        if a is not None and b is not None and a in loose and a != b:
            loose[a] = b
    value.shape = tuple(
        told if size is None else _meant(size, loose) for size, told in zip(shape, found, strict=True)
    )


def _meant(size: Dim, loose: Loose) -> Dim:
    """The size itself, or what its name has turned out to stand for."""
    while (other := loose.get(size)) is not None:
        size = other
    return size


def _settle(scope: Scope, loose: Loose) -> None:
    """Write what names have turned out to stand for wherever they are."""
    for value in scope.values.values():
        if value.shape is not None and not loose.keys().isdisjoint(value.shape):
            value.shape = tuple(_meant(size, loose) for size in value.shape)
    for site in scope.sites:
        for body in site.bodies or ():
            _settle(body, loose)


def _named(scope: Scope) -> Iterator[Dim]:
    """Every size of a scope and of the bodies in it that has a name."""
    for value in scope.values.values():
        yield from (size for size in value.shape or () if isinstance(size, str))
    for site in scope.sites:
        for body in site.bodies or ():
            yield from _named(body)


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
        if not scope.in_function:
            proto = _with_names(proto, scope)
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


def _with_names(proto: onnx.ModelProto, scope: Scope) -> onnx.ModelProto:
    """The model itself, or a copy in which the sizes of its inputs have the names that we gave them."""
    unnamed = []
    for at, entry in enumerate(proto.graph.input):
        for axis, dim in enumerate(entry.type.tensor_type.shape.dim):
            shape = scope.values[entry.name].shape
            if not dim.WhichOneof("value") and shape is not None and isinstance(shape[axis], str):
                unnamed.append((at, axis, shape[axis]))
    if unnamed:
        whole, proto = proto, onnx.ModelProto()
        proto.CopyFrom(whole)
        for at, axis, name in unnamed:
            proto.graph.input[at].type.tensor_type.shape.dim[axis].dim_param = name
    return proto


def _joined(stated: Shape | None, found: Shape | None) -> Shape | None:
    """What is stated, with its gaps filled by what was found."""
    if stated is None or found is None or len(stated) != len(found):
        return found if stated is None else stated
    return tuple(b if a is None else a for a, b in zip(stated, found, strict=True))


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
    names = {n for n, v in values.items() if v.shape is None or not v.dtype or None in v.shape}
    stated = {name: (values[name].shape, values[name].dtype) for name in names}
    for entries in (graph.output, graph.value_info):
        declare(scope, [entry for entry in entries[:] if entry.name in names])
    for name, (shape, dtype) in stated.items():
        value = values[name]
        value.shape = _joined(shape, value.shape)
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
