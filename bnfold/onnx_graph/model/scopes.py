"""Who defines and who reads each name: graphs, the bodies of If, Loop and Scan, and model-local functions."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx

from bnfold.errors import ModelError
from bnfold.onnx_graph.file.calls import by_key, callers_first, explodes
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import as_text
from bnfold.onnx_graph.model.constants import resolve
from bnfold.onnx_graph.site import (
    DTYPES,
    HIGHEST_RANK,
    Model,
    Scope,
    Site,
    Value,
)

__all__ = ["CONTROL", "build", "declare", "default_opset", "node_name", "without_gc"]

CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@contextmanager
def without_gc() -> Iterator[None]:
    """No search for reference cycles while very many small objects are made, none of which is garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def default_opset(imports: Any) -> int:
    """The version of the default domain; 0 if it is not imported. Early models import nothing, and mean 1.

    Of several the last one counts, as in onnxruntime.
    """
    versions = [entry.version for entry in imports if entry.domain in ("", "ai.onnx")]
    return versions[-1] if versions else int(not imports)


def build(loaded: Loaded, shared: str) -> tuple[Model, list[Scope]]:
    """All names and nodes of a model.

    Returns:
        What the scopes share, and the outermost scopes: the graph, then the functions, callers first.
        The bodies of control flow hang on their nodes (`Site.bodies`).

    Raises:
        ModelError: a name is read and not defined, or defined twice; nodes or functions depend on each
            other in a circle; the graph has no nodes.
    """
    proto = loaded.proto
    if not proto.graph.node:
        raise ModelError("the graph has no nodes: there is nothing to fold; check that the export succeeded")
    functions = by_key(proto)
    order = callers_first(functions)
    model = Model(loaded, resolve, shared, _trained(proto), frozenset(functions))
    model.explodes = explodes(proto)
    model.locks = bool(model.bound) or shared == "skip"
    root = Scope(model, proto.graph, _opset_of(proto, "the model"))
    _fill(root)
    for name in model.bound:
        value = root.values.get(name)
        if value is not None and value.init is None:
            value.fixed = value.fixed or "used by training_info"
            value.is_output = True  # as much as one: the name must stay
    scopes = [root]
    for key in order:
        function = functions[key]
        opset = _opset_of(function, f"the function {function.name!r}")
        scope = Scope(model, function, opset, in_function=True)
        _fill(scope)
        scopes.append(scope)
    _readable(model)
    return model, scopes


def _opset_of(proto: onnx.ModelProto | onnx.FunctionProto, what: str) -> int:
    """The version of the default domain, which is 0 where none of its operators is used.

    Raises:
        ModelError: one is, and nothing says which version is meant: each runtime would guess its own.
    """
    opset = default_opset(proto.opset_import)
    nodes = proto.graph.node if isinstance(proto, onnx.ModelProto) else proto.node
    used = next((node.op_type for node in nodes if node.domain in ("", "ai.onnx")), None)
    if opset < 1 and used is not None:
        raise ModelError(
            f"{what} uses {used} and names no version of ONNX's own operators (opset_import); export it again"
        )
    return opset


def _readable(model: Model) -> None:
    """Raises ModelError for a name that is not UTF-8: protobuf gives it as bytes."""
    for names in (model.names, *(scope.values for scope in model.scopes)):
        if set(map(type, names)) - {str}:
            odd = next(name for name in names if not isinstance(name, str))
            raise ModelError(f"the name {odd!r} is not valid UTF-8; the model is damaged: export it again")


def _trained(proto: onnx.ModelProto) -> frozenset[str]:
    """Names of the graph that the training graphs know."""
    names: set[str] = set()
    for info in proto.training_info:
        for binding in (*info.initialization_binding, *info.update_binding):
            names.update((binding.key, binding.value))
        for graph in (info.initialization, info.algorithm):
            for node in graph.node:
                names.update(node.input)
    return frozenset(names)


