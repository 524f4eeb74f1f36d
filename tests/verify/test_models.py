"""The judge: equal models pass, broken ones fail, and what cannot be told is called neither."""

from __future__ import annotations

import itertools
import json
import math
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.errors import UsageError
from bnfold.onnx_graph.file.loaded import load
from bnfold.options import Check
from bnfold.verify.blame import first_bad
from bnfold.verify.models import verify
from tests.onnx_graph.run.test_evaluators import BRAIN, DOUBLE, FLOAT, HALF, model, value

EPSILON = float(np.float32(1e-5))  # as the attribute holds it
TYPES = {FLOAT: np.float32, DOUBLE: np.float64, HALF: np.float16, BRAIN: ml_dtypes.bfloat16}


def chain(
    layers: int, typ: int = FLOAT, folded: int = 0, wrong: int = -1, shape=("N", 4, "H", "W")
) -> onnx.ModelProto:
    """conv -> batch norm -> relu, `layers` times; the first `folded` are folded, number `wrong` badly."""
    rng = np.random.default_rng(5)
    nodes, weights, x = [], {}, "x"
    for i in range(layers):
        w, b = rng.standard_normal((4, 4, 3, 3)) / 6, rng.standard_normal(4)
        (scale, shift, mean), var = rng.standard_normal((3, 4)), rng.random(4) + 0.5
        w, b, scale, shift, mean, var = (
            a.astype(TYPES[typ]).astype(np.float64) for a in (w, b, scale, shift, mean, var)
        )
        if i < folded:
            factor = scale / np.sqrt(var + (EPSILON if i != wrong else 0.1))
            w, b = w * factor[:, None, None, None], (b - mean) * factor + shift
        stored = {f"w{i}": w, f"b{i}": b}
        nodes.append(helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        x = f"c{i}"
        if i >= folded:
            stored |= {f"s{i}": scale, f"t{i}": shift, f"m{i}": mean, f"v{i}": var}
            names = [f"{p}{i}" for p in "stmv"]
            nodes.append(helper.make_node("BatchNormalization", [x, *names], [f"n{i}"]))
            x = f"n{i}"
        out = "y" if i == layers - 1 else f"r{i}"
        nodes.append(helper.make_node("Relu", [x], [out]))
        x = out
        weights |= {name: a.astype(TYPES[typ]) for name, a in stored.items()}
    return model(nodes, [value("x", shape, typ)], [value("y", None, typ)], weights, opset=15)


def linear(scale: float, *, typ: int = FLOAT, op: str = "Mul", out: str = "y") -> onnx.ModelProto:
    weights = {"k": np.array(scale, TYPES[typ])}
    return model(
        [helper.make_node(op, ["x", "k"], [out])], [value("x", [64], typ)], [value(out, [64], typ)], weights
    )


def test_a_correct_fold_passes_with_its_error():
    result = verify(chain(3), chain(3, folded=3))
    assert result.status == "passed"
    assert result.ok
    assert result.evaluator.startswith("onnxruntime ")
    (output,) = result.outputs
    assert (output.name, output.dtype) == ("y", "float32")
    assert 0 < output.max_rel < 1e-6
    assert output.max_abs == pytest.approx(output.max_rel * output.largest)


def test_the_error_is_what_it_is():
    result = verify(linear(1.0), linear(1.25))
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    assert result.outputs[0].max_rel == pytest.approx(0.25)
    assert result.outputs[0].largest == pytest.approx(np.abs(x).max())
    assert result.status == "failed"
    assert result.reason == "y differs"
    assert "WRONG" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["outputs"][0]["ok"] is False


def test_tolerances_can_be_set():
    assert verify(linear(1.0), linear(1.01), Check(rtol=0.02)).status == "passed"
    assert verify(linear(1.0), linear(1.01), Check(rtol=0.005)).status == "failed"
    assert verify(linear(1.0), linear(1.01), Check(rtol=0, atol=1.0)).status == "passed"
    assert verify(linear(1.0), linear(1.0), Check(rtol=0, atol=0)).status == "passed"


@pytest.mark.parametrize("wrong", [0, 3, 6])
def test_a_broken_fold_is_found_and_named(wrong):
    original, asked = load(chain(7, shape=(1, 4, 6, 6))), []

    def passes(count: int) -> bool:
        asked.append(count)
        return verify(original, chain(7, folded=count, wrong=wrong, shape=(1, 4, 6, 6))).status == "passed"

    assert not passes(7)
    assert first_bad(7, passes) - 1 == wrong
    assert len(asked) <= 4


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_bisection_finds_every_position(count):
    for bad in range(1, count + 1):
        calls = []
        assert first_bad(count, lambda k, bad=bad, calls=calls: bool(calls.append(k)) or k < bad) == bad
        assert len(calls) <= math.ceil(math.log2(count)) if count > 1 else not calls
    with pytest.raises(ValueError, match="none can be bad"):
        first_bad(0, bool)


def test_integer_and_boolean_inputs_and_outputs():
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Where", ["mask", "rows", "zero"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=-1),
        helper.make_node("Not", ["mask"], ["flipped"]),
    ]
    ins = [value("ids", ["N", "L"], TensorProto.INT64), value("mask", ["N", "L", 1], TensorProto.BOOL)]
    outs = [
        value("y", None),
        value("best", None, TensorProto.INT64),
        value("flipped", None, TensorProto.BOOL),
    ]

    def proto(last: int) -> onnx.ModelProto:
        t = table.copy()
        t[1, 2] = last
        return model(nodes, ins, outs, {"table": t, "zero": np.float32(0)})

    assert verify(proto(5), proto(5)).status == "passed"
    found = {o.name: o for o in verify(proto(5), proto(3)).outputs}  # the argmax of row 1 moves from 2 to 1
    assert not found["best"].ok
    assert 0.1 < found["best"].max_rel < 0.5  # rows with id 1 and mask 1: about a quarter
    assert found["best"].max_abs == 1
    assert "of 448 entries differ" in found["best"].note
    assert found["flipped"].ok


