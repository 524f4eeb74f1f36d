"""A half-precision model as a device computes it, for any CPU: in float32, with the rounding written in.

onnxruntime computes half precision on a CPU in float32, without rounding what lies between two operators: a
tensor that overflows to infinity on a GPU is right there, and bfloat16 it does not run at all. So the model's
float32 copy gets two Casts, to half and back, behind each operator that makes a half tensor. That is what a
device does that computes each operator in float32 and stores its result. Of a frozen batch norm, scale and
shift are computed in half precision, as TensorRT does it (seen in its RTX edition: the sum of variance and
epsilon, too, is a half number).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from bnfold.onnx_graph.file.loaded import Loaded
from bnfold.onnx_graph.model.surgery import restate
from bnfold.onnx_graph.ops.facts import EPSILON
from bnfold.onnx_graph.ops.operator import Half
from bnfold.onnx_graph.ops.table import record_of
from bnfold.onnx_graph.read import analysed
from bnfold.onnx_graph.run import widened as precision
from bnfold.onnx_graph.site import CODES, Site
from bnfold.passes.half.slots import HALVES

__all__ = ["rounded_copy"]


def rounded_copy(loaded: Loaded) -> Loaded:
    """The float32 model that computes what the half-precision model does; `loaded` is not changed.

    Its inputs and outputs of half precision become float32. Bodies of control flow and of functions are
    computed in float32, and what they give is rounded.
    """
    root = analysed(loaded).scopes[0]
    halves = {
        name: CODES[value.dtype]
        for name, value in root.values.items()
        if value.dtype in HALVES and value.site is not None and not record_of(value.site.op).half & Half.EXACT
    }
    copy = precision.float32_copy(loaded)
    graph = copy.proto.graph
    for site in root.sites:
        if site.op == "BatchNormalization" and site.dtype(1) in HALVES and not site.attr("training_mode", 0):
            _in_half(site, graph)
    nodes: list[onnx.NodeProto] = []
    taken = {*root.values}
    for node in graph.node:
        nodes.append(node)
        for slot, name in enumerate(node.output):
            code = halves.get(name)
            if code is None:
                continue
            exact, half = _name(f"{name}_exact", taken), _name(f"{name}_half", taken)
            node.output[slot] = exact
            nodes += [_cast(exact, half, code), _cast(half, name, TensorProto.FLOAT)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return copy


def _in_half(site: Site, graph: onnx.GraphProto) -> None:
    """Give a batch norm of the float32 copy the scale and shift that half arithmetic makes of it."""
    parts = [site.value(slot) for slot in range(1, 5)]
    if any(part is None for part in parts):
        return
    gamma, beta, mean, var = (np.asarray(part) for part in parts)
    half = gamma.dtype
    with np.errstate(all="ignore"):
        std = np.sqrt((var.astype(half) + half.type(site.attr("epsilon", EPSILON))).astype(half)).astype(half)
        scale = (gamma / std).astype(half)
        shift = (beta - (mean.astype(half) * scale).astype(half)).astype(half)
    node = next(node for node in graph.node if node.output[0] == site.node.output[0])
    for slot, array in enumerate((scale, shift, np.zeros_like(gamma), np.ones_like(gamma)), 1):
        name = f"{node.output[0]} in half {slot}"
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        node.input[slot] = name
    restate(node, {"epsilon": 0.0})


def _name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _cast(source: str, goal: str, code: int) -> onnx.NodeProto:
    node = onnx.NodeProto(op_type="Cast", input=[source], output=[goal])
    node.attribute.add(name="to", type=AttributeProto.INT, i=code)
    return node
