"""What is in a model, in numbers: for the summary of a command, which should cost next to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx

from bnfold.fold.graph import Graph
from bnfold.fold.merge.view import positions
from bnfold.fold.roles import Linear
from bnfold.onnx_graph.file.data_file import locations_of
from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import as_text
from bnfold.onnx_graph.model.scopes import CONTROL
from bnfold.onnx_graph.site import DTYPES, Site
from bnfold.report.summary import Contents, File, Summary

__all__ = ["Sketch", "Uses", "describe", "uses_of"]

Uses: TypeAlias = "dict[tuple[str, str], int]"

_LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_PRODUCTS = frozenset(("Gemm", "MatMul"))
_SHAPING = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_SAME_COUNT = _SHAPING | {"Cast", "DequantizeLinear", "QuantizeLinear"}  # of numbers, before and behind


class Sketch:
    """What is in a model before it is changed; and then what is in it after."""

    def __init__(self) -> None:
        self.before: Contents | None = None
        self._uses: Uses = {}

    def draw(self, loaded: Loaded, graph: Graph) -> None:
        """Note what is in a model, when it is read for the first time."""
        if self.before is None:
            self._uses = uses_of(graph)
            self.before = describe(loaded, self._uses)

    def summary(self, loaded: Loaded, files: Sequence[Path]) -> Summary | None:
        """Before and after; None if no model was read. files: those of the model that was made of it."""
        if self.before is None:
            return None
        after = describe(loaded, self._uses)
        written = [File(str(path), path.stat().st_size) for path in files]
        after.bytes = sum(file.bytes for file in written) if written else None
        return Summary(self.before, after, written)


def uses_of(graph: Graph) -> Uses:
    """How often each number of a stored weight is multiplied in one run, by the layer that it belongs to.

    A size that is not static counts as 1. Folding does not change it, and dropping channels neither. A layer
    is known by its output, its name and its weight, each with what it is: afterwards it may have another of
    them.
    """
    uses: Uses = {}
    for node in graph.nodes:
        role = node.role
        output = node.outputs[0] if isinstance(role, Linear) else None
        if output is None or not isinstance(role, Linear):
            continue
        count = positions(output, role.out_axis)
        if node.op == "ConvTranspose":
            count = positions(node.at(role.x), role.in_axis)
        elif node.op in _PRODUCTS:  # a stack of matrices has one for each of its positions
            count //= max(1, math.prod(role.rest))
        site: Site = node.source
        weight = site.values[role.weight_slot]
        uses["output", output.name] = uses["node", site.name] = count
        if weight is not None:
            uses["weight", weight.name] = count
    return uses


def describe(loaded: Loaded, uses: Uses) -> Contents:
    """What is in a model. uses: of it, or of the one that it was made from: `uses_of`; without them the
    number of multiplications is not known.
    """
    graph = loaded.proto.graph
    count = _Count(uses)
    count.graph(graph)
    inner = any(node.op_type in _LINEAR for function in loaded.proto.functions for node in function.node)
    stored = {tensor.name for tensor in graph.initializer} if len(graph.input) > 1 else count.sizes
    return Contents(
        next((entry.version for entry in loaded.proto.opset_import if entry.domain in ("", "ai.onnx")), 0),
        [_signature(entry) for entry in graph.input if entry.name not in stored],
        [_signature(entry) for entry in graph.output],
        count.operators,
        count.parameters,
        count.work if count.known and not inner else None,
        _bytes(loaded),
    )


class _Count:
    """What is counted in one walk over all graphs of a model.

    sizes: of stored values, as far as a layer may read them as its weight.
    """

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.operators: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.parameters = self.work = 0
        self.known = True

    def graph(self, graph: onnx.GraphProto) -> None:
        """Count one, and the bodies in it."""
        sizes, operators, prod = self.sizes, self.operators, math.prod
        for tensor in graph.initializer:
            sizes[tensor.name] = size = prod(tensor.dims[:])
            self.parameters += size
        for node in graph.node:
            op, domain = node.op_type, node.domain
            if domain and domain != "ai.onnx":
                op = f"{as_text(domain)}.{as_text(op)}"
            elif op.__class__ is bytes:  # not UTF-8
                op = as_text(op)
            operators[op] = operators.get(op, 0) + 1
            if op in _LINEAR:
                self._layer(node)
            elif op == "Constant" and node.output:
                sizes[node.output[0]] = size = sum(prod(a.t.dims) for a in node.attribute if a.HasField("t"))
                self.parameters += size
            elif op in _SAME_COUNT:
                if node.input and node.output and node.input[0] in sizes:
                    sizes[node.output[0]] = sizes[node.input[0]]
            elif op in CONTROL:
                for attribute in node.attribute:
                    for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                        self.graph(body)

    def _layer(self, node: onnx.NodeProto) -> None:
        for name in reversed(node.input[:2]):
            size = self.sizes.get(name)
            if size is not None and node.output:
                times = self.uses.get(("output", node.output[0]))
                if times is None:
                    times = self.uses.get(("node", node.name), self.uses.get(("weight", name)))
                self.known = self.known and times is not None
                self.work += size * (times or 0)
                return


def _signature(entry: onnx.ValueInfoProto) -> str:
    """An input or output as the command line takes it: its name, sizes and type."""
    kind, name = entry.type.WhichOneof("value") or "unknown", as_text(entry.name)
    if kind != "tensor_type":
        return f"{name}:{kind.removesuffix('_type')}"
    tensor = entry.type.tensor_type
    sizes = [
        as_text(size.dim_param) or (str(size.dim_value) if size.HasField("dim_value") else "?")
        for size in tensor.shape.dim
    ]
    shape = ",".join(sizes) if tensor.HasField("shape") else "?"
    return f"{name}:{shape}:{DTYPES.get(tensor.elem_type, '?')}"


def _bytes(loaded: Loaded) -> int | None:
    """Of the model's file and its data files."""
    path = loaded.path
    if path is None:
        return None
    names = locations_of(loaded.proto) if loaded.is_external else ()
    try:
        return sum(file.stat().st_size for file in (path, *map(path.parent.joinpath, names)))
    except OSError:
        return None