def test_opset_6_runs_in_the_reference_evaluator():
    stats = {
        n: np.array(a, np.float32) for n, a in {"s": [2, 3], "b": [0, 1], "m": [1, 1], "v": [3, 8]}.items()
    }

    def proto(scale: float) -> onnx.ModelProto:
        node = helper.make_node(
            "BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], is_test=1, consumed_inputs=[0, 0, 0, 1, 1]
        )
        return model(
            [node],
            [value("x", [2, 2, 3])],
            [value("y", None)],
            {**stats, "s": stats["s"] * np.float32(scale)},
            opset=6,
            ir=3,
        )

    result = verify(proto(1), proto(1))
    assert (result.status, result.evaluator) == ("passed", f"onnx reference evaluator {onnx.__version__}")
    assert "the original model does not run in onnxruntime: " in result.notes[0]
    assert "note: the original model does not run" in str(result)
    assert verify(proto(1), proto(1.01)).status == "failed"


def test_float64_convolutions():
    result = verify(chain(3, DOUBLE, shape=(1, 4, 8, 8)), chain(3, DOUBLE, folded=3, shape=(1, 4, 8, 8)))
    assert result.status == "passed"
    assert result.evaluator.startswith("onnx reference evaluator")
    assert result.outputs[0].dtype == "float64"
    assert result.outputs[0].max_rel < 1e-14
    wrong = verify(
        chain(3, DOUBLE, shape=(1, 4, 8, 8)), chain(3, DOUBLE, folded=3, wrong=1, shape=(1, 4, 8, 8))
    )
    assert wrong.status == "failed"


@pytest.mark.parametrize(("typ", "name"), [(HALF, "float16"), (BRAIN, "bfloat16")])
def test_half_precision_is_compared_twice(typ, name):
    result = verify(chain(3, typ, shape=(2, 4, 8, 8)), chain(3, typ, folded=3, shape=(2, 4, 8, 8)))
    assert result.status == "passed"
    assert [o.dtype for o in result.outputs] == [f"{name} as float32", name]
    copy, own = result.outputs
    unit = float(ml_dtypes.finfo(TYPES[typ]).eps)
    assert 0 < copy.max_rel < 4 * unit
    assert 0 < own.max_rel < 4 * unit
    wrong = verify(chain(3, typ, shape=(2, 4, 8, 8)), chain(3, typ, folded=3, wrong=2, shape=(2, 4, 8, 8)))
    assert wrong.status == "failed"
    assert not wrong.outputs[0].ok


