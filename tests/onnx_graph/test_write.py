"""Edits of a model: the named parts change, names stay right, and all else is as it was, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold.errors import UsageError
from bnfold.fold.edits import AddBias, Bypass, Edit, SetValue
from bnfold.fold.graph import Graph, Node
from bnfold.fold.solve import solve
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.write import apply
from tests.onnx_graph.reading import CONV, FUNCTION, IF, RNG, W, model, norm

BIAS = RNG.normal(size=4).astype(np.float32)


def folded(proto: onnx.ModelProto, shared: str = "duplicate") -> onnx.ModelProto:
    """All batch norms that can vanish do; the result is valid."""
    loaded = load(proto)
    graph = read(loaded, shared)
    apply(loaded, graph, solve(graph).edits)
    result = loaded.to_proto()
    onnx.checker.check_model(result, full_check=result.ir_version > 3)
    return result


def edited(loaded: Loaded, graph: Graph, *edits: Edit) -> onnx.ModelProto:
    apply(loaded, graph, edits)
    return loaded.to_proto()


def opened(text: str, **options: Any) -> tuple[Loaded, dict[str, Node], Graph]:
    """A model, its nodes by the name of their first output, and its graph."""
    loaded = load(model(text, **options))
    graph = read(loaded)
    return loaded, {node.outputs[0].name: node for node in graph.nodes}, graph


def same(a: onnx.ModelProto, b: onnx.ModelProto, **feed: Any) -> None:
    """Both compute the same, to 1e-5 of the largest value."""
    for one, other in zip(
        ReferenceEvaluator(a).run(None, feed), ReferenceEvaluator(b).run(None, feed), strict=True
    ):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1e-5 * np.abs(one).max()


def image(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def arrays(proto: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# what is not named stays


def test_nothing_to_do_changes_nothing():
    loaded, _, graph = opened("g (float[1,3] x) => (float[1,3] y) { y = Sigmoid (x) }")
    before = b"".join(loaded.chunks())
    edited(loaded, graph)
    assert not loaded.edited
    assert b"".join(loaded.chunks()) == before


def test_all_else_is_field_for_field_the_same():
    proto = model(CONV.replace("Relu (n)", "Add (n, k)"), w=W, **norm(), k=np.ones((4, 1, 1), np.float32))
    proto.producer_name, proto.doc_string = "somebody", "about"
    proto.metadata_props.add(key="a", value="b")
    proto.opset_import.add(domain="other", version=7)
    graph = proto.graph
    graph.node.add(op_type="Any", domain="other", input=["x"], output=["side"], name="kept", doc_string="why")
    graph.output.append(helper.make_tensor_value_info("side", 1, None))
    graph.initializer.append(numpy_helper.from_array(np.arange(5.0), "unused"))
    graph.sparse_initializer.add(dims=[9]).values.CopyFrom(
        numpy_helper.from_array(np.ones(2, np.float32), "few")
    )
    graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.array([1, 3]), "places"))
    graph.value_info.append(helper.make_tensor_value_info("c", 1, [2, 4, 7, 9]))
    graph.value_info.append(helper.make_tensor_value_info("n", 1, [2, 4, 7, 9]))
    graph.value_info.append(helper.make_tensor_value_info("of nothing", 1, [1]))
    graph.quantization_annotation.add(tensor_name="n")
    note = graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    info = proto.training_info.add()
    info.update_binding.add(key="unused", value="new")
    proto.functions.extend(model(FUNCTION).functions)

    loaded = load(proto)
    graph_read = read(loaded)
    apply(loaded, graph_read, solve(graph_read, allow=lambda n: n.name == "BatchNormalization:n").edits)
    result = loaded.to_proto()

    wanted = onnx.ModelProto()
    wanted.CopyFrom(proto)
    graph = wanted.graph
    del graph.node[1]  # the batch norm
    graph.node[0].input.append("w_bias")
    graph.node[1].input[0] = "c"
    del graph.value_info[1], graph.quantization_annotation[0]
    parameters = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    scale = parameters["g"] / np.sqrt(parameters["v"].astype(np.float64) + np.float32(1e-5))
    shift = parameters["b"] - scale * parameters["m"]
    kept = [t for t in graph.initializer if t.name not in "gbmv"]
    kept[0].CopyFrom(numpy_helper.from_array((W * scale[:, None, None, None]).astype(np.float32), "w"))
    bias = numpy_helper.from_array(shift.astype(np.float32), "w_bias")
    final = [*kept, bias]
    del graph.initializer[:]
    graph.initializer.extend(final)
    assert result == wanted


def test_a_large_model_keeps_its_order():
    lines, values = [], {}
    for i in range(30):
        lines.append(f"c{i} = Conv ({f'r{i - 1}' if i else 'x'}, w{i})")
        lines.append(f"n{i} = BatchNormalization (c{i}, g{i}, b{i}, m{i}, v{i})")
        lines.append(f"r{i} = Relu (n{i})")
        values[f"w{i}"] = image(4, 4, 1, 1)
        values |= {f"{name}{i}": value for name, value in norm().items()}
    text = f"g (float[1,4,5,5] x) => (float[1,4,5,5] y) {{ {' '.join(lines)} y = Relu (r29) }}"
    proto = model(text, **values)
    result = folded(proto)
    assert ops(result) == ["Conv", "Relu"] * 30 + ["Relu"]
    assert [n.output[0] for n in result.graph.node][:4] == ["c0", "r0", "c1", "r1"]
    names = [t.name for t in result.graph.initializer]
    assert names == [f"w{i}" for i in range(30)] + [f"w{i}_bias" for i in range(30)]
    same(proto, result, x=image(1, 4, 5, 5))


# names


def test_a_graph_output_keeps_its_name():
    text = """g (float[1,3,9,9] x) => (float[1,4,7,7] y) {
        c = Conv (x, w)
        y = BatchNormalization (c, g, b, m, v)
    }"""
    proto = model(text, w=W, **norm())
    result = folded(proto)
    (conv,) = result.graph.node
    assert (conv.op_type, list(conv.output)) == ("Conv", ["y"])
    assert set(arrays(result)) == {"w", "w_bias"}
    same(proto, result, x=image(1, 3, 9, 9))


def test_an_output_is_taken_over_with_all_its_readers():
    text = """g (float[1,3,9,9] x) => (float[1,4,7,7] y, float[1,4,7,7] z) {
        c = Conv (x, w)
        y = BatchNormalization (c, g, b, m, v)
        z = Relu (y)
    }"""
    proto = model(text, w=W, **norm())
    result = folded(proto)
    assert [(n.op_type, n.input[0], n.output[0]) for n in result.graph.node] == [
        ("Conv", "x", "y"),
        ("Relu", "y", "z"),
    ]
    same(proto, result, x=image(1, 3, 9, 9))


def test_an_identity_between_input_and_output_becomes_one():
    text = "g (float[1,4,3] x) => (float[1,4,3] y) { y = BatchNormalization <epsilon = 0.0> (x, o, z, z, o) }"
    proto = model(text, o=np.ones(4, np.float32), z=np.zeros(4, np.float32))
    result = folded(proto)
    (identity,) = result.graph.node
    assert (identity.op_type, list(identity.input), list(identity.output)) == ("Identity", ["x"], ["y"])
    assert not identity.attribute
    assert arrays(result) == {}


def test_a_chain_of_batch_norms_ends_in_the_output():
    text = """g (float[1,3,9,9] x) => (float[1,4,7,7] y) {
        c = Conv (x, w)
        d = BatchNormalization (c, g, b, m, v)
        e = BatchNormalization (d, g, b, m, v)
        y = BatchNormalization (e, g, b, m, v)
    }"""
    proto = model(text, w=W, **norm())
    result = folded(proto)
    assert [(n.op_type, n.output[0]) for n in result.graph.node] == [("Conv", "y")]
    same(proto, result, x=image(1, 3, 9, 9))


def test_new_names_make_way():
    text = """g (float[1,3,9,9] x) => (float[1,4,7,7] w_bias) {
        w_bias_2 = Conv (x, w)
        w_bias = BatchNormalization (w_bias_2, g, b, m, v)
    }"""
    result = folded(model(text, w=W, **norm()))
    assert set(arrays(result)) == {"w", "w_bias_3"}


# stored values


TWO = """g (float[1,3,9,9] x) => (float[1,4,7,7] y, float[1,4,7,7] z) {
    c = Conv (x, w, k)
    y = BatchNormalization (c, g, b, m, v)
    d = Conv (x, w, k)
    z = Relu (d)
}"""


def test_a_shared_value_is_duplicated_behind_the_original():
    proto = model(TWO, w=W, k=BIAS, **norm())
    result = folded(proto)
    assert [t.name for t in result.graph.initializer] == ["w", "w_bnfold", "k", "k_bnfold"]
    np.testing.assert_array_equal(arrays(result)["w"], W)
    assert [list(n.input) for n in result.graph.node[:2]] == [["x", "w_bnfold", "k_bnfold"], ["x", "w", "k"]]
    same(proto, result, x=image(1, 3, 9, 9))


def test_a_shared_value_that_changes_for_all_stays_one():
    values = norm()
    text = TWO.replace("Relu (d)", "BatchNormalization (d, g, b, m, v)")
    proto = model(text, w=W, k=BIAS, **values)
    result = folded(proto)
    assert [t.name for t in result.graph.initializer] == ["w", "k"]
    same(proto, result, x=image(1, 3, 9, 9))


def test_sharing_can_be_an_error():
    with pytest.raises(UsageError, match=r"'w' is shared by Conv:c, Conv:d"):
        folded(model(TWO, w=W, k=BIAS, **norm()), shared="error")


def test_a_value_that_is_an_output_too():
    text = TWO.replace("float[1,4,7,7] z)", "float[1,4,7,7] z, float[4,3,3,3] w)").replace(
        "Conv (x, w, k)", "Conv (x, w)"
    )
    proto = model(text, w=W, **norm())
    result = folded(proto)
    np.testing.assert_array_equal(arrays(result)["w"], W)
    same(proto, result, x=image(1, 3, 9, 9))


def test_computed_values_become_initializers():
    text = """g (float[1,3,9,9] x) => (float[1,4,7,7] y) {
        z = Constant <value = int64 {0}> ()
        s = Constant <value_ints = [4]> ()
        f = CastLike (z, x)
        k = Expand (f, s)
        i = Identity (w)
        c = Conv (x, i, k)
        y = BatchNormalization (c, g, b, m, v)
    }"""
    proto = model(text, w=W, **norm())
    result = folded(proto)
    assert ops(result) == ["Conv"]
    assert set(arrays(result)) == {"i_bnfold", "k_bnfold"}
    same(proto, result, x=image(1, 3, 9, 9))


def test_a_constant_node_is_changed_where_it_is():
    text = """g (float[1,2,9,9] x) => (float[1,2,9,9] y) {
        w = Constant <value = float[2,2,1,1] {1, 2, 3, 4}> ()
        c = Conv (x, w)
        y = BatchNormalization (c, k, k, k, k)
    }"""
    proto = model(text, k=np.array([4, 9], np.float32))
    result = folded(proto)
    assert ops(result) == ["Constant", "Conv"]
    value = numpy_helper.to_array(result.graph.node[0].attribute[0].t).reshape(2, 2)
    np.testing.assert_allclose(value, [[2, 4], [9, 12]], rtol=1e-5)
    same(proto, result, x=image(1, 2, 9, 9))


def test_ir_3_lists_initializers_as_inputs():
    proto = model(CONV, ir=3, opset=8, w=W, **norm())
    for t in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(t.name, 1, t.dims))
    result = folded(proto)
    described = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in result.graph.input}
    assert described == {"x": [2, 3, 9, 11], "w": [4, 3, 3, 3], "w_bias": [4]}
    assert set(arrays(result)) == {"w", "w_bias"}


def test_a_value_that_grows_is_described_anew():
    loaded, nodes, graph = opened(
        "g (float[1,4,3,3] x) => (float[1,4,3,3] y) { y = Add (x, k) }", k=np.ones(1, np.float32)
    )
    loaded.proto.graph.value_info.append(helper.make_tensor_value_info("k", 1, [1]))
    new = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    old = nodes["y"].source.constant(1)
    result = edited(loaded, graph, SetValue(nodes["y"], 1, new, old))
    np.testing.assert_array_equal(arrays(result)["k"], new)
    assert not result.graph.value_info


def test_an_input_that_was_left_out():
    loaded, nodes, graph = opened("g (float16[1,4] x) => (float16[1,4] y) { y = Clip (x) }")
    result = edited(loaded, graph, SetValue(nodes["y"], 2, np.asarray(0.5)))
    (clip,) = result.graph.node
    assert clip.input[:2] == ["x", ""]
    assert arrays(result)[clip.input[2]] == np.float16(0.5)
    assert arrays(result)[clip.input[2]].dtype == np.float16


def test_attributes():
    loaded, nodes, graph = opened(
        "g (float[1,4] x) => (float[1,4] y) { a = LeakyRelu (x)  y = LeakyRelu <alpha = 0.5> (a) }"
    )
    edits = [SetValue(nodes["a"], "alpha", np.float32(2)), SetValue(nodes["y"], "alpha", np.float32(3))]
    result = edited(loaded, graph, *edits)
    assert [n.attribute[0].f for n in result.graph.node] == [2, 3]
    onnx.checker.check_model(result)


# new biases


def test_a_matrix_product_becomes_gemm():
    text = "g (float[2,3] x) => (float[2,4] y) { y = MatMul (x, w) }"
    loaded, nodes, graph = opened(text, w=image(3, 4))
    proto = loaded.to_proto()
    result = edited(loaded, graph, AddBias(nodes["y"], BIAS))
    assert ops(result) == ["Gemm"]
    x = image(2, 3)
    np.testing.assert_allclose(
        ReferenceEvaluator(result).run(None, {"x": x})[0], x @ arrays(proto)["w"] + BIAS, 1e-5
    )


@pytest.mark.parametrize(("left", "opset"), [(False, 18), (True, 18), (False, 6), (True, 6)])
def test_any_other_product_gets_an_add(left: bool, opset: int):
    x, w = image(2, 5, 5), image(5, 5)
    order = "w, x" if left else "x, w"
    text = f"g (float[2,5,5] x) => (float[2,5,5] y, float[2,5,5] z) {{ y = MatMul ({order})  z = Relu (y) }}"
    loaded, nodes, graph = opened(text, w=w, opset=opset)
    bias = image(5)
    result = edited(loaded, graph, AddBias(nodes["y"], bias))
    assert [(n.op_type, n.output[0]) for n in result.graph.node] == [
        ("MatMul", "y_matmul"),
        ("Add", "y"),
        ("Relu", "z"),
    ]
    wanted = (w @ x + bias[:, None]) if left else (x @ w + bias)
    if opset >= 7:
        np.testing.assert_allclose(
            ReferenceEvaluator(result).run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-5
        )
    else:
        attributes = {a.name: a.i for a in result.graph.node[1].attribute}
        assert attributes == {"broadcast": 1, "axis": 1 if left else 2}
    onnx.checker.check_model(result)


def test_gemm_without_beta():
    text = "g (float[2,3] x) => (float[2,4] y) { y = Gemm <beta = 0.0> (x, w, k) }"
    loaded, nodes, graph = opened(text, w=image(3, 4), k=np.full(4, np.nan, np.float32))
    w = arrays(loaded.to_proto())["w"]
    result = edited(loaded, graph, AddBias(nodes["y"], BIAS))
    assert set(arrays(result)) == {"w", "w_bias"}
    x = image(2, 3)
    np.testing.assert_allclose(ReferenceEvaluator(result).run(None, {"x": x})[0], x @ w + BIAS, rtol=1e-5)


# bodies and functions


def test_inside_a_branch_and_against_a_captured_value():
    proto = model(IF, w=W, **norm())
    result = folded(proto)
    branches = {a.name: a.g for a in result.graph.node[1].attribute}
    # the batch norm of the first branch reads what the branch captures, and Relu follows: it stays
    assert [n.op_type for n in branches["then_branch"].node] == ["BatchNormalization", "Relu"]
    assert [(n.op_type, n.output[0]) for n in branches["else_branch"].node] == [("Conv", "q")]
    assert [t.name for t in branches["else_branch"].initializer] == ["w_bias"]
    for choice in (True, False):
        same(proto, result, x=image(1, 3, 9, 9), c=np.array(choice))


def test_a_captured_value_keeps_its_name():
    text = """g (float[1,3,9,9] x, bool c) => (float[1,4,7,7] y) {
        o = Conv (x, w)
        n = BatchNormalization (o, g, b, m, v)
        y = If (c) < then_branch = a () => (float[1,4,7,7] p) { p = Relu (n) },
                     else_branch = b () => (float[1,4,7,7] q) { o2 = Neg (n)  q = Relu (o2) } >
    }"""
    proto = model(text, w=W, **norm())
    result = folded(proto)
    assert [(n.op_type, n.output[0]) for n in result.graph.node] == [("Conv", "n"), ("If", "y")]
    for choice in (True, False):
        same(proto, result, x=image(1, 3, 9, 9), c=np.array(choice))


def test_in_a_function_new_values_are_constant_nodes():
    proto = model(FUNCTION)
    result = folded(proto)
    (function,) = result.functions
    assert [n.op_type for n in function.node] == ["Constant", "Constant", "Conv", "Relu"]
    assert list(function.node[2].input) == ["a", "w", "w_bias"]
    same(proto, result, x=image(1, 3, 9, 9))


def test_a_number_that_all_channels_share_stays_one_number():
    text = """g (float[1,4,9,9] x) => (float[1,4,9,9] y) {
        r = Relu (x)
        a = Add (r, k)
        n = BatchNormalization <epsilon = 0.0> (a, g, b, m, v)
        y = Conv <pads = [1, 1, 1, 1]> (n, w)
    }"""
    stored = dict(zip("gbmv", np.array([[2], [0.5], [0.25], [4]], np.float32).repeat(4, 1), strict=True))
    proto = model(text, w=image(4, 4, 3, 3), k=np.array(0.125, np.float32), **stored)
    result = folded(proto)
    assert ops(result) == ["Relu", "Add", "Conv"]
    assert arrays(result)["k"].shape == ()
    same(proto, result, x=image(1, 4, 9, 9))


def test_a_bypass_by_hand():
    loaded, nodes, graph = opened(CONV, w=W, **norm())
    result = edited(loaded, graph, Bypass(nodes["n"]))
    assert [(n.op_type, list(n.input), list(n.output)) for n in result.graph.node] == [
        ("Conv", ["x", "w"], ["c"]),
        ("Relu", ["c"], ["y"]),
    ]
    assert set(arrays(result)) == {"w"}
