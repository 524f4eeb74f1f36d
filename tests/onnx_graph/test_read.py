"""What the solver gets to see: nodes, tensors, scopes; batch norms read together."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from bnfold.fold.graph import Node, Tensor
from bnfold.fold.roles import Affine, Closed, Linear, Map, Sum
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.ops.batch_norms import read_together
from bnfold.onnx_graph.ops.table import role_of
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.site import INLINE, Site, Value
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.reading import CONV, FUNCTION, IF, W, graph_of, model, node, norm, tensor


def test_a_chain():
    values = norm()
    graph = graph_of(CONV, w=W, **values)
    conv, bn, relu = graph.nodes
    assert [type(n.role) for n in graph.nodes] == [Linear, Affine, Map]
    assert [t.name for t in graph.tensors] == ["x", "c", "n", "y"]
    assert [t.shape for t in graph.tensors] == [(2, 3, 9, 11), (2, 4, 7, 9), (2, 4, 7, 9), (2, 4, 7, 9)]
    assert [t.fixed for t in graph.tensors] == ["graph input", "", "", "graph output"]
    assert (conv.inputs[0], conv.inputs[1], conv.outputs[0]) == (graph.tensors[0], None, graph.tensors[1])
    assert (graph.tensors[1].producer, graph.tensors[1].slot) == (conv, -1)
    assert (graph.tensors[1].readers, graph.tensors[2].readers) == ([(bn, 0)], [(relu, 0)])
    assert isinstance(conv.role, Linear)
    np.testing.assert_array_equal(conv.role.weight.value, W)


def test_the_moments_of_a_batch_norm():
    values = norm()
    graph = graph_of(CONV, w=W, **values)
    before, after = tensor(graph, "c").moments, tensor(graph, "n").moments
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before, (values["m"], values["v"]))
    np.testing.assert_array_equal(after, (values["b"], values["g"].astype(np.float64) ** 2))


def test_one_tensor_read_twice_by_one_node():
    graph = graph_of("g (float[1,2] x) => (float[1,2] y) { r = Relu (x)  y = Add (r, r) }")
    add = node(graph, "Add")
    assert tensor(graph, "r").readers == [(add, 0), (add, 1)]
    assert isinstance(add.role, Sum)


def test_each_use_of_a_constant_operand_is_a_tensor_of_its_own():
    text = """g (float[1,2] x) => (float[1,2] y) {
        a = Concat <axis=0> (x, k)
        b = Concat <axis=0> (a, k)
        y = Relu (b)
    }"""
    graph = graph_of(text, k=np.array([[3, 4]], np.float32))
    first, second = (n.inputs[1] for n in graph.nodes[:2])
    assert first is not None
    assert second is not None
    assert first is not second
    for use in (first, second):
        assert use.constant is not None
        assert (use.constant.locked, len(use.readers)) == ("", 1)
        np.testing.assert_array_equal(use.constant.value, [[3, 4]])


def test_nodes_in_any_order():
    text = """g (float[1,2] x) => (float[1,2] y) {
        y = Relu (c)
        b = Exp (a)
        c = Add (a, b)
        a = Sigmoid (x)
    }"""
    assert [n.op for n in graph_of(text).nodes] == ["Sigmoid", "Exp", "Add", "Relu"]


def test_names_of_nodes_are_unique():
    proto = model(CONV, w=W, **norm())
    for entry in proto.graph.node:
        entry.name = "same"
    proto.graph.node[1].name = ""
    names = [n.name for n in read(load(proto)).nodes]
    assert names == ["same", "BatchNormalization:n", "same:y"]


# scopes


def test_bodies_follow_their_node_and_capture():
    graph = graph_of(IF, w=W, **norm())
    assert [n.op for n in graph.nodes] == [
        "Conv",
        "If",
        "BatchNormalization",
        "Relu",
        "Conv",
        "BatchNormalization",
    ]
    outer = tensor(graph, "o")
    assert outer.fixed == "captured by If:y"
    assert [n for n, _ in outer.readers] == [graph.nodes[2]]
    first, second = (t for t in graph.tensors if t.name == "n")  # one in each branch
    assert (first.producer, second.producer) == (graph.nodes[2], graph.nodes[4])
    assert (first.shape, second.shape) == ((1, 4, 7, 7), (1, 4, 7, 7))
    assert tensor(graph, "p").fixed == tensor(graph, "q").fixed == "body output"
    assert isinstance(graph.nodes[5].role, Affine)


def test_functions_are_read_by_themselves():
    graph = graph_of(FUNCTION)
    assert [n.op for n in graph.nodes] == ["my.Block", "Relu", "Conv", "BatchNormalization", "Relu"]
    assert graph.nodes[0].role == Closed("calls the function Block", cure=INLINE)
    assert (tensor(graph, "a").fixed, tensor(graph, "r").fixed) == ("function input", "function output")
    assert tensor(graph, "c").shape == (1, 4, 9, 9)  # from the only call
    assert isinstance(graph.nodes[3].role, Affine)


def test_attributes_of_a_call_close_a_node():
    text = FUNCTION.replace("Block (a)", "Block <e> (a)").replace(
        "BatchNormalization (", "BatchNormalization <epsilon: float = @e> ("
    )
    assert isinstance(node(graph_of(text), "BatchNormalization").role, Closed)


# batch norms read together


def test_reading_together_gives_what_reading_one_by_one_gives():
    lines, values = [], {}
    for i in range(7):
        eps = f"<epsilon = {10.0 ** -(i + 1)}>" if i % 2 else ""
        lines.append(f"n{i} = BatchNormalization {eps} ({f'n{i - 1}' if i else 'x'}, g{i}, b{i}, m{i}, v{i})")
        values |= {f"{name}{i}": value for name, value in norm().items()}
    text = f"g (float[2,4,5] x) => (float[2,4,5] n6) {{ {' '.join(lines)} }}"
    together = read(load(model(text, **values)))
    sites = [entry.source for entry in together.nodes]
    assert set(read_together(sites)) == set(sites)
    for entry in together.nodes:
        role, alone = entry.role, role_of(entry.source)
        assert isinstance(role, Affine)
        assert isinstance(alone, Affine)
        np.testing.assert_array_equal(role.scale, alone.scale)
        np.testing.assert_array_equal(role.shift, alone.shift)
        assert (role.eps, role.kind, role.stay) == (alone.eps, alone.kind, alone.stay)
        assert "var" in role.constants
        assert dict(role.constants) == alone.constants
        assert role.constants["mean"][1] is entry.source.constant(3)
        assert [slot for slot, _ in role.constants.values()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "text",
    [
        "y = BatchNormalization <training_mode = 1> (x, g, b, m, v)",
        "y, s, t = BatchNormalization <training_mode = 0> (x, g, b, m, v)",
        "i = Identity (v)  y = BatchNormalization (x, g, b, m, i)",
    ],
)
def test_what_is_not_plain_is_read_by_itself(text: str):
    graph = graph_of(f"g (float[2,4,5] x) => (float[2,4,5] y) {{ {text} }}", **norm())
    assert read_together([entry.source for entry in graph.nodes]) == {}


def _alive() -> int:
    """How many parts of graphs there are, of whatever test."""
    return sum(type(each) in (Node, Tensor, Site, Value) for each in gc.get_objects())


def test_a_graph_that_was_cleared_leaves_little_for_the_search_for_cycles() -> None:
    loaded = load(random_model(7))
    gc.collect()
    gc.disable()
    try:
        before = _alive()
        graph = read(loaded)
        count = len(graph.nodes)
        graph.clear()
        del graph
        left = _alive() - before
        graph = read(loaded)
        del graph
        found = _alive() - before - left
    finally:
        gc.enable()
    assert found >= count
    assert left < found // 2
