"""Looking at a model from outside, without any help of bnfold: what it holds, what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unimplemented

Array: TypeAlias = np.ndarray[Any, Any]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
AFFINE = ("Add", "Sub", "Mul", "Div")
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
}
SIZES = {"N": 2, "H": 9, "W": 11, "L": 13}  # what named sizes are in a run


def scopes(model: onnx.ModelProto) -> Iterator[tuple[Any, frozenset[str]]]:
    """Each graph and function body, with the constants that it sees from outside."""
    yield from _inner(model.graph, frozenset())
    for function in model.functions:
        yield from _inner(function, frozenset())


def _inner(graph: Any, outside: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    yield graph, outside
    seen = outside | constants(graph, outside)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _inner(attribute.g, seen)


def constants(graph: Any, outside: frozenset[str]) -> frozenset[str]:
    """Names of what is constant in a graph: initializers, and what is computed from constants alone."""
    found = {tensor.name for tensor in getattr(graph, "initializer", ())} | set(outside)
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "CastLike":
            inputs = inputs[:1]
        if all(name in found for name in inputs) and not any(
            a.type == onnx.AttributeProto.GRAPH for a in node.attribute
        ):
            found.update(node.output)
    return frozenset(found)


def nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All nodes, those of inner graphs and functions too."""
    return [node for graph, _ in scopes(model) for node in graph.node]


def affine_nodes(model: onnx.ModelProto) -> list[str]:
    """Batch norms, and Add, Sub, Mul, Div of floats with a constant that is one number or one per channel."""
    known = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = []
    for graph, outside in scopes(known):
        fixed = outside | constants(graph, outside)
        values = () if isinstance(graph, onnx.FunctionProto) else (*graph.value_info, *graph.output)
        types = {value.name: value.type.tensor_type for value in values}
        shapes = {t.name: tuple(t.dims) for t in getattr(graph, "initializer", ())}
        for node in graph.node:
            if node.domain not in ("", "ai.onnx") or all(name in fixed for name in node.input):
                continue
            if node.op_type == "BatchNormalization":
                found.append(node.name)
            elif node.op_type in AFFINE:
                constant = [name for name in node.input if name in fixed]
                kind = types[node.output[0]].elem_type if node.output[0] in types else 0
                wide = sum(size != 1 for name in constant for size in shapes.get(name, ())) > 1
                if constant and not wide and (kind in FLOATS or kind == 0):
                    found.append(node.name)
    return found


def linear_nodes(model: onnx.ModelProto) -> int:
    return sum(node.op_type in LINEAR and node.domain in ("", "ai.onnx") for node in nodes(model))


def repeated_names(model: onnx.ModelProto) -> list[str]:
    """Names of tensors that are defined twice in one scope, and of nodes that are used twice in one graph."""
    found = []
    for graph, _ in scopes(model):
        graph_inputs = [getattr(value, "name", value) for value in graph.input]
        stored = [
            tensor.name for tensor in getattr(graph, "initializer", ()) if tensor.name not in graph_inputs
        ]
        tensors = [*graph_inputs, *stored, *(name for node in graph.node for name in node.output if name)]
        called = [node.name for node in graph.node if node.name]
        for names in (tensors, called):
            found += sorted({name for name in names if names.count(name) > 1})
    return found


def feeds(
    model: onnx.ModelProto, seed: int, gain: float = 1.0, *, override: bool = False
) -> dict[str, Array]:
    """Random inputs: normal floats (times `gain`), small integers, a true boolean for even seeds.

    override: give values to inputs that have a default, too.
    """
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    made: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in stored and not override:
            continue
        typ = value.type.tensor_type
        shape = tuple(d.dim_value or SIZES.get(d.dim_param, 5) for d in typ.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(typ.elem_type)
        if dtype.kind in "iu":
            made[value.name] = rng.integers(1, 4, shape).astype(dtype)
        elif dtype.kind == "b":
            made[value.name] = np.full(shape, seed % 2 == 0)
        else:
            made[value.name] = np.asarray(rng.standard_normal(shape) * gain).astype(dtype)
    return made


def run(model: onnx.ModelProto, feed: dict[str, Array], evaluator: str = "onnxruntime") -> list[Array]:
    """The outputs, by onnxruntime with its optimizer off, or by onnx's reference evaluator ("reference").

    The last onnxruntime for Python 3.10 has no DeformConv, and the evaluator is slow: the test ends there.
    """
    if evaluator == "reference":
        return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, feed)]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Unimplemented as error:
        if "DeformConv" not in str(error):
            raise
        pytest.skip("this onnxruntime has no DeformConv, so the folded model is not run")
    return [np.asarray(output) for output in session.run(None, feed)]


def difference(expected: list[Array], found: list[Array]) -> float:
    """max|difference| / max|output|, the largest over all outputs."""
    assert [a.shape for a in expected] == [a.shape for a in found]
    assert [a.dtype for a in expected] == [a.dtype for a in found]
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.dtype.kind in "iub":
            worst = max(worst, float(np.abs(a.astype(np.int64) - b.astype(np.int64)).max()))
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        worst = max(worst, float(np.abs(a - b).max() / np.abs(a).max()))
    return worst
