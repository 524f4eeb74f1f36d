"""`bnfold.correct` on QDQ models as other tools write them, and on odd ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import bnfold
from tests.api.qdq import images
from tests.onnx_graph.build import Array

X = {"x": images(40, seed=1)}


class Stored:
    """Weights and biases, and the scales of four bits for each output channel of the weights."""

    def __init__(self, dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(0)
        self.dtype = dtype
        self.conv = rng.normal(0, 0.3, (8, 3, 3, 3)).astype(dtype)
        self.conv_bias, self.linear_bias = (rng.normal(0, 0.3, n).astype(dtype) for n in (8, 5))
        self.linear = rng.normal(0, 0.4, (5, 8)).astype(dtype)
        self.conv_scale = (np.abs(self.conv).max((1, 2, 3)) / 7).astype(dtype)
        self.linear_scale = (np.abs(self.linear).max(1) / 7).astype(dtype)

    def floats(self) -> dict[str, Array]:
        stored = {"w": self.conv, "b": self.conv_bias, "l": self.linear, "lb": self.linear_bias}
        return {**stored, "xs": np.asarray(1 / 100, self.dtype), "z": np.int8(0)}

    def codes(self) -> dict[str, Array]:
        conv = np.round(self.conv / self.conv_scale[:, None, None, None])
        linear = np.round(self.linear / self.linear_scale[:, None])
        scales = {"ws": self.conv_scale, "ls": self.linear_scale}
        zeros = {"wz": np.zeros(8, np.int8), "lz": np.zeros(5, np.int8)}
        return {"wq": conv.astype(np.int8), "lq": linear.astype(np.int8), **scales, **zeros}


HEAD = """xq = QuantizeLinear (x, xs, z)
    xd = DequantizeLinear (xq, xs, z)"""
MIDDLE = """r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)"""
FLOAT = f"""
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    {MIDDLE}
    lt = Transpose <perm = [1, 0]> (l)
    [linear] m = MatMul (f, lt)
    y = Add (m, lb)"""
# As NVIDIA's quantizer writes it: the model itself quantizes stored floats.
ON_FLOATS = f"""
    {HEAD}
    wq = QuantizeLinear <axis = 0> (w, ws, wz)
    wd = DequantizeLinear <axis = 0> (wq, ws, wz)
    [conv] c = Conv <pads = [1, 1, 1, 1]> (xd, wd, b)
    {MIDDLE}
    lq = QuantizeLinear <axis = 0> (l, ls, lz)
    ld = DequantizeLinear <axis = 0> (lq, ls, lz)
    lt = Transpose <perm = [1, 0]> (ld)
    [linear] m = MatMul (f, lt)
    y = Add (m, lb)"""
# As torch's exporter writes torchao's: codes are stored, a linear layer's behind a Transpose.
CODES = f"""
    {HEAD}
    wd = DequantizeLinear <axis = 0> (wq, ws, wz)
    [conv] c = Conv <pads = [1, 1, 1, 1]> (xd, wd, b)
    {MIDDLE}
    ld = DequantizeLinear <axis = 0> (lq, ls, lz)
    lt = Transpose <perm = [1, 0]> (ld)
    [linear] m = MatMul (f, lt)
    y = Add (m, lb)"""


def model(body: str, stored: dict[str, Array], *, kind: str = "float") -> onnx.ModelProto:
    """Only what the nodes read is stored."""
    made = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}[N, 3, 8, 8] x) => ({kind}[N, 5] y) {{{body}\n}}'
    )
    read = set(re.findall(r"\w+", body)) - {name for node in made.graph.node for name in node.output}
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items() if name in read
    )
    onnx.checker.check_model(made)
    return made


def both(body: str = CODES, dtype: Any = np.float32, **how: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A quantized model, and the float one."""
    stored = Stored(dtype)
    return model(body, {**stored.floats(), **stored.codes()}, **how), model(FLOAT, stored.floats(), **how)


