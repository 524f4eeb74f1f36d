"""The operators of the domain `bnfold`, each with a function body of standard operators.

A node of ours names its TensorRT plugin (`plugin_namespace`, `plugin_version`). TensorRT takes the plugin
where one is registered, and else the function in the model, as every other runtime does. Variants have names
of their own: a function body cannot ask what it is called with, and TensorRT's parser goes by names alone.

    BnfoldBatchNorm[Add][Relu]      act(x*scale + shift [+ residual])
    BnfoldBatchStatNorm[Add][Relu]  the same of (x - mean)/sqrt(var + epsilon), the mean and the biased
                                    variance of each channel of this very batch, in float32

x: (N, C, ...); scale, shift: (1, C, 1, ...), for BnfoldBatchNorm* also (N, C, 1, ...); residual, y: as x.
All are of one type: float32, float16 or bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = [
    "DOMAIN",
    "LOWEST_IR",
    "RANKS",
    "TYPES",
    "Variant",
    "attributes",
    "function",
    "lowest_opset",
    "variants",
]

DOMAIN = "bnfold"
VERSION = 1
TYPES = ("float32", "float16", "bfloat16")
RANKS = range(2, 9)  # of x; TensorRT's tensors have at most 8 axes
LOWEST_IR = 8  # that knows functions
_EPSILON = 1e-5


@dataclass(frozen=True)
class Variant:
    """One of the operators: which it is, and what follows the normalization."""

    statistics: bool
    add: bool = False
    relu: bool = False

    @property
    def name(self) -> str:
        stem = "BnfoldBatchStatNorm" if self.statistics else "BnfoldBatchNorm"
        return stem + "Add" * self.add + "Relu" * self.relu


def variants() -> list[Variant]:
    """All of them."""
    return [Variant(*flags) for flags in product((False, True), repeat=3)]


def lowest_opset(variant: Variant, dtype: str) -> int:
    """Of the default domain: broadcasting is from 7, Constants of an attribute from 12, CastLike from 15."""
    if not variant.statistics:
        return 7
    return 12 if dtype == "float32" else 15


def attributes(variant: Variant, epsilon: float) -> dict[str, Any]:
    """Those of a node."""
    own = {"epsilon": epsilon} if variant.statistics else {}
    return {**own, "plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}


def function(variant: Variant, opset: int) -> onnx.FunctionProto:
    """The body, in operators of this version of the default domain."""
    nodes = _normalized(opset) if variant.statistics else []
    last = "normalized" if variant.statistics else "x"
    in_float32 = variant.statistics and opset >= 15
    steps = [("Mul", "scale"), ("Add", "shift"), *([("Add", "residual")] * variant.add)]
    for op, operand in steps:
        other = operand
        if in_float32:
            other = f"{operand}_wide"
            nodes.append(helper.make_node("Cast", [operand], [other], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node(op, [last, other], [f"with_{operand}"]))
        last = f"with_{operand}"
    if variant.relu:
        nodes.append(helper.make_node("Relu", [last], ["relu"]))
        last = "relu"
    if in_float32:
        nodes.append(helper.make_node("CastLike", [last, "x"], ["y"]))
    else:
        nodes[-1].output[0] = "y"
    proto = helper.make_function(
        DOMAIN,
        variant.name,
        ["x", "scale", "shift", *(["residual"] * variant.add)],
        ["y"],
        nodes,
        [helper.make_opsetid("", opset)],
    )
    if variant.statistics:
        proto.attribute_proto.append(helper.make_attribute("epsilon", _EPSILON))
    return proto


def _normalized(opset: int) -> list[onnx.NodeProto]:
    """(x - mean)/sqrt(var + epsilon) in float32, of any rank: the axes behind the channels become one."""
    node = helper.make_node
    axes: list[str] = ["axes"]
    mean: dict[str, Any] = {"keepdims": 1}
    if opset < 18:  # an attribute then
        axes, mean = [], {"keepdims": 1, "axes": [0, 2]}
    epsilon = node("Constant", [], ["epsilon"])
    epsilon.attribute.add(name="value_float", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT)
    return [
        node("Cast", ["x"], ["x_wide"], to=onnx.TensorProto.FLOAT),
        node("Shape", ["x"], ["shape"]),
        _integers("rows", [0, 0, -1]),
        node("Reshape", ["x_wide", "rows"], ["values"]),
        *(_integers(name, [0, 2]) for name in axes),
        node("ReduceMean", ["values", *axes], ["mean"], **mean),
        node("Sub", ["values", "mean"], ["centered"]),
        node("Mul", ["centered", "centered"], ["squares"]),
        node("ReduceMean", ["squares", *axes], ["var"], **mean),
        epsilon,
        node("Add", ["var", "epsilon"], ["var_epsilon"]),
        node("Sqrt", ["var_epsilon"], ["deviation"]),
        node("Div", ["centered", "deviation"], ["normalized_rows"]),
        node("Reshape", ["normalized_rows", "shape"], ["normalized"]),
    ]


def _integers(name: str, values: list[int]) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(np.array(values, np.int64))
    return helper.make_node("Constant", [], [name], value=tensor)
