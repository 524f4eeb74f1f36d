"""The same model in a wider type, which shows whether an error of the fold is mere rounding.

A float16 model rounds at every step, by more than most faults of a fold would show; its float32 copy has the
same weights (already rounded, now widened, which is exact) and next to no rounding of its own. A float64 copy
does so for float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.file.tensors import tensors

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# For each goal, the types that are widened to it.
_WIDENED: dict[int, tuple[int, ...]] = {
    TensorProto.FLOAT: HALF,
    TensorProto.DOUBLE: (*HALF, TensorProto.FLOAT),
}
_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
}
# Attributes whose number is an element type (of all operators of onnx, all versions).
_TYPE_ATTRIBUTES = frozenset(
    ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision")
)
# From the most rounding to the least.
_BY_ROUNDING = (TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
_NAMES = {
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT16: "float16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}


def float32_copy(loaded: Loaded) -> Loaded:
    """The model with each float16 or bfloat16 tensor, type and Cast made float32; `loaded` is not changed."""
    return _copy(loaded, TensorProto.FLOAT)


def float64_copy(loaded: Loaded) -> Loaded:
    """The model with each floating tensor made float64, for the reference evaluator. `loaded` is not changed.

    Not for onnxruntime: a few operators (Resize's scales, say) take float32 only, which the reference does
    not mind.
    """
    return _copy(loaded, TensorProto.DOUBLE)


def working_type(loaded: Loaded) -> str:
    """The floating type that rounds the most among the model's weights, inputs, outputs and Casts.

    "bfloat16", "float16", "float32" or "float64"; "float32" too for a model without floating numbers.
    """
    model = loaded.proto
    seen = {tensor.data_type for tensor in tensors(model)}
    for typ in _types(model):
        seen.update(_elements(typ))
    for node in nodes(model):
        # A stash_type says in what a sum is kept, and is wider than the data.
        seen.update(a.i for a in node.attribute if a.name in ("to", "dtype") and a.type == AttributeProto.INT)
    return next((_NAMES[t] for t in _BY_ROUNDING if t in seen), "float32")


def rounds_to_integers(loaded: Loaded) -> bool:
    """Whether activations are quantized, so that a rounding error can grow to a whole step."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or str(node.op_type).startswith("QLinear")
        for node in nodes(loaded.proto)
    )


def _copy(loaded: Loaded, goal: int) -> Loaded:
    narrow, dtype = _WIDENED[goal], _NUMPY[goal]
    result = loaded.copy()
    for tensor in tensors(result.proto):
        if tensor.data_type in narrow:
            with np.errstate(invalid="ignore"):  # a signalling NaN in the weights is none of our business
                result.set_array(tensor, np.asarray(result.array(tensor)).astype(dtype))
    for typ in _types(result.proto):
        _widen(typ, narrow, goal)
    for node in nodes(result.proto):
        for attribute in node.attribute:
            if (
                attribute.name in _TYPE_ATTRIBUTES
                and attribute.type == AttributeProto.INT
                and attribute.i in narrow
            ):
                attribute.i = goal
    return result


def _bodies(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph, the functions, and the graphs inside their nodes."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        body = pending.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, at any depth."""
    for body in _bodies(model):
        yield from body.node


def _attributes(model: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    for node in nodes(model):
        yield from node.attribute
    for function in model.functions:
        yield from function.attribute_proto


def _types(model: onnx.ModelProto) -> Iterator[onnx.TypeProto]:
    for body in _bodies(model):
        values = [*body.value_info]
        if isinstance(body, onnx.GraphProto):
            values += [*body.input, *body.output]
        yield from (value.type for value in values if value.HasField("type"))
    for attribute in _attributes(model):
        if attribute.HasField("tp"):
            yield attribute.tp
        yield from attribute.type_protos


def _inside(typ: onnx.TypeProto) -> onnx.TypeProto | None:
    """The type that a sequence, an optional or a map holds."""
    kind = typ.WhichOneof("value")
    if kind == "sequence_type":
        return typ.sequence_type.elem_type
    if kind == "optional_type":
        return typ.optional_type.elem_type
    return typ.map_type.value_type if kind == "map_type" else None


def _elements(typ: onnx.TypeProto) -> Iterator[int]:
    kind = typ.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(typ, kind).elem_type
    inside = _inside(typ)
    if inside is not None:
        yield from _elements(inside)


def _widen(typ: onnx.TypeProto, narrow: tuple[int, ...], goal: int) -> None:
    kind = typ.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        if getattr(typ, kind).elem_type in narrow:
            getattr(typ, kind).elem_type = goal
        return
    inside = _inside(typ)
    if inside is not None:
        _widen(inside, narrow, goal)
