"""Saturated outputs: what they hide is found in front of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold.onnx_graph.file.loaded import load
from bnfold.verify.difference import TOLERANCES, compare
from bnfold.verify.models import verify
from bnfold.verify.saturated import with_fronts
from tests.onnx_graph.build import Build
from tests.onnx_graph.run.test_evaluators import BRAIN, FLOAT, HALF, model, value

ENDS = {
    "Softmax": {"axis": 1},
    "LogSoftmax": {"axis": 1},
    "Sigmoid": {},
    "HardSigmoid": {},
    "Tanh": {},
    "Clip": {},
    "ArgMax": {"axis": 1},
}


def saturated(end: str, factor: float = 1.0, typ: int = FLOAT, moved: bool = False) -> onnx.ModelProto:
    """Two 1x1 convolutions, the second of large weights times a factor, and what saturates behind them."""
    rng = np.random.default_rng(3)
    dtype = helper.tensor_dtype_to_np_dtype(typ)
    weights = {
        "v": rng.standard_normal((4, 3, 1, 1)).astype(dtype),
        "w": (rng.standard_normal((5, 4, 1, 1)) * 3e3 * factor).astype(dtype),
        "low": np.array(0, dtype),
        "high": np.array(1, dtype),
    }
    bounds = ["low", "high"] if end == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["d"]),
        helper.make_node(end, ["d", *bounds], ["s"], **ENDS[end]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node(
            "Concat" if moved else "Identity",
            ["t", "t"][: 1 + moved],
            ["y"],
            **({"axis": 0} if moved else {}),
        ),
    ]
    out = onnx.TensorProto.INT64 if end == "ArgMax" else typ
    return model(nodes, [value("x", [2, 3, 6, 6], typ)], [value("y", None, out)], weights)


@pytest.mark.parametrize("end", ENDS)
def test_what_a_saturated_output_hides_is_found(end):
    good, bad = saturated(end), saturated(end, 1.5)
    result = verify(good, good)
    assert (result.status, [o.name for o in result.outputs]) == ("passed", ["y", "d (in front of y)"])
    result = verify(good, bad)
    assert result.status == "failed"
    assert "d (in front of y)" in result.reason
    assert result.outputs[1].max_rel == pytest.approx(0.5)


@pytest.mark.parametrize("typ", [HALF, BRAIN])
def test_in_half_precision_too(typ):
    assert verify(saturated("Sigmoid", 1 / 64, typ), saturated("Sigmoid", 1 / 64, typ)).status == "passed"
    assert verify(saturated("Sigmoid", 1 / 64, typ), saturated("Sigmoid", 1 / 32, typ)).status == "failed"


def test_only_where_both_models_have_the_same_operators_there():
    other = saturated("Sigmoid")
    other.graph.node[3].op_type = "HardSigmoid"
    a, b = load(saturated("Sigmoid")), load(other)
    assert with_fronts(a, b) == (a, b, frozenset())
    plain = load(model([helper.make_node("Relu", ["x"], ["y"])], [value("x", [2])], [value("y", [2])]))
    assert with_fronts(plain, plain)[2] == frozenset()
    moved = load(saturated("Sigmoid", moved=True))
    assert with_fronts(moved, moved)[2] == {"d (in front of y)"}
    sigmoid = model([helper.make_node("Sigmoid", ["x"], ["y"])], [value("x", [2])], [value("y", [2])])
    assert verify(sigmoid, sigmoid).outputs[0].name == "y"  # an input is the same in both


def test_what_is_0_or_1_everywhere_tells_little():
    def note(*values: float) -> str:
        array = np.array(values, np.float32)
        return compare("y", array, array, TOLERANCES["float32"])[0].note

    assert note(0, 1, 1, 1e-24) == note(0, 0) == "0 or 1 everywhere, which tells little"
    assert note(0, 1, 0.5) == note(0, 1, 2) == note(0, -1) == ""


def test_a_fold_in_front_of_a_softmax_is_checked_there():
    g = Build(seed=1)
    x = g.bn(g.conv(g.input("x", (2, 3, 8, 8)), 6, 3))
    g.output(g.op("Softmax", x, axis=1))
    folded, report = bnfold.fold_onnx(g.model(), check="run")
    assert report.verification.status == "passed"
    assert [
        o.name.endswith(f"(in front of {folded.graph.output[0].name})") for o in report.verification.outputs
    ] == [False, True]
    (weight,) = [t for t in folded.graph.initializer if t.dims == [6, 3, 3, 3]]
    assert len(folded.graph.output) == 1
    large = numpy_helper.to_array(weight) * np.float32(1e-9)
    weight.CopyFrom(numpy_helper.from_array(large, weight.name))
    assert verify(g.model(), folded).status == "failed"


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("moved", [False, True])
def test_what_a_softmax_does_not_see_is_no_difference(end: str, moved: bool):
    """A shift that is the same for all that it weighs vanishes in it: its logarithm is compared."""
    g = Build(17, seed=1)
    x = g.op("Sub", g.op("Neg", g.op("Tanh", g.input("x", (2, 5, 4)))), g.const(g.normal((1, 1, 4))))
    x = g.op("Transpose", x, perm=[0, 2, 1]) if moved else x
    g.output(g.op(end, x, axis=2 if moved else 1))
    folded, report = bnfold.fold_onnx(g.model(), check="run")
    assert "Sub" not in [node.op_type for node in folded.graph.node]
    assert report.verification.status == "passed"
    assert len(report.verification.outputs) == 2
