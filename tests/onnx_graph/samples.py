"""A small model with a weight wherever a model can have one, and with what files hold besides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

UNKNOWN = b"\x92\xb1\x01\x0bunknown yet"  # field 2834, which no message has


def weights(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def with_unknown(message: Any) -> None:
    """Give a message a field that is not in its definition."""
    message.ParseFromString(message.SerializeToString() + UNKNOWN)


def everything() -> onnx.ModelProto:
    """Weights in initializers, attributes, inner graphs, functions, training; it need not run."""
    n = 400  # floats: 1600 bytes, large enough to be cut out

    def add(*names: str) -> onnx.NodeProto:
        return helper.make_node("Add", names[:2], [names[2]])

    def constant(name: str, seed: int) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(weights(seed, n), name))

    sparse = onnx.SparseTensorProto(dims=[4000])
    sparse.values.CopyFrom(numpy_helper.from_array(weights(9, n), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(n, dtype=np.int64) * 10, ""))
    inner = helper.make_graph([constant("i", 3), add("i", "j", "k")], "inner", [], [value("k", n)])
    inner.initializer.append(numpy_helper.from_array(weights(4, n), "j"))
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["k2"])], "other", [], [value("k2", n)])
    outer = helper.make_graph(
        [helper.make_node("If", ["flag"], ["k3"], then_branch=inner, else_branch=other)],
        "outer",
        [],
        [value("k3", n)],
    )
    function = helper.make_function(
        "local",
        "Shift",
        ["a"],
        ["b"],
        [constant("s", 5), add("a", "s", "b")],
        [helper.make_opsetid("", 18)],
    )
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [n], weights(6, n).tolist())
    nodes = [
        add("x", "w", "x1"),
        constant("c", 2),
        add("x1", "c", "x2"),
        helper.make_node("Shift", ["x2"], ["x3"], domain="local"),
        helper.make_node("If", ["flag"], ["x4"], then_branch=outer, else_branch=other),
        helper.make_node(
            "Pack",
            ["x3", "x4"],
            ["x5"],
            domain="strange",
            parts=[typed, numpy_helper.from_array(weights(7, n))],
        ),
        helper.make_node("Pick", ["x5"], ["y"], domain="strange", table=sparse),
    ]
    graph = helper.make_graph(
        nodes,
        "everything",
        [value("x", n), value("flag", kind=TensorProto.BOOL)],
        [value("y", n)],
        [
            numpy_helper.from_array(weights(1, n), "w"),
            numpy_helper.from_array(np.array([1, -1]), "small"),
            typed,
        ],
        "what it is for",
        [value("x1", n), value("nobody", n)],
    )
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[
            helper.make_opsetid("", 18),
            helper.make_opsetid("local", 1),
            helper.make_opsetid("strange", 3),
        ],
        ir_version=10,
        producer_name="tests",
    )
    helper.set_model_props(model, {"key": "value", "another": "z"})
    training = model.training_info.add()
    training.algorithm.CopyFrom(other)
    training.initialization.initializer.append(numpy_helper.from_array(weights(8, n), "start"))
    for message in (
        model,
        model.graph,
        model.graph.initializer[0],
        model.graph.node[1].attribute[0].t,
        model.functions[0],
    ):
        with_unknown(message)
    return model


def chain(layers: int = 3, channels: int = 16) -> onnx.ModelProto:
    """Conv -> BatchNormalization -> Relu, some times; each conv weight is 9 KiB at 16 channels."""
    nodes, tensors, x = [], [], "x"
    for i in range(layers):
        names = [f"{what}{i}" for what in ("w", "scale", "shift", "mean", "var")]
        shapes = [(channels, channels, 3, 3)] + 4 * [(channels,)]
        tensors += [
            numpy_helper.from_array(np.abs(weights(i, *s)), n) for n, s in zip(names, shapes, strict=True)
        ]
        nodes += [
            helper.make_node("Conv", [x, names[0]], [f"c{i}"], name=f"conv{i}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{i}", *names[1:]], [f"n{i}"], name=f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        x = f"r{i}"
    shape = (1, channels, 8, 8)
    graph = helper.make_graph(nodes, "chain", [value("x", *shape)], [value(x, *shape)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