@pytest.mark.parametrize("body", [ON_FLOATS, CODES], ids=["on floats", "codes"])
@pytest.mark.parametrize("deviation", [True, False])
def test_other_tools_forms(body: str, deviation: bool) -> None:
    quantized, exact = both(body)
    result, report = bnfold.correct(quantized, exact, X, deviation=deviation)
    assert [layer.node for layer in report.layers] == ["conv", "linear"]
    for layer in report.layers:
        assert layer.mean_after < 1e-6 < 0.01 < layer.mean_before
        assert (layer.bias, layer.added, layer.scaled) == ("float32", False, deviation)
        assert (layer.deviation_after < 1e-5) == deviation
    [output] = report.outputs
    assert output.before is not None
    assert output.after is not None
    assert output.after > output.before + 6
    changed = {t.name for t in result.graph.initializer} - {t.name for t in quantized.graph.initializer}
    old = {t.name: t for t in quantized.graph.initializer}
    changed |= {t.name for t in result.graph.initializer if t.name in old and t != old[t.name]}
    # a scale that a QuantizeLinear reads too is copied: the codes stay what they are
    scales = ({"ws_own", "ls_own"} if body is ON_FLOATS else {"ws", "ls"}) if deviation else set()
    assert changed == {"b", "lb"} | scales
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in quantized.graph.node]


def test_a_block_has_scales_of_its_own() -> None:
    stored = Stored()
    blocks = np.abs(stored.linear.reshape(5, 2, 4)).max(2) / 7
    codes = np.round(stored.linear / np.repeat(blocks, 4, 1)).astype(np.int8)
    arrays = {**stored.floats(), **stored.codes(), "lq": codes, "ls": blocks, "lz": np.zeros((5, 2), np.int8)}
    body = CODES.replace("DequantizeLinear <axis = 0> (lq", "DequantizeLinear <axis = 1, block_size = 4> (lq")
    quantized, exact = (model(text, arrays) for text in (body, FLOAT))
    result, report = bnfold.correct(quantized, exact, X, deviation=True)
    assert report.layers[1].scaled
    assert report.layers[1].deviation_after < 1e-5 < report.layers[1].deviation_before
    scale = next(numpy_helper.to_array(t) for t in result.graph.initializer if t.name == "ls")
    ratio = scale / blocks.astype(np.float32)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], (5, 2)), rtol=1e-5)


def test_half_precision_gets_a_bias_of_floats() -> None:
    """A step of int32 would be zero there."""
    quantized, exact = both(dtype=np.float16, kind="float16")
    for proto in (quantized, exact):
        del proto.graph.node[[n.name for n in proto.graph.node].index("conv")].input[2]
    for tensor in quantized.graph.initializer:
        if tensor.name in ("xs", "ws"):
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1e-3), tensor.name)
            )
    for proto, name in ((exact, "w"), (quantized, "ws")):
        [tensor] = [t for t in proto.graph.initializer if t.name == name]
        if name == "w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(1e-3), name))
    x = {"x": (X["x"] * 1e-3).astype(np.float16)}
    _, report = bnfold.correct(quantized, exact, x, verify=False)
    assert (report.layers[0].bias, report.layers[0].added) == ("float16", True)


def test_before_ir_4_all_that_is_stored_is_listed_as_an_input() -> None:
    quantized, exact = both()
    for proto in (quantized, exact):
        proto.ir_version = 3
        for tensor in proto.graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
    result, report = bnfold.correct(quantized, exact, X)
    assert len(report.layers) == 2
    assert {i.name for i in result.graph.input} == {"x", *(t.name for t in result.graph.initializer)}


def test_a_bias_of_the_caller_is_left() -> None:
    quantized, exact = both()
    quantized.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [8]))
    result, report = bnfold.correct(quantized, exact, X)
    assert [layer.node for layer in report.layers] == ["linear"]
    [left] = report.left
    assert left.node == "conv"
    assert left.reason.startswith(
        "its bias 'b' is an input that the caller may give (it is stored as well: --fr"
    )
    assert [t for t in result.graph.initializer if t.name == "b"] == [
        t for t in quantized.graph.initializer if t.name == "b"
    ]


def test_what_is_in_a_body_is_named() -> None:
    body = CODES.replace(
        "r = Relu (c)",
        "r = If (yes) <then_branch = t () => (float[N, 8, 8, 8] t) "
        "{ [inner] t = Conv (c, v) }, else_branch = e () => (float[N, 8, 8, 8] e) { e = Relu (c) }>",
    )
    other = FLOAT.replace("r = Relu (c)", body[body.index("r = If") : body.index("p = Gl")])
    stored = Stored()
    more = {"yes": np.array(False), "v": np.ones((8, 8, 1, 1), np.float32)}
    arrays = {**stored.floats(), **stored.codes(), **more}
    quantized, exact = (model(text, arrays) for text in (body, other))
    _, report = bnfold.correct(quantized, exact, X)
    assert [layer.node for layer in report.layers] == ["conv", "linear"]
    assert all(layer.mean_after < 1e-6 for layer in report.layers)  # one after the other, through the body
    assert [(left.node, left.op) for left in report.left] == [("inner", "Conv")]
    assert "in a body" in report.left[0].reason
