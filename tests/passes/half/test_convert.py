"""Half precision in the file: types, names, Casts, what stays float32; and the same numbers, rounded."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.api.convert import convert
from bnfold.errors import ModelError, UsageError
from bnfold.onnx_graph.file.loaded import Loaded, load
from bnfold.onnx_graph.file.save import save
from bnfold.onnx_graph.run import evaluators as run
from bnfold.options import Check

F, H = TensorProto.FLOAT, TensorProto.FLOAT16
CODES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
Array = np.ndarray[Any, Any]


def stored(**arrays: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in arrays.items()]


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    shape: tuple[int | str, ...] = (1, 4, 6, 6),
    opset: int = 18,
    outputs: tuple[str, ...] = ("y",),
    functions: tuple[onnx.FunctionProto, ...] = (),
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info(name, F, None) for name in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    whole = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    return onnx.shape_inference.infer_shapes(whole)


def normal(*shape: int, size: float = 1.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape) * size


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, inputs.split(), output.split(), name=f"{op}_{output.split()[0]}", **attributes
    )


def converted(proto: onnx.ModelProto, precision: str = "fp16", **options: Any) -> tuple[onnx.ModelProto, Any]:
    """Converted, valid, run by onnxruntime, and compared: inputs and outputs keep names and types."""
    loaded = load(proto)
    before = loaded.proto.SerializeToString()
    result, report = convert(loaded, precision, Check(**options))
    assert loaded.proto.SerializeToString() == before
    half = result.to_proto()
    onnx.checker.check_model(half, full_check=True)
    for ours, theirs in ((half.graph.input, proto.graph.input), (half.graph.output, proto.graph.output)):
        assert [(v.name, v.type.tensor_type.elem_type) for v in ours] == [
            (v.name, v.type.tensor_type.elem_type) for v in theirs
        ]
    if precision == "fp16":
        options_ = onnxruntime.SessionOptions()
        options_.log_severity_level = 4
        onnxruntime.InferenceSession(half.SerializeToString(), options_, providers=["CPUExecutionProvider"])
    return half, report


def types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto)
    found = {t.name: t.data_type for t in proto.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def reasons(report: Any) -> dict[str, str]:
    return {kept.node: kept.reason for kept in report.kept}


def two_convs() -> onnx.ModelProto:
    nodes = [node("Conv", "x w b", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y")]
    return model(nodes, stored(w=normal(4, 4, 1, 1), b=normal(4), v=normal(2, 4, 1, 1)))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_what_is_added_up_by_index_stays_float32(reduction: str) -> None:
    """onnxruntime has no kernel for the half of it."""
    nodes = [node("Conv", "x w", "a"), node("ScatterElements", "z i a", "s", reduction=reduction, axis=2)]
    nodes += [node("Conv", "s w", "y")]
    places = numpy_helper.from_array(np.zeros((1, 4, 6, 6), np.int64), "i")
    zeros = stored(w=normal(4, 4, 1, 1), z=np.zeros((1, 4, 6, 6)))
    _, report = converted(model(nodes, [*zeros, places]))
    assert list(reasons(report)) == ["ScatterElements_s"] * (reduction in ("add", "mul"))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_between_the_inputs_and_the_outputs_is_half(precision: str) -> None:
    half, report = converted(two_convs(), precision)
    code = CODES[precision]
    assert [n.op_type for n in half.graph.node] == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    assert {t.name: t.data_type for t in half.graph.initializer} == {"w": code, "b": code, "v": code}
    assert all(types(half)[name] == code for name in ("a", "r"))
    assert (report.half, report.casts, report.kept, report.status) == (3, 2, [], "passed")
    (error,) = report.outputs
    assert 0 < error.max_rel < {"fp16": 2e-3, "bf16": 2e-2}[precision]


def test_the_stored_numbers_are_the_nearest() -> None:
    original = two_convs()
    half, _ = converted(original)
    for old, new in zip(original.graph.initializer, half.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            numpy_helper.to_array(new), numpy_helper.to_array(old).astype(np.float16)
        )


def test_bfloat16_needs_a_newer_opset_which_the_model_gets_if_nothing_changes_its_meaning() -> None:
    half, report = converted(two_convs(), "bf16")
    assert half.opset_import[0].version == 22
    assert "opset 18 became 22" in report.notes[0]
    old = two_convs()
    old.opset_import[0].version = 11
    old.graph.node[1].CopyFrom(helper.make_node("Softmax", ["a"], ["r"], axis=1))
    half, report = converted(old, "bf16")
    assert half.opset_import[0].version == 11
    assert report.notes[0] == (
        "the opset stays 11, in which fewer operators take bfloat16: Softmax changed in opset 13; "
        "export with opset 22 for all of them"
    )
    assert set(reasons(report).values()) >= {"Conv takes bfloat16 from opset 22 on; the model has 11"}
    assert report.half == 0


def newest() -> int:
    """The newest opset that the onnxruntime which is installed runs: the last for Python 3.10 ends at 23."""
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        proto = model([node("Relu", "x", "y")], [], opset=opset)
        with contextlib.suppress(Exception):  # of onnxruntime's own kinds
            onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
            return opset
    raise AssertionError("onnxruntime runs no opset")


NEWEST = newest()


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset(opset: int) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("BatchNormalization", "a s b m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2]),
        node("Add", "p c", "d"),
        node("GlobalAveragePool", "d", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f k e", "y"),
    ]
    tensors = stored(
        w=normal(4, 4, 3, 3), s=normal(4), b=normal(4), m=normal(4), v=[1, 2, 3, 1e-9], c=normal(1, 4, 1, 1),
        k=normal(4, 3), e=normal(3),
    )  # fmt: skip
    for precision in CODES:
        _, report = converted(model(nodes, tensors, opset=opset), precision)
        assert report.status == "passed"
        assert report.half == len(nodes), report


def test_a_tensor_that_overflows_stays_float32_and_so_do_its_neighbours() -> None:
    """Elu passes no scale: what is large ahead of it cannot be rescaled."""
    nodes = [node("Mul", "x a", "t"), node("Elu", "t", "s"), node("Mul", "s b", "e"), node("Tanh", "e", "y")]
    half, report = converted(model(nodes, stored(a=[6e4], b=[1e-4])))
    kept = reasons(report)
    assert "t reaches" in kept["Mul_t"]
    assert "too near float16's largest number" in kept["Elu_s"]
    assert list(kept) == ["Mul_t", "Elu_s", "Mul_e"]
    assert types(half)["t"] == F
    assert report.status == "passed"


@pytest.mark.parametrize("opset", [11, 13, 18, 22, min(24, NEWEST)])
def test_what_an_operator_takes_as_float32_only_stays_so(opset: int) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Resize", "a roi scales", "y", mode="nearest"),
    ]
    half, report = converted(
        model(nodes, stored(w=normal(4, 4, 1, 1), roi=np.zeros(0), scales=[1, 1, 2, 2]), opset=opset)
    )
    found = types(half)
    assert (found["w"], found["scales"]) == (H, F)
    assert report.half == 2


def test_a_weight_with_readers_of_both_types_is_stored_twice() -> None:
    """One reader is a NonMaxSuppression, which takes float32 only."""
    nodes = [
        node("Reshape", "x s1", "boxes"),
        node("Mul", "boxes c", "m"),
        node("NonMaxSuppression", "m c n t", "picked"),
        node("Cast", "picked", "f", to=F),
        node("ReduceSum", "f", "g", keepdims=0),
        node("ReduceMax", "m", "k", keepdims=0),
        node("Add", "g k", "y"),
    ]
    integers = [numpy_helper.from_array(np.array(v), k) for k, v in {"s1": [1, 36, 4], "n": [3]}.items()]
    inits = [*stored(c=normal(1, 1, 36), t=[0.5]), *integers]
    nodes[1] = node("Mul", "boxes d", "m")
    inits += stored(d=[0.5])
    nodes.append(node("Mul", "x c2", "z"))
    half, report = converted(model([*nodes[:-1]], inits))
    assert "NonMaxSuppression does not take float16" in reasons(report).values()
    assert types(half)["c"] == F
    shared = model(
        [node("Mul", "x c", "a"), node("Mul", "a e", "b"), node("Mul", "b c", "y")],
        stored(c=[2.0], e=[1e-9]),
    )
    half, report = converted(shared, inputs={"x": normal(1, 4, 6, 6, size=1e3).astype(np.float32)})
    stored_types = Counter(t.data_type for t in half.graph.initializer)
    assert stored_types == {F: 2, H: 1}  # c twice: for the half product, and for the one that stays
    assert "would vanish" in reasons(report)["Mul_b"]


def test_bodies_of_control_flow_stay_float32_and_see_what_they_capture() -> None:
    def branch(op: str) -> onnx.GraphProto:
        inner = [helper.make_node(op, ["a", "k"], [f"{op}_out"], name=f"in_{op}")]
        return helper.make_graph(inner, op, [], [helper.make_tensor_value_info(f"{op}_out", F, None)])

    nodes = [
        node("Conv", "x w", "a"),
        node("ReduceSum", "a", "s", keepdims=0),
        node("Greater", "s zero", "c"),
        node("If", "c", "i", then_branch=branch("Add"), else_branch=branch("Sub")),
        node("Conv", "i w", "r"),
        node("Relu", "r", "y"),
    ]
    half, report = converted(model(nodes, stored(w=normal(4, 4, 1, 1), k=[0.5], zero=0.0)))
    assert reasons(report) == {"If_i": "If is control flow, whose body stays float32"}
    inner = next(n for n in half.graph.node if n.op_type == "If").attribute[0].g.node[0]
    assert types(half)["a"] == H
    assert inner.input[0] == "a_fp32"
    assert report.status == "passed"


def function(name: str, nodes: list[onnx.NodeProto], attributes: tuple[str, ...] = ()) -> onnx.FunctionProto:
    return helper.make_function(
        "bnfold", name, ["x", "scale", "shift"], ["y"], nodes, [helper.make_opsetid("", 18)], list(attributes)
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_functions_that_take_any_type_are_called_with_half(precision: str) -> None:
    generic = function("Generic", [node("Mul", "x scale", "m"), node("Add", "m shift", "y")])
    through = [node("Cast", "x", "w", to=F), node("Exp", "w", "e"), node("CastLike", "e x", "c")]
    inside = function("Inside", [*through, node("Add", "c shift", "y")])
    fixed = function(
        "Fixed",
        [
            helper.make_node("Constant", [], ["k"], value_float=2.0),
            node("Mul", "x k", "m"),
            node("Add", "m shift", "y"),
        ],
    )
    nodes = [
        node("Conv", "x w", "a"),
        helper.make_node("Generic", ["a", "s", "b"], ["g"], name="generic", domain="bnfold"),
        helper.make_node("Inside", ["g", "s", "b"], ["i"], name="inside", domain="bnfold"),
        helper.make_node("Fixed", ["i", "s", "b"], ["f"], name="fixed", domain="bnfold"),
        node("Relu", "f", "y"),
    ]
    weights = stored(w=normal(4, 4, 1, 1, size=0.3), s=normal(1, 4, 1, 1), b=normal(1, 4, 1, 1))
    proto = model(nodes, weights, functions=(generic, inside, fixed), domains=("bnfold",))
    half, report = converted(proto, precision)
    assert reasons(report)["fixed"] == "calls the function Fixed, whose body is float32"
    assert set(reasons(report)) <= {"fixed", "Relu_y"}
    calls = {n.name: list(n.input) for n in half.graph.node}
    suffix = precision
    assert calls["generic"] == ["a", f"s_{suffix}", f"b_{suffix}"]
    assert calls["fixed"][1:] == ["s", "b"]
    assert report.status == "passed"


def test_quantized_models_are_left_alone() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("Relu", "d", "y"),
    ]
    zero = numpy_helper.from_array(np.zeros((), np.int8), "z")
    proto = model(nodes, [*stored(s=0.05), zero])
    half, report = converted(proto)
    assert half.SerializeToString() == proto.SerializeToString()
    assert report.notes == ["the model is quantized: its types are left as they are"]


def test_weights_behind_a_scale_keep_it() -> None:
    integers = numpy_helper.from_array(np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1), "q")
    nodes = [node("DequantizeLinear", "q s", "w"), node("Conv", "x w", "y")]
    half, report = converted(model(nodes, [*stored(s=0.05), integers]))
    assert reasons(report) == {"DequantizeLinear_w": "its scale belongs to integers"}
    assert types(half)["s"] == F
    assert [n.op_type for n in half.graph.node].count("Cast") == 3


def test_a_bound_beyond_the_range_is_none() -> None:
    nodes = [node("Conv", "x w", "a"), node("Clip", "a low high", "y")]
    half, report = converted(model(nodes, stored(w=normal(4, 4, 1, 1), low=0.0, high=3.4e38)))
    assert not report.kept
    high = next(t for t in half.graph.initializer if t.name == "high")
    assert list(high.dims) == []
    assert np.isposinf(numpy_helper.to_array(high))


def test_a_small_number_in_a_root_does_not_vanish() -> None:
    nodes = [
        node("Mul", "x x", "s"),
        node("Add", "s eps", "e"),
        node("Sqrt", "e", "r"),
        node("Div", "x r", "y"),
    ]
    x = np.broadcast_to(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1), (1, 4, 6, 6))
    _, report = converted(model(nodes, stored(eps=1e-9)), inputs={"x": x})
    assert reasons(report) == {
        "Add_e": "its constant eps only reaches 1e-09, and would vanish in float16",
        "Sqrt_r": "reads what Add_e keeps from being zero",
        "Div_y": "reads what Add_e keeps from being zero",
    }
    assert report.status == "passed"


def test_sums_that_could_overflow_inside_stay_float32() -> None:
    nodes = [node("Relu", "x", "a"), node("ReduceL2", "a axes", "b"), node("Mul", "b c", "y")]
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    big = {"x": np.full((1, 4, 64, 64), 8.0, np.float32)}
    _, report = converted(model(nodes, [*stored(c=[0.01]), axes], shape=(1, 4, 64, 64)), inputs=big)
    assert reasons(report)["ReduceL2_b"] == "adds up 4096 squares of up to 64"
    small = {"x": np.full((1, 4, 64, 64), 1.0, np.float32)}
    _, report = converted(model(nodes, [*stored(c=[0.01]), axes], shape=(1, 4, 64, 64)), inputs=small)
    assert not report.kept


def test_sizes_and_indices_are_computed_exactly() -> None:
    """2049 has no float16."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Cast", "shape", "f", to=F),
        node("Mul", "f one", "g"),
        node("Floor", "g", "h"),
        node("Cast", "h", "sizes", to=TensorProto.INT64),
        node("Expand", "w sizes", "z"),
        node("Add", "x z", "y"),
    ]
    proto = model(nodes, stored(one=[1.0], w=[[0.5]]), shape=("N", "L"))
    half, report = converted(proto, inputs={"x": normal(1, 2049).astype(np.float32)})
    assert set(reasons(report)) == {"Cast_f", "Mul_g", "Floor_h", "Cast_sizes"}
    assert set(reasons(report).values()) == {"computes integers"}
    assert types(half)["z"] == H


