"""Names in a file that torch's exporter wrote: of layers, sizes, inputs and outputs."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold.errors import UsageError

__all__ = ["fix_sizes", "name_layers", "rename", "sizes_of", "unnamed"]

_LAYERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_layers(model: Any) -> None:
    """Give layers the names of their modules; where a module makes several, the first has it."""
    taken = {node.name for node in model.graph}
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if node.op_type in _LAYERS and len(scopes) > 1 and scopes[-2] and scopes[-2] not in taken:
            taken.add(scopes[-2])
            node.name = scopes[-2]


def rename(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the first inputs and outputs."""
    for what, values, names in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        if isinstance(names, str) or len(names) > len(values) or not all(names):
            own = ", ".join(str(value.name) for value in values)
            raise UsageError(f"{what}_names={list(names)} do not name the {what}s one each: {own or 'none'}")
    all_names = [*inputs, *(str(value.name) for value in graph.inputs[len(inputs) :]), *outputs]
    for name, times in Counter(all_names).items():
        if times > 1:
            raise UsageError(f"{name!r} would be the name of two inputs or outputs of the file")
    for i, name in enumerate(outputs):
        _alone(graph, i)
        _name(graph, graph.outputs[i], name)
    for value, name in zip(graph.inputs, inputs, strict=False):
        _name(graph, value, name)


def _alone(graph: Any, index: int) -> None:
    """An output that is an input, a stored value or another output becomes a value of its own."""
    import onnx_ir

    value = graph.outputs[index]
    if value.is_graph_input() or value.is_initializer() or list(graph.outputs).index(value) < index:
        node = onnx_ir.node("Identity", [value])
        graph.append(node)
        graph.outputs[index] = node.outputs[0]
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape


def _name(graph: Any, value: Any, name: str) -> None:
    """Another value of that name makes way."""
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    taken = {each.name: each for each in values}
    other = taken.get(name, value)
    if other is not value:
        other.name = next(free for i in count(1) if (free := f"{name}_{i}") not in taken)
    value.name = name


def sizes_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> list[Any]:
    """What is said of the sizes of each tensor among the inputs; None: nothing."""
    if shapes is None:
        return []
    if hasattr(shapes, "dynamic_shapes"):  # torch.export.ShapesCollection, for one
        shapes = shapes.dynamic_shapes(module, args, kwargs)
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    if not isinstance(shapes, Mapping):
        shapes = dict(zip(bound, shapes, strict=False))
    return list(_of_tensors(dict(bound), shapes))


def _of_tensors(value: Any, said: Any) -> Iterator[Any]:
    """`said` follows the structure of `value` down to tensors, or ends before with None."""
    if isinstance(value, torch.Tensor):
        yield said
        return
    parts = _parts(value)
    if said is None:
        each = [None] * len(parts)
    elif isinstance(value, Mapping):
        parts, each = list(value.values()), [said.get(key) for key in value]
    else:
        each = _parts(said)
    for part, own in zip(parts, each, strict=False):
        yield from _of_tensors(part, own)


def _parts(value: Any) -> list[Any]:
    """What a tuple, list or other container holds; nothing of what is none."""
    found, _ = pytree.tree_flatten(value, is_leaf=lambda inner: inner is not value)
    return [part for part in found if part is not value]


def fix_sizes(graph: Any) -> None:
    """A size that torch found to be fixed while it traced is a number, and no name."""
    import onnx_ir

    for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
        sizes = [getattr(size, "value", size) for size in value.shape or ()]
        if any(isinstance(size, str) and size.isdecimal() for size in sizes):
            fixed = [int(size) if isinstance(size, str) and size.isdecimal() else size for size in sizes]
            value.shape = onnx_ir.Shape(fixed)


def unnamed(sizes: Sequence[Any], model: Any) -> list[str]:
    """Names of sizes that the inputs of the file do not have."""
    axes = [axis for said in sizes if said for axis in (said.values() if isinstance(said, Mapping) else said)]
    names = [axis if isinstance(axis, str) else getattr(axis, "__name__", "") for axis in axes]
    found = {
        size.value for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)
    }
    written = {word for size in found for word in re.findall(r"\w+", size or "")}
    return sorted({name for name in names if name.isidentifier()} - written)