def test_nan_positions_must_agree():
    def proto(shift: float) -> onnx.ModelProto:
        nodes = [helper.make_node("Add", ["x", "k"], ["s"]), helper.make_node("Log", ["s"], ["y"])]
        return model(nodes, [value("x", [4])], [value("y", [4])], {"k": np.float32(shift)})

    x = np.array([-1, 0, 1, 2], np.float32)
    assert (
        verify(proto(0), proto(0), Check(inputs={"x": x})).status == "passed"
    )  # NaN, -inf, 0, log 2 on both sides
    result = verify(proto(0), proto(1e-7), Check(inputs={"x": x}))
    assert result.status == "failed"
    assert result.outputs[0].note == "NaN or infinity on one side only, at 1 of 4 places"
    assert result.to_dict()["outputs"][0]["max_abs"] is None


def test_inputs_on_which_nothing_is_finite_prove_nothing():
    proto = model([helper.make_node("Sqrt", ["x"], ["y"])], [value("x", [3])], [value("y", [3])])
    result = verify(proto, proto, Check(inputs={"x": np.full(3, -1, np.float32)}))
    assert result.status == "not run"
    assert "NaN" in result.reason
    # Generated: if normal numbers give nothing finite, positive ones are tried.
    less = model(
        [helper.make_node("ReduceMin", ["x"], ["m"], keepdims=0), helper.make_node("Sqrt", ["m"], ["y"])],
        [value("x", [100])],
        [value("y", [])],
    )
    assert verify(less, less).status == "passed"


def test_custom_operators_are_not_run_and_not_ok():
    node = helper.make_node("Mystery", ["x"], ["y"], domain="org.example")
    proto = model([node], [value("x", [2])], [value("y", [2])], domains=("org.example",))
    result = verify(proto, proto)
    assert (result.status, result.ok, result.outputs, result.evaluator) == ("not run", False, [], "")
    assert "Mystery" in result.reason
    assert "not run" in str(result)


def test_a_folded_model_that_does_not_run_has_failed():
    good, bad = linear(1.0), linear(1.0)
    bad.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), "k"))
    result = verify(good, bad)
    assert result.status == "failed"
    assert "does not run in onnxruntime" in result.reason


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = verify(linear(2.0), linear(2.0))
    assert (result.evaluator, result.notes) == (f"onnx reference evaluator {onnx.__version__}", [])
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    proto = model([node], [value("x", [2])], [value("y", [2])], domains=("com.microsoft",))
    with pytest.raises(UsageError, match=r"pip install '.*\[onnxruntime\]'"):
        verify(proto, proto)


def test_random_nodes_draw_the_same_numbers_in_both_models():
    def proto(before: int, scale: float = 1.0) -> onnx.ModelProto:
        """Nodes before a random one change what onnxruntime draws."""
        names = ["x", *(f"i{k}" for k in range(before))]
        nodes = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
        nodes += [
            helper.make_node("RandomNormal", [], ["r"], shape=[50]),
            helper.make_node("Mul", ["r", "k"], ["s"]),
        ]
        nodes += [helper.make_node("Add", [names[-1], "s"], ["y"])]
        return model(nodes, [value("x", [50])], [value("y", [50])], {"k": np.float32(scale)})

    assert verify(proto(0), proto(3)).outputs[0].max_abs == 0
    assert verify(proto(0), proto(3, 1.01)).status == "failed"


def two_outputs(name: str) -> onnx.ModelProto:
    both = linear(1.0, out=name)
    both.graph.node.append(helper.make_node("Relu", ["x"], ["2"]))
    both.graph.output.append(value("2", [64]))
    return both


def test_different_signatures_are_named():
    with pytest.raises(UsageError, match="their outputs are y, 2 and z, 2"):
        verify(two_outputs("y"), two_outputs("z"))
    with pytest.raises(UsageError, match=r"the input 'x' is float32 \(64\) and float64 \(64\)"):
        verify(linear(1.0), linear(1.0, typ=DOUBLE))
    other = linear(1.0)
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 65
    with pytest.raises(UsageError, match=r"float32 \(64\) and float32 \(65\)"):
        verify(linear(1.0), other)


def test_sequences_are_compared_item_by_item():
    def proto(k: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["p"]),
            helper.make_node("SplitToSequence", ["p"], ["y"], axis=0),
        ]
        out = helper.make_tensor_sequence_value_info("y", FLOAT, None)
        return model(nodes, [value("x", [2, 3])], [out], {"k": np.array([[1], [k]], np.float32)})

    assert verify(proto(1), proto(1)).status == "passed"
    assert [(o.name, o.ok) for o in verify(proto(1), proto(2)).outputs] == [("y[0]", True), ("y[1]", False)]