def _fill(scope: Scope) -> list[tuple[Site, int, str]]:
    """Declare all values of a scope and of the bodies in it; returns the reads that it could not resolve."""
    scope.model.scopes.append(scope)
    function = isinstance(scope.proto, onnx.FunctionProto)
    kind = "function" if function else "body" if scope.parent is not None else "graph"
    _inputs(scope, kind, function)
    pending = _nodes(scope)
    pending = _resolve(scope, pending)
    for output in scope.proto.output:
        name = output if function else output.name
        value = scope.find(name)
        if value is None and not (kind == "body" and not name):
            raise ModelError(f"the {kind} output {name!r} is not computed by any node; the model is damaged")
        if value is not None:
            value.is_output = True
            value.fixed = value.fixed or f"{kind} output"
    if not function:
        _types(scope)
    elif scope.proto.value_info:
        declare(scope, scope.proto.value_info)
    return pending


def _inputs(scope: Scope, kind: str, function: bool) -> None:
    values, proto = scope.values, scope.proto
    for entry in proto.input:
        name = entry if function else entry.name
        values[name] = Value(name, scope)
        values[name].fixed = f"{kind} input"
    if function:
        return
    overridable = scope.parent is not None or scope.model.loaded.proto.ir_version >= 4
    for tensor in proto.initializer[:]:
        name = tensor.name
        value = values.get(name)
        if value is None:
            value = values[name] = Value(name, scope)
        elif value.init is not None:
            value.overridable, value.fixed = True, "defined twice"  # runtimes do not agree which one counts
        else:
            value.overridable = overridable
            value.fixed = value.fixed if overridable else ""
        value.init, value.shape = tensor, tuple(tensor.dims[:])
        if len(value.shape) > HIGHEST_RANK:
            raise ModelError(f"tensor {name!r} has {len(value.shape)} axes; the model is damaged")
        value.dtype = DTYPES.get(tensor.data_type, "")
    for sparse in proto.sparse_initializer:
        value = values.setdefault(sparse.values.name, Value(sparse.values.name, scope))
        value.fixed = value.fixed or "sparse initializer"
        value.overridable = True
        value.dtype, value.shape = DTYPES.get(sparse.values.data_type, ""), tuple(sparse.dims)


def _nodes(scope: Scope) -> list[tuple[Site, int, str]]:
    values, sites, parent = scope.values, scope.sites, scope.parent
    names = scope.model.names
    pending: list[tuple[Site, int, str]] = []
    for node in scope.proto.node[:]:
        op, domain = node.op_type, node.domain
        if op.__class__ is bytes:  # not UTF-8
            op = as_text(op)
        if domain and domain != "ai.onnx":
            op = f"{domain}.{op}"
        site = Site(node, op, scope)
        outputs = node.output[:]
        site.name = node_name(node.name, op, outputs, names)
        read = site.values
        for slot, name in enumerate(node.input[:]):
            value = values.get(name) if name else None
            if value is None and name:
                value = parent.find(name) if parent is not None else None
                if value is None:
                    pending.append((site, slot, name))
                else:
                    _capture(value, scope)
            if value is not None:
                value.uses.append((site, slot))
                value.count += 1
            read.append(value)
        if op in CONTROL or domain:
            pending += _bodies(site)
        for slot, name in enumerate(outputs):
            if not name:
                site.outputs.append(None)
                continue
            if name in values:
                raise ModelError(
                    f"the value {name!r} is defined twice, the second time by node {site.name!r} ({op})"
                )
            values[name] = value = Value(name, scope, site, slot)
            site.outputs.append(value)
        sites.append(site)
    return pending


def node_name(name: str, op: str, outputs: list[str], names: set[str]) -> str:
    """What a node is called in reports: its own name, or one made of its operator and first output.

    names: those that are taken; this one is added.
    """
    name = name or f"{op}:{outputs[0] if outputs else ''}"
    if name in names:
        name = _unique(name, outputs, names)
    names.add(name)
    return name


def _unique(name: str, outputs: list[str], names: set[str]) -> str:
    stem = f"{name}:{outputs[0]}" if outputs and outputs[0] else name
    name, number = stem, 1
    while name in names:
        number += 1 if number < 100 else len(names)
        name = f"{stem}:{number}"
    return name


