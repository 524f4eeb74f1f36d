"""What the solver gets to see of values, however they are computed, and who may change them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold.fold.roles import Affine, Closed, Linear
from bnfold.onnx_graph.file.loaded import load
from bnfold.onnx_graph.model.infer import infer
from bnfold.onnx_graph.model.scopes import build
from bnfold.onnx_graph.ops.table import OPERATORS
from bnfold.onnx_graph.read import read
from tests.onnx_graph.ops.test_constants import REDUCTIONS
from tests.onnx_graph.reading import CONV, RNG, W, graph_of, model, node, norm, tensor

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
    """Split, which gives several outputs, is in ops/test_constants.py; BatchNormalization, which is computed
    for weights only, is among the patterns.
    """
    compared = {case.values[0] for case in _ops()} | {f"Reduce{name}" for name in REDUCTIONS} | {"MatMul"}
    elsewhere = {"BatchNormalization", "Constant", "Split"}
    assert {op for op, record in OPERATORS.items() if record.evaluate} - compared == elsewhere


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
