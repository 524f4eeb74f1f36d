"""What the solver gets to see: values however they are computed, who may change, damaged models by name."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from bnfold.errors import ModelError
from bnfold.fold.graph import Graph, Node, Tensor
from bnfold.fold.roles import Affine, Closed, Linear, Map, Sum
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model.infer import infer
from bnfold.onnx_graph.model.scopes import build
from bnfold.onnx_graph.ops.batch_norms import read_together
from bnfold.onnx_graph.ops.table import OPERATORS, role_of
from bnfold.onnx_graph.read import read
from bnfold.onnx_graph.site import INLINE, Site, Value
from tests.onnx_graph.cases.random_graphs import random_model
from tests.onnx_graph.ops.test_constants import REDUCTIONS

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


# the graph


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


# constants


COMPUTED = {
    "Constant node": ("k = Constant <value = float[3] {1, 2, 3}> ()", [1, 2, 3]),
    "Constant floats": ("k = Constant <value_floats = [1.5, 2.5]> ()", [1.5, 2.5]),
    "raw torch bias": (
        """z = Constant <value = int64 {0}> ()
        s = Constant <value_ints = [4]> ()
        f = CastLike (z, x)
        k = Expand (f, s)""",
        [0, 0, 0, 0],
    ),
    "ConstantOfShape": (
        "s = Constant <value_ints = [1, 3]> ()  k = ConstantOfShape <value = float[1] {2.5}> (s)",
        [[2.5, 2.5, 2.5]],
    ),
    "Shape of a run-time tensor": ("s = Shape <start = -2> (x)  k = Cast <to = 1> (s)", [3, 5]),
    "Identity, Unsqueeze, Transpose": (
        "a = Identity (w)  o = Constant <value_ints = [0]> ()  u = Unsqueeze (a, o)  k = Transpose (u)",
        np.arange(6).reshape(2, 3).T[..., None],
    ),
    "arithmetic": ("a = Sqrt (q)  r = Reciprocal (a)  k = Mul (r, q)", [1, 2, 3]),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_computed_constants(how: str):
    body, wanted = COMPUTED[how]
    text = f"g (float[2,3,5] x) => (float y) {{ {body}  y = Add (x, k) }}"
    w, q = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 4, 9], np.float32)
    site = node(graph_of(text, w=w, q=q), "Add").source
    constant = site.constant(1)
    assert constant.value.dtype == np.float32
    np.testing.assert_array_equal(constant.value, wanted)
    assert constant.shape == np.shape(wanted)


def _ops() -> list[Any]:
    f = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    p = np.abs(f) + np.float32(0.5)
    i = np.array([[7, -7, 5], [3, -9, 8]], np.int64)
    j = np.array([[2, 2, -3], [-2, 4, 3]], np.int64)

    def ints(*values: int) -> Any:
        return np.array(values, np.int64)

    cases = [(op, [a], {}) for op in ("Abs", "Identity", "Neg", "Sign") for a in (f, i)]
    cases += [(op, [p], {}) for op in ("Exp", "Log", "Reciprocal", "Sqrt")]
    cases += [(op, [f, p[0]], {}) for op in ("Add", "Div", "Equal", "Max", "Min", "Mul", "Pow", "Sub")]
    cases += [(op, [i, j], {}) for op in ("Add", "Div", "Equal", "Max", "Min", "Mul", "Sub")]
    cases += [
        ("Cast", [f * 5], {"to": TensorProto.INT32}),
        ("Cast", [f], {"to": TensorProto.FLOAT16}),
        ("CastLike", [i, f], {}),
        ("Concat", [f, p], {"axis": -1}),
        ("ConstantOfShape", [ints(2, 0, 3)], {}),
        ("Expand", [f[:, :1], ints(1, 5, 1)], {}),
        ("Flatten", [f], {"axis": -1}),
        ("Gather", [f, np.array([[2, -1], [0, 1]])], {"axis": 1}),
        ("Range", [ints(9)[0], ints(-4)[0], ints(-3)[0]], {}),
        ("Reshape", [f, ints(0, -1, 2)], {}),
        ("Reshape", [f[:, :0], ints(0, 2)], {"allowzero": 1}),
        ("Shape", [f], {"start": 1}),
        ("Size", [f], {}),
        ("Slice", [f, ints(-1, 0), ints(-100, 3), ints(2, 1), ints(-2, 2)], {}),
        ("Slice", [f, ints(1, 0), ints(2**62, -1)], {}),
        ("Squeeze", [f[:, :1], ints(-2)], {}),
        ("Squeeze", [f[:1, :1]], {}),
        ("Transpose", [f], {}),
        ("Transpose", [f], {"perm": [1, 2, 0]}),
        ("Unsqueeze", [f, ints(-1, 0)], {}),
        ("Where", [f > 0, f, p[0]], {}),
        ("QuantizeLinear", [f * 90, np.float32(0.5), np.int8(3)], {}),
        ("QuantizeLinear", [f * 90, p[0, :, 0], np.array([7, 128, 255], np.uint8)], {"axis": 1}),
    ]
    return [pytest.param(*case, id=f"{case[0]}-{n}") for n, case in enumerate(cases)]


@pytest.mark.parametrize(("op", "inputs", "attributes"), _ops())
def test_constants_are_computed_as_the_specification_does(op: str, inputs: list[Any], attributes: Any):
    names = [f"i{slot}" for slot in range(len(inputs))]
    entry = helper.make_node(op, names, ["k"], **attributes)
    out = helper.make_tensor_value_info("k", TensorProto.UNDEFINED, None)
    tensors = [numpy_helper.from_array(np.asarray(a), n) for a, n in zip(inputs, names, strict=True)]
    graph = helper.make_graph([entry], "g", [], [out], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (wanted,) = ReferenceEvaluator(proto).run(None, {})
    core, scopes = build(load(proto), "duplicate")
    infer(core, scopes)
    constant = scopes[0].values["k"].constant
    assert constant is not None
    assert (constant.shape, constant.dtype) == (wanted.shape, wanted.dtype.name)
    np.testing.assert_array_equal(constant.value, wanted)


def test_every_operator_that_is_computed_is_compared():
    """Split, which gives several outputs, is in ops/test_constants.py."""
    compared = {case.values[0] for case in _ops()} | {f"Reduce{name}" for name in REDUCTIONS} | {"MatMul"}
    assert {op for op, record in OPERATORS.items() if record.evaluate} - compared == {"Constant", "Split"}


def test_old_forms_of_slice_squeeze_and_reshape():
    text = """g (float[1] x) => (float y) {
        a = Slice <starts = [1, 0], ends = [100, -1], axes = [1, 0]> (w)
        b = Squeeze <axes = [0]> (a)
        c = Unsqueeze <axes = [0, 2]> (b)
        y = Mul (x, c)
    }"""
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    site = node(graph_of(text, opset=9, ir=4, w=w), "Mul").source
    np.testing.assert_array_equal(site.value(1), [[[1], [2]]])


@pytest.mark.parametrize(
    "body",
    [
        "s = Constant <value_ints = [100000, 100000]> ()  k = ConstantOfShape (s)",
        "s = Constant <value_ints = [100000, 100000]> ()  k = Expand (o, s)",
        "e = Constant <value_float = 1e12> ()  k = Range (z, e, o)",
        "s = Constant <value_ints = [-3]> ()  k = ConstantOfShape (s)",
        "s = Constant <value_ints = [7]> ()  k = Reshape (o, s)",
        "k = RandomNormal <shape = [3]> ()",
        "k = Identity (x)",
    ],
)
def test_what_is_no_constant(body: str):
    text = f"g (float[3] x) => (float y) {{ {body}  y = Add (x, k) }}"
    graph = graph_of(text, o=np.float32(1), z=np.float32(0))
    assert node(graph, "Add").source.constant(1) is None


def test_a_long_chain_of_identities():
    lines = "\n".join(f"k{i + 1} = Identity (k{i})" for i in range(3000))
    text = f"g (float[2] x) => (float[2] y) {{ {lines} y = Mul (x, k3000) }}"
    value = node(graph_of(text, k0=np.array([2, 3], np.float32)), "Mul").source.value(1)
    np.testing.assert_array_equal(value, [2, 3])


def test_initializers_that_are_inputs():
    text = CONV.replace("float[2,3,9,11] x", "float[2,3,9,11] x, float[4,3,3,3] w")
    new = graph_of(text, ir=4, w=W, **norm())
    assert isinstance(node(new, "Conv").role, Closed)
    assert tensor(new, "w").fixed == "graph input"
    old = graph_of(text, ir=3, opset=8, w=W, **norm())
    assert isinstance(node(old, "Conv").role, Linear)


def test_a_shared_value_is_locked_on_request():
    text = "g (float[1,3,9,9] x) => (float y, float z) { y = Conv (x, w)  z = Conv (x, w) }"
    for shared, locked in (("duplicate", ""), ("error", ""), ("skip", "has several users")):
        for entry in graph_of(text, w=W, shared=shared).nodes:
            assert isinstance(entry.role, Linear)
            assert entry.role.weight.locked == locked


def test_training_info_locks_what_it_updates():
    proto = model(CONV, w=W, **norm())
    info = proto.training_info.add()
    info.update_binding.add(key="w", value="w_new")
    info.update_binding.add(key="g", value="g_new")
    conv, bn, _ = read(load(proto)).nodes
    assert isinstance(conv.role, Linear)
    assert conv.role.weight.locked == "is used by training_info"
    assert isinstance(bn.role, Affine)
    assert bn.role.stay == "its parameters are used by training_info"


@pytest.mark.parametrize(
    ("scale", "attributes", "opset", "axes"),
    [
        (np.full(4, 0.5, np.float32), "<axis = 0>", 13, (0,)),
        (np.full(3, 0.5, np.float32), "<axis = -3>", 13, (1,)),
        (np.float32(0.5), "", 13, (0, 1, 2, 3)),
        (np.float32(0.5), "", 10, ()),
        (np.full((4, 1, 3, 3), 0.5, np.float32), "<axis = 1, block_size = 3>", 21, (0, 2, 3)),
    ],
)
def test_integers_behind_a_scale(scale: Any, attributes: str, opset: int, axes: tuple[int, ...]):
    body = f"w = DequantizeLinear {attributes} (i, s, z)  y = Conv (x, w)"
    text = f"g (float[1,3,9,9] x) => (float y) {{ {body} }}"
    integers = RNG.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
    zero = np.full(np.shape(scale), 5, np.int8)
    proto = model(text, opset=opset, i=integers, s=scale, z=zero)
    weight = node(read(load(proto)), "Conv").source.constant(1)
    assert (weight.quantized, weight.dtype, weight.shape) == (axes, "float32", (4, 3, 3, 3))
    np.testing.assert_array_equal(weight.value, (integers.astype(np.float32) - 5) * np.float32(0.5))


def test_a_transposed_quantized_weight():
    text = """g (float[1,4] x) => (float y) {
        w = DequantizeLinear <axis = 0> (i, s)
        t = Transpose (w)
        y = MatMul (x, t)
    }"""
    integers, scale = RNG.integers(-9, 9, (5, 4)).astype(np.int8), RNG.uniform(1, 2, 5).astype(np.float32)
    weight = node(graph_of(text, i=integers, s=scale), "MatMul").source.constant(1)
    assert weight.quantized == (1,)
    np.testing.assert_array_equal(weight.value, (integers * scale[:, None]).T)


def test_bfloat16_weights():
    text = "g (bfloat16[1,3,9,9] x) => (bfloat16 y) { y = Conv (x, w) }"
    weight = node(graph_of(text, w=W.astype(ml_dtypes.bfloat16)), "Conv").source.constant(1)
    assert weight.dtype == "bfloat16"
    np.testing.assert_array_equal(weight.value, W.astype(ml_dtypes.bfloat16))


# scopes


IF = """g (float[1,3,9,9] x, bool c) => (float[1,4,7,7] y) {
    o = Conv (x, w)
    y = If (c) <
        then_branch = a () => (float[1,4,7,7] p) { n = BatchNormalization (o, g, b, m, v)  p = Relu (n) },
        else_branch = b () => (float[1,4,7,7] q) { n = Conv (x, w)  q = BatchNormalization (n, g, b, m, v) }
    >
}"""


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


# shapes


SHAPES = [
    ("Conv", [(2, 4, 9, 11), (6, 2, 3, 2)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [(2, 4, 9), (6, 4, 3)], {"dilations": [2]}),
    ("Conv", [("n", 4, 9, 9), (6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [(1, 4, 9, 9), (6, 4, 4, 4)], {"auto_pad": "VALID"}),
    ("MaxPool", [(2, 4, 9, 11)], {"kernel_shape": [2, 3], "strides": [2, 2]}),
    ("MaxPool", [(2, 4, 9, 9)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [(2, 4, 9, 11)], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 0]}),
    ("GlobalAveragePool", [(2, 4, 9, 11)], {}),
    ("Add", [(2, 1, 9), (4, 1)], {}),
    ("Mul", [("n", 4, 9), (1, 1)], {}),
    ("Concat", [(2, 4, 9), (2, 3, 9)], {"axis": -2}),
    ("Flatten", [(2, 4, 9)], {"axis": 2}),
    ("Flatten", [("n", 4, 9)], {}),
    ("Gemm", [(2, 4), (5, 4)], {"transB": 1}),
    ("Gemm", [(4, 2), (4, 5)], {"transA": 1}),
    ("MatMul", [(7, 1, 2, 4), (3, 4, 5)], {}),
    ("Transpose", [(2, 4, 9)], {"perm": [2, 0, 1]}),
    ("Relu", [("n", 4, "h", 9)], {}),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), SHAPES)
def test_our_shapes_are_those_of_onnx(op: str, shapes: list[Any], attributes: Any):
    inputs = [helper.make_tensor_value_info(f"i{n}", 1, shape) for n, shape in enumerate(shapes)]
    entry = helper.make_node(op, [i.name for i in inputs], ["y"], **attributes)
    last = helper.make_node("Relu", ["y"], ["z"])
    output = helper.make_tensor_value_info("z", 1, None)
    graph = helper.make_graph([entry, last], "g", inputs, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (info,) = onnx.shape_inference.infer_shapes(proto).graph.value_info
    wanted = tuple(d.dim_value or d.dim_param or None for d in info.type.tensor_type.shape.dim)
    _, scopes = build(load(proto), "duplicate")
    rule = OPERATORS[op].shape
    assert rule is not None
    assert rule(scopes[0].sites[0]) == wanted


def test_operators_without_a_rule_are_inferred_by_onnx():
    text = """g (float[1,3,8,8] x) => (float y) {
        s = SpaceToDepth <blocksize = 2> (x)
        r = Relu (s)
        c = Conv (r, w)
        y = Relu (c)
    }"""
    graph = graph_of(text, w=np.zeros((2, 12, 1, 1), np.float32))
    assert tensor(graph, "r").shape == (1, 12, 4, 4)
    assert tensor(graph, "c").shape == (1, 2, 4, 4)


def test_what_is_of_unknown_rank_stays():
    text = """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
    g (float[1] x) => (float y) { s = my.Op (x)  y = Relu (s) }"""
    assert tensor(graph_of(text), "s").fixed == "unknown rank"


def test_stated_shapes_come_first():
    proto = model("g (float[n,3,8,8] x) => (float y) { s = Relu (x)  y = Relu (s) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("s", 1, ["n", 3, None, "w"]))
    graph = read(load(proto))
    assert tensor(graph, "s").shape == ("n", 3, 8, "w")


# damage


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[1] x) => (float y) { y = Add (x, nowhere) }", ["Add:y", "nowhere"]),
        ("g (float[1] x) => (float y) { a = Relu (x) }", ["output 'y'"]),
        ("g (float[1] x) => (float a) { a = Relu (x)  a = Exp (x) }", ["'a'", "twice", "Exp"]),
        ("g (float[1] x) => (float b) { a = Add (x, b)  b = Relu (a) }", ["circle"]),
        ("g (float[1] x) => (float x) { }", ["no nodes"]),
        (
            """<ir_version: 10, opset_import: ["" : 18, "my" : 1]>
            g (float[1] x) => (float y) { y = my.A (x) }
            <domain: "my", opset_import: ["" : 18, "my" : 1]> A (x) => (y) { y = my.B (x) }
            <domain: "my", opset_import: ["" : 18, "my" : 1]> B (x) => (y) { y = my.A (x) }""",
            ["A -> B -> A"],
        ),
    ],
)
def test_damaged_models(text: str, words: list[str]):
    with pytest.raises(ModelError) as error:
        graph_of(text)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": [1, -1, 1, 1]}, ["BatchNormalization:n", "channel 1"]),
        ({"v": [1, 1, np.nan, 1]}, ["BatchNormalization:n", "channel 2"]),
        ({"v": [np.inf, 1, 1, 1]}, ["BatchNormalization:n", "channel 0"]),
        ({"m": [0, 0, 0]}, ["BatchNormalization:n", "[3]"]),
        ({name: np.ones(5) for name in "gbmv"}, ["BatchNormalization:n", "5", "4"]),
        ({"w": np.ones((4, 2, 3, 3))}, ["Conv:c", "2", "3"]),
    ],
)
def test_values_that_cannot_be(change: dict[str, Any], words: list[str]):
    values = {"w": W, **norm()} | {name: np.asarray(value, np.float32) for name, value in change.items()}
    with pytest.raises(ModelError) as error:
        graph_of(CONV.replace("float[2,4,7,9] y", "float y"), **values)
    assert all(word in str(error.value) for word in words), error.value


def test_attributes_of_the_wrong_length_close_a_node():
    proto = model("g (float[1,3,9,9] x) => (float[1,4,7,7] y) { y = Conv <strides = [1]> (x, w) }", w=W)
    assert isinstance(node(read(load(proto)), "Conv").role, (Closed, Linear))


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