def _bodies(site: Site) -> list[tuple[Site, int, str]]:
    scope = site.scope
    pending: list[tuple[Site, int, str]] = []
    for attribute in site.node.attribute:
        graphs = [attribute.g] if attribute.type == 5 else attribute.graphs if attribute.type == 10 else ()
        for graph in graphs:
            body = Scope(scope.model, graph, scope.opset, scope, site, in_function=scope.in_function)
            pending += _fill(body)
            site.bodies = [*(site.bodies or ()), body]
    return pending


def _capture(value: Value, scope: Scope) -> None:
    while scope.parent is not None and scope.parent is not value.scope:
        scope = scope.parent
    if value.init is None and scope.owner is not None:
        value.fixed = value.fixed or f"captured by {scope.owner.name}"


def _resolve(scope: Scope, pending: list[tuple[Site, int, str]]) -> list[tuple[Site, int, str]]:
    """Reads of values that are defined further down: nodes may be listed in any order."""
    if not pending:
        return pending
    left = []
    for site, slot, name in pending:
        value = scope.values.get(name)
        if value is None:
            if scope.parent is None:
                raise ModelError(f"node {site.name!r} ({site.op}) reads {name!r}, which nothing defines")
            left.append((site, slot, name))
            continue
        site.values[slot] = value
        value.uses.append((site, slot))
        value.count += 1
        if site.scope is not scope:
            _capture(value, site.scope)
    if len(left) < len(pending):
        scope.sites = _sorted(scope)
    return left


def _sorted(scope: Scope) -> list[Site]:
    """Producers before readers, and otherwise in the order of the file."""
    order: list[Site] = []
    state: dict[Site, Iterator[Site]] = {}
    done: set[Site] = set()
    for start in scope.sites:
        stack = [] if start in done else [start]
        while stack:
            site = stack[-1]
            if site not in state:
                state[site] = iter([v.site for v in _reads(site, scope) if v.site is not None])
            for needed in state[site]:
                if needed in done:
                    continue
                if needed in state:
                    raise ModelError(
                        f"the nodes {needed.name!r} and {site.name!r} depend on each other in a circle"
                    )
                stack.append(needed)
                break
            else:
                stack.pop()
                done.add(site)
                order.append(site)
    return order


def _reads(site: Site, scope: Scope) -> Iterator[Value]:
    """The values of this scope that a node needs, those that its bodies capture included."""
    yield from (value for value in site.values if value is not None and value.scope is scope)
    for body in site.bodies or ():
        for inner in body.sites:
            yield from _reads(inner, scope)


def _types(scope: Scope) -> None:
    proto = scope.proto
    for entries in (proto.input, proto.output, proto.value_info):
        if len(entries):
            declare(scope, entries)
    if scope.parent is None:
        for entry in proto.input[:]:
            _name_sizes(scope.values[entry.name])


def _name_sizes(value: Value) -> None:
    """A size of a graph input that has no name gets one: in one run it is the same wherever it comes up."""
    shape = value.shape
    if shape is not None and None in shape:
        sizes = (f"size {axis} of {value.name}" if d is None else d for axis, d in enumerate(shape))
        value.shape = tuple(sizes)


def declare(scope: Scope, entries: Any) -> None:
    """Note the types and shapes that a model states."""
    values = scope.values
    for entry in entries[:]:
        value = values.get(entry.name)
        if value is None or (value.init is not None and not value.overridable):
            continue
        typ = entry.type
        if not typ.HasField("tensor_type"):
            continue
        tensor = typ.tensor_type
        if tensor.elem_type:
            value.dtype = DTYPES.get(tensor.elem_type, "")
        if tensor.HasField("shape") and len(tensor.shape.dim) <= HIGHEST_RANK:
            value.shape = tuple([_dim(dim) for dim in tensor.shape.dim[:]])


def _dim(dim: Any) -> int | str | None:
    size: int = dim.dim_value
    if size > 0:
        return size
    name = as_text(dim.dim_param).strip("?")  # some exporters write "?" for each size that they do not know
    if name:
        return name
    return 0 if size == 0 and dim.HasField("dim_value") else None