def test_a_layer_norm_may_be_half_and_its_mean_is_not() -> None:
    nodes = [node("LayerNormalization", "x s b", "y mean"), node("Identity", "mean", "z")]
    half, report = converted(model(nodes, stored(s=normal(6), b=normal(6)), outputs=("y", "z")))
    assert types(half)["mean"] == F
    assert not report.kept


def test_external_data_and_free_sizes(tmp_path: Path) -> None:
    proto = two_convs()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    loaded = load(tmp_path / "m.onnx")
    result, report = convert(loaded, "fp16")
    assert report.status == "passed"
    save(result, tmp_path / "half.onnx")
    again = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    assert {t.data_type for t in again.graph.initializer} == {H}


def test_an_initializer_that_the_caller_may_override_keeps_its_type() -> None:
    proto = two_convs()
    proto.graph.input.append(helper.make_tensor_value_info("w", F, [4, 4, 1, 1]))
    half, report = converted(proto)
    assert types(half)["w"] == F
    assert "w_fp16" in {n.output[0] for n in half.graph.node}
    assert report.status == "passed"


def test_a_graph_output_that_others_read_keeps_its_name() -> None:
    nodes = [node("Conv", "x w", "y"), node("Relu", "y", "r"), node("Conv", "r w", "z")]
    half, report = converted(model(nodes, stored(w=normal(4, 4, 1, 1)), outputs=("y", "z")))
    reader = next(n for n in half.graph.node if n.op_type == "Relu")
    assert list(reader.input) == ["y_fp16"]
    assert report.casts == 3


def test_without_onnxruntime_the_reference_evaluator_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        label = "onnxruntime"

        def __init__(self, loaded: Loaded) -> None:
            raise run.CannotRun(run.MISSING)

    monkeypatch.setattr(run, "EVALUATORS", (Absent, run.Reference))
    for precision in CODES:
        _, report = convert(load(two_convs()), precision)
        assert report.status == "passed"
        assert "reference" in report.evaluator


def test_what_cannot_be_converted_is_refused_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"precision='fp8' is unknown\. Note: valid choices are fp16, bf16"):
        convert(load(two_convs()), "fp8")
    half, _ = converted(two_convs())
    with pytest.raises(UsageError, match="the model computes in float16 already"):
        convert(load(half), "bf16")
    old = two_convs()
    old.opset_import[0].version = 6
    with pytest.raises(ModelError, match="half precision needs opset 7 or newer, and the model has 6"):
        convert(load(old), "fp16")


def test_a_model_of_integers_is_as_it_was() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    result, report = convert(load(proto), "fp16")
    assert result.to_proto().SerializeToString() == proto.SerializeToString()
    assert report.notes[-1] == "nothing became float16: the model is as it was"
