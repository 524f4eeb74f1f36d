"""What follows from the sizes of the inputs without a run: shapes of tensors, and integers made of shapes.

onnx infers the shapes. It is told what it does not see for itself: integers that are computed of constants
(axes, say), and the sizes of what is taken of a tensor that was split into a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from bnfold.proof.graph import Model
from bnfold.proof.operator import Array, Undecided, is_float, zero_of
from bnfold.proof.scope import Scope

__all__ = ["inferred", "integers", "of_shapes"]

HUGE = 1 << 48  # numbers, that no array has
FEW = 64  # integers, that onnx is told
SHAPES = frozenset({"Shape", "Size"})


def inferred(original: Model, sizes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
    """Tensors of floats whose shapes follow from those of the inputs, `sizes`.

    A wrong one would only make the evaluation of a region fail.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original.proto)
    _tell(model.graph, original.main)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in model.graph.input:
        if value.name in sizes:
            value.type.tensor_type.shape.Clear()
            value.type.tensor_type.shape.SetInParent()
            for size in sizes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # whatever onnx raises: a run will tell
        return {}
    return dict(_stated(model.graph, ""))


def _tell(graph: onnx.GraphProto, scope: Scope) -> None:
    """Put what is known into a copy of the graph: integers that are computed, and no sequence of parts."""
    parts: dict[str, int] = {}  # of a tensor, by the name of the sequence
    for node in graph.node:
        at = scope.constant(node.input[1]) if len(node.input) == 2 else None
        value = scope.constant(node.output[0]) if len(node.output) == 1 else None
        if value is not None:
            if value.dtype == np.int64 and value.size <= FEW:
                stated = helper.make_attribute("value", numpy_helper.from_array(value))
                node.CopyFrom(NodeProto(op_type="Constant", output=node.output, attribute=[stated]))
        elif node.op_type == "SplitToSequence" and at is not None and at.ndim == 1:
            name = node.output[0]
            parts[name] = at.size
            axis = [attribute for attribute in node.attribute if attribute.name == "axis"]
            outputs = [f"{name}:{i}" for i in range(at.size)]
            node.CopyFrom(NodeProto(op_type="Split", input=node.input, output=outputs, attribute=axis))
        elif node.op_type == "SequenceAt" and at is not None and node.input[0] in parts:
            part = f"{node.input[0]}:{int(at) % parts[node.input[0]]}"
            node.CopyFrom(NodeProto(op_type="Identity", input=[part], output=node.output))


def integers(scope: Scope, of_shapes: AbstractSet[str], known: Mapping[str, Array]) -> dict[str, Array]:
    """What is made of shapes and constants, where all of these are known; a shape needs no numbers.

    of_shapes: names. known: tensors of floats.
    """
    found: dict[str, Array] = {}
    for node in scope.nodes:
        made = {name for name in node.outputs if name and scope.constant(name) is None}
        if not made or not made <= of_shapes:
            continue
        around = known if node.op in SHAPES else found
        given = [around.get(name, scope.constant(name)) if name else None for name in node.inputs]
        if any(value is None for name, value in zip(node.inputs, given, strict=True) if name):
            continue
        try:
            found.update(zip(node.outputs, node.operator.run(given), strict=False))
        except Undecided:  # a run will tell
            continue
    return {name: value for name, value in found.items() if name and not is_float(value)}


def _stated(graph: onnx.GraphProto, path: str) -> Iterator[tuple[str, Array]]:
    """By path and name, what a graph and the bodies in it say of tensors of floats."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
            continue
        zero = zero_of(tensor.elem_type)
        shape = [d.dim_value for d in dims]
        if zero is not None and is_float(zero) and min(shape, default=0) >= 0 and math.prod(shape) <= HUGE:
            yield path + value.name, np.broadcast_to(zero, shape)
    for node in graph.node:
        bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
        for i, body in enumerate(bodies):
            yield from _stated(body, f"{path}{next(filter(None, node.output), '')}:{i}/")


def of_shapes(scope: Scope) -> set[str]:
    """Tensors that depend on shapes and constants only: whatever an input holds, they are the same."""
    found: set[str] = set()
    for node in scope.nodes:
        if node.control or node.random:
            continue
        if node.op in SHAPES or all(x in found or scope.constant(x) is not None for x in node.reads()):
            found.update(filter(None, node.outputs))
    return found
