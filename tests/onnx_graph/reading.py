"""Small models in onnx's text form, and what is read of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from bnfold.fold.graph import Graph, Node, Tensor
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.read import read

__all__ = ["CONV", "FUNCTION", "IF", "RNG", "W", "graph_of", "model", "node", "norm", "tensor"]

RNG = np.random.default_rng(0)


def model(text: str, opset: int = 18, ir: int = 10, **arrays: Any) -> onnx.ModelProto:
    """A model in onnx's text form; `arrays` become initializers."""
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n' + text
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    return proto


def norm(channels: int = 4) -> dict[str, Any]:
    """Batch norm parameters g, b, m, v."""
    values = {"g": RNG.uniform(0.5, 2, channels), "b": RNG.normal(size=channels)}
    values |= {"m": RNG.normal(size=channels), "v": RNG.uniform(0.5, 2, channels)}
    return {name: value.astype(np.float32) for name, value in values.items()}


def graph_of(text: str, **options: Any) -> Graph:
    shared = options.pop("shared", "duplicate")
    return read(load(model(text, **options)), shared)


def node(graph: Graph, op: str) -> Node:
    found = [node for node in graph.nodes if node.op == op]
    assert len(found) == 1, [n.op for n in graph.nodes]
    return found[0]


def tensor(graph: Graph, name: str) -> Tensor:
    found = [t for t in graph.tensors if t.name == name]
    assert len(found) == 1
    return found[0]


W = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
CONV = """g (float[2,3,9,11] x) => (float[2,4,7,9] y) {
    c = Conv (x, w)
    n = BatchNormalization (c, g, b, m, v)
    y = Relu (n)
}"""
IF = """g (float[1,3,9,9] x, bool c) => (float[1,4,7,7] y) {
    o = Conv (x, w)
    y = If (c) <
        then_branch = a () => (float[1,4,7,7] p) { n = BatchNormalization (o, g, b, m, v)  p = Relu (n) },
        else_branch = b () => (float[1,4,7,7] q) { n = Conv (x, w)  q = BatchNormalization (n, g, b, m, v) }
    >
}"""
FUNCTION = """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
g (float[1,3,9,9] x) => (float[1,4,9,9] z) { y = my.Block (x)  z = Relu (y) }
<domain: "my", opset_import: ["" : 18]>
Block (a) => (r) {
    w = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,12}> ()
    k = Constant <value = float[4] {1,2,3,4}> ()
    c = Conv (a, w)
    n = BatchNormalization (c, k, k, k, k)
    r = Relu (n)
}"""
