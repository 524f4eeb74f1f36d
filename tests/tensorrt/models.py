"""Small models for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import bnfold
from bnfold.onnx_graph.file.loaded import Loaded, load
from tests.onnx_graph.build import Build

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
TARGET = "8.0"  # what engines are built for here: layers depend on it
BATCHES = {"x": ((1, 6, 9, 9), (4, 6, 9, 9), (8, 6, 9, 9))}


def chain(batch: Any = 2, **builder: Any) -> onnx.ModelProto:
    """conv, batch norm, relu."""
    g = Build(seed=1, **builder)
    x = g.input("x", (batch, 6, 9, 9))
    g.output(g.op("Relu", g.bn(g.conv(x, 8, k=3, name="conv"), name="bn"), name="relu"))
    return g.model()


def residual(blocks: int = 3) -> onnx.ModelProto:
    """A stem and blocks as of ResNet-18, each with two convs and a sum, the first with a conv beside them."""
    g = Build(seed=2)
    x = g.input("x", (1, 3, 32, 32))

    def layer(x: str, name: str, outputs: int, k: int, relu: bool = True) -> str:
        y = g.bn(g.conv(x, outputs, k=k, pads=k // 2, bias=False, name=f"{name}.conv"), name=f"{name}.bn")
        return g.op("Relu", y, name=f"{name}.relu") if relu else y

    x = g.op("MaxPool", layer(x, "stem", 8, 3), name="pool", kernel_shape=[2, 2], strides=[2, 2])
    for i in range(blocks):
        y = layer(layer(x, f"{i}.a", 16, 3), f"{i}.b", 16, 3, relu=False)
        x = layer(x, f"{i}.short", 16, 1, relu=False) if i == 0 else x
        x = g.op("Relu", g.op("Add", y, x, name=f"{i}.sum"), name=f"{i}.relu")
    g.output(g.gemm(g.op("Flatten", g.op("GlobalAveragePool", x)), 5, (5,), name="classify"))
    return g.model()


def preactivated() -> onnx.ModelProto:
    """A batch norm and a ReLU before the conv: nothing can absorb the norm."""
    g = Build(seed=3)
    x = g.input("x", (1, 6, 9, 9))
    y = g.conv(g.op("Relu", g.bn(x, name="bn"), name="relu"), 6, k=3, pads=1, name="conv")
    g.output(g.op("Add", x, y, name="sum"))
    return g.model()


def training() -> onnx.ModelProto:
    """A batch norm in training mode, with all three outputs."""
    model = chain()
    [node] = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    node.output.extend(["mean_out", "var_out"])
    node.attribute.append(helper.make_attribute("training_mode", 1))
    return model


def ours(plugin: bool = True) -> onnx.ModelProto:
    """conv, and twice bnfold's batch norm with a ReLU, as a model-local function of standard operators."""
    g = Build(seed=4)
    x = g.conv(g.input("x", (1, 6, 9, 9)), 6, k=3, name="conv")
    names = [g.const(g.normal((1, 6, 1, 1)), name) for name in ("scale0", "shift0", "scale1", "shift1")]
    g.output(x)
    model = g.model()
    attributes = {"plugin_namespace": "bnfold", "plugin_version": "1"} if plugin else {}
    for i in range(2):
        node = helper.make_node(
            "BnfoldBatchNormRelu", [x, *names[2 * i : 2 * i + 2]], [f"y{i}"],
            name=f"norm{i}", domain="bnfold", **attributes,
        )  # fmt: skip
        model.graph.node.append(node)
        x = f"y{i}"
    model.graph.output[0].name = x
    body = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"], name="mul"),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"], name="add"),
        helper.make_node("Relu", ["shifted"], ["y"], name="act"),
    ]
    opset = [helper.make_opsetid("", 18)]
    names = ["x", "scale", "shift"]
    model.functions.append(helper.make_function("bnfold", "BnfoldBatchNormRelu", names, ["y"], body, opset))
    model.opset_import.append(helper.make_opsetid("bnfold", 1))
    return model


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    made, _ = bnfold.fold_onnx(model)
    assert isinstance(made, onnx.ModelProto)
    return made


def stored(model: onnx.ModelProto, path: Path) -> Loaded:
    onnx.save(model, path)
    return load(path)
