"""`bnfold.correct` on models that onnxruntime quantized: means, outputs, weights; what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.report.correct import CorrectReport
from tests.api.qdq import codes, images, net, quantize, quantized, signal
from tests.onnx_graph.build import Build

X = {"x": images(60, seed=1)}
FRESH = images(300, seed=2)
LAYERS = ["conv", "depthwise", "deconv", "gemm", "matmul"]


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize(
    ("activations", "per_channel"), [("uint8", False), ("uint8", True), ("int8", False), ("int8", True)]
)
def test_means_go_to_those_of_the_float_model(bias: bool, activations: str, per_channel: bool) -> None:
    exact, model = quantized(bias, "int8", activations, per_channel)
    before = model.SerializeToString()
    result, report = bnfold.correct(model, exact, X)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    assert [layer.node for layer in report.layers] == LAYERS
    assert report.left == []
    for layer in report.layers:
        assert layer.mean_after < 2e-4, layer
        assert layer.mean_after < layer.mean_before, layer
    kinds = [(layer.bias, layer.added) for layer in report.layers]
    assert kinds == [("int32", not bias)] * 4 + [("float32", True)]
    assert codes(result) == codes(model)
    assert len(codes(model)) == report.weights == 5
    assert signal(exact, result, FRESH) > signal(exact, model, FRESH) + 0.3
    assert (report.samples, report.compared, report.held_back) == (48, 12, True)

    again, second = bnfold.correct(result, exact, X)
    assert [layer.added for layer in second.layers] == [False] * 5
    assert len(again.graph.node) == len(result.graph.node)
    one, two = stored(result), stored(again)
    for name, array in one.items():
        if array.dtype == np.int32:
            assert np.abs(two[name] - array.astype(np.int64)).max(initial=0) <= 1, name
        else:
            np.testing.assert_allclose(two[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_added_biases_are_those_of_the_quantizer() -> None:
    """int32, the step that of the input times that of the weight, which integer kernels take for granted."""
    _, with_bias = quantized(True, "int8", "uint8", True)
    exact, model = quantized(False, "int8", "uint8", True)
    result, _ = bnfold.correct(model, exact, X)
    for node in with_bias.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        other = next(n for n in result.graph.node if n.name == node.name)
        forms = []
        for graph, name in ((with_bias.graph, node.input[2]), (result.graph, other.input[2])):
            [dequantize] = [n for n in graph.node if name in n.output]
            arrays = [
                numpy_helper.to_array(t) for i in dequantize.input for t in graph.initializer if t.name == i
            ]
            forms.append(
                (
                    dequantize.op_type,
                    [a.shape for a in arrays],
                    [a.dtype for a in arrays],
                    dequantize.attribute,
                )
            )
        assert forms[0] == forms[1]


def in_integers(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """What onnxruntime makes of a model that computes with integers."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(path).graph.node)
    return Counter(
        {op: count for op, count in found.items() if op in ("QLinearConv", "QGemm", "QLinearMatMul")}
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_runtime_takes_as_many_layers_in_integers_as_before(bias: bool, tmp_path: Path) -> None:
    exact, model = quantized(bias, "int8", "uint8", True)
    result, _ = bnfold.correct(model, exact, X)
    before, after = (in_integers(proto, tmp_path / "optimized.onnx") for proto in (model, result))
    assert before == {"QLinearConv": 2, "QGemm": 1, "QLinearMatMul": 1}
    assert after == {"QLinearConv": 2, "QGemm": 2}  # the MatMul with its Add


def test_the_deviation_below_eight_bits() -> None:
    exact, model = quantized(True, "int4", "uint8", True)
    means, plain = bnfold.correct(model, exact, X, deviation=False)
    both, report = bnfold.correct(model, exact, X)
    assert [layer.bits for layer in report.layers] == [4] * 5
    assert [layer.scaled for layer in report.layers] == [True] * 5
    assert not any(layer.scaled for layer in plain.layers)
    for one, two in zip(report.layers, plain.layers, strict=True):
        if one.scaled:
            assert (
                one.deviation_after < 0.02 < one.deviation_before
                or one.deviation_after < one.deviation_before / 4
            )
            assert one.deviation_after < two.deviation_after
    assert codes(means) == codes(both) == codes(model)
    levels = [signal(exact, m, FRESH) for m in (model, means, both)]
    assert levels[0] + 3 < levels[1] < levels[2] + 1


def test_the_deviation_of_eight_bits_if_asked_for() -> None:
    exact, model = quantized(False, "int8", "uint8", True)
    _, report = bnfold.correct(model, exact, X)
    assert not any(layer.scaled for layer in report.layers)
    result, report = bnfold.correct(model, exact, X, deviation=True)
    assert [layer.scaled for layer in report.layers] == [True, True, False, True, True]
    assert "no scale for each channel" in report.layers[2].note  # two groups share them
    changed = {name for name, array in stored(model).items() if (stored(result)[name] != array).any()}
    assert {name for name in changed if stored(model)[name].ndim > 1} == set()


def two_convs() -> onnx.ModelProto:
    """Two convolutions, one after the other, with one weight and one bias."""
    g = Build(seed=3, opset=21)
    x = g.input("x", ("N", 3, 8, 8))
    weight, bias = g.weight((3, 3, 3, 3), 27, "w"), g.const(g.normal((3,), 0.5), "b")
    y = g.op("Relu", g.op("Conv", x, weight, bias, name="first", pads=[1] * 4))
    g.output(g.op("Conv", y, weight, bias, name="second", pads=[1] * 4))
    return g.model()


@pytest.mark.parametrize("deviation", [False, True])
def test_what_is_shared_is_copied(deviation: bool) -> None:
    exact = two_convs()
    model = quantize(exact, "int8", "uint8", True)
    result, report = bnfold.correct(model, exact, X, deviation=deviation)
    assert [layer.node for layer in report.layers] == ["first", "second"]
    assert all(layer.mean_after < 1e-4 for layer in report.layers)
    assert codes(result) == codes(model)
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(), (6,), (1, 6), None])
def test_biases_of_gemm(beta: float, shape: tuple[int, ...] | None) -> None:
    g = Build(seed=4, opset=21)
    y = g.op("Flatten", g.op("GlobalAveragePool", g.input("x", ("N", 3, 8, 8))))
    g.output(g.gemm(y, 6, c=shape, name="gemm", beta=beta, transB=1))
    exact = g.model()
    model = quantize(exact, "int8", "uint8", False)
    _, report = bnfold.correct(model, exact, X)
    [layer] = report.layers
    assert layer.mean_after < min(1e-4, layer.mean_before)


def renamed(model: onnx.ModelProto, tensors: dict[str, str], nodes: dict[str, str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        node.name = nodes.get(node.name, node.name)
        for names in (node.input, node.output):
            names[:] = [tensors.get(name, name) for name in names]
    return result


def output_of(model: onnx.ModelProto, node: str) -> str:
    return next(n.output[0] for n in model.graph.node if n.name == node)


def test_names_of_nodes_that_were_lost() -> None:
    """Behind a Conv the quantizer drops Relu and Clip, and gives their names to what it makes."""
    exact, model = quantized()
    nodes = {node.name: f"{node.name} of old" for node in exact.graph.node}
    _, report = bnfold.correct(model, renamed(exact, {}, nodes), X)
    assert [layer.node for layer in report.layers] == LAYERS


def test_names_of_tensors_that_were_lost() -> None:
    """By the node's name where the tensor's is another; what has neither is named, and left alone."""
    exact, model = quantized()
    tensors = {output_of(exact, "depthwise"): "other", output_of(exact, "conv"): "one", "Clip_0": "clip"}
    clip, relu = (next(n.output[0] for n in exact.graph.node if n.op_type == op) for op in ("Clip", "Relu"))
    tensors |= {clip: "other clip", relu: "other relu"}
    result, report = bnfold.correct(model, renamed(exact, tensors, {"conv": "layer 1"}), X)
    assert [layer.node for layer in report.layers] == LAYERS[1:]
    [left] = report.left
    assert left.node == "conv"
    assert left.reason == f"the float model has no tensor {relu!r}, and no such node"
    bias = next(n for n in model.graph.node if n.name == "conv").input[2]
    codes_of_bias = next(n for n in model.graph.node if bias in n.output).input[0]
    np.testing.assert_array_equal(stored(result)[codes_of_bias], stored(model)[codes_of_bias])


def test_operators_on_integers_are_named() -> None:
    exact, model = quantized()
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    shape = numpy_helper.from_array(np.array([5, 5], np.int64), "shape")
    mixed.graph.initializer.append(shape)
    mixed.graph.node.extend(
        [
            onnx.helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=filled(np.uint8)),
            onnx.helper.make_node("MatMulInteger", ["ones", "ones"], ["product"], name="on integers"),
        ]
    )
    _, report = bnfold.correct(mixed, exact, X)
    assert [(left.node, left.op) for left in report.left] == [("on integers", "MatMulInteger")]
    assert "computes with integers" in report.left[0].reason


def filled(dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(1, dtype))


def other_shape() -> onnx.ModelProto:
    g = Build(seed=0, opset=21)
    y = g.conv(g.input("x", ("N", 3, 8, 8)), 8, 3, pads=1, name="conv")
    y = g.op("Flatten", g.op("GlobalAveragePool", g.op("Relu", y)))
    g.output(g.matmul(g.gemm(y, 4, c=(4,), name="gemm"), 5, name="matmul"))
    return g.model()


def other_input() -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(net())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    return model


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], str]] = {
    "other weights": (
        lambda: (quantized()[1], net(seed=9), X),
        r"layer 'conv' \(Conv\) has other weights than 'conv' of the float model \(they differ by 1\d\d%",
    ),
    "other sizes": (
        lambda: (quantized()[1], other_shape(), X),
        r"has a weight of shape \[6, 8\], but 'gemm' of the float model one of \[8, 4\]",
    ),
    "other inputs": (
        lambda: (quantized()[1], other_input(), X),
        "the input 'x' is float32 .N, 3, 8, 8. in the quant",
    ),
    "a float model that is none": (
        lambda: (quantized()[1], quantized()[1], X),
        "layer 'conv' of the float model is quantized itself",
    ),
    "not quantized": (lambda: (net(), net(), X), "there is no DequantizeLinear in the model"),
    "no samples": (lambda: (quantized()[1], net(), {"x": X["x"][:0]}), "there are no samples"),
    "another name": (lambda: (quantized()[1], net(), {"z": X["x"]}), "the model has no input 'z' to feed"),
    "another shape": (lambda: (quantized()[1], net(), {"x": X["x"][:, :2]}), "axis 1 is 2 instead of 3"),
    "a file that is not there": (lambda: (quantized()[1], net(), "no.npz"), "there is no file no.npz"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(bnfold.UsageError, match=said):
        bnfold.correct(*make())


def test_a_worse_model_is_dropped() -> None:
    """Samples held back that are unlike the others: there the correction for those is wrong."""
    exact, model = quantized()
    odd = images(60, seed=1) * 8 - 4
    odd[4::5] = images(12, seed=3)
    with pytest.raises(
        bnfold.VerifyError, match=r"makes the outputs worse, and was dropped: .* dB; give more"
    ):
        bnfold.correct(model, exact, {"x": odd})
    _, report = bnfold.correct(model, exact, {"x": odd}, verify=False)
    assert (report.samples, report.compared, report.outputs) == (60, 0, [])


def test_a_fixed_batch_takes_so_many_at_a_time() -> None:
    exact = net(batch=4)
    model = quantize_with_batch(exact)
    result, report = bnfold.correct(model, exact, X)
    free, _ = bnfold.correct(*reversed(quantized()), X, verify=False)
    assert (report.samples, report.compared) == (48, 12)
    assert report.layers[0].mean_after < 2e-4
    assert codes(result) == codes(free)
    with pytest.raises(bnfold.UsageError, match=r"takes 4 samples at a time, and 58 were given"):
        bnfold.correct(model, exact, {"x": X["x"][:58]})


def quantize_with_batch(exact: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(quantized()[1])
    model.graph.input[0].CopyFrom(exact.graph.input[0])
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend(exact.graph.output)
    return model


def test_a_batch_that_only_the_float_model_fixes() -> None:
    _, report = bnfold.correct(quantized()[1], net(batch=4), X)
    assert (report.samples, report.compared) == (48, 12)


def test_few_samples_are_all_used() -> None:
    exact, model = quantized()
    _, report = bnfold.correct(model, exact, {"x": X["x"][:3]})
    assert (report.samples, report.compared, report.held_back) == (3, 3, False)
    assert "on 3 samples that it was corrected on" in str(report)


def test_samples_that_are_no_numbers_are_refused() -> None:
    exact, model = quantized()
    broken = X["x"].copy()
    broken[0] = np.nan
    with pytest.raises(
        bnfold.UsageError, match="can be corrected: conv: its output is infinite or not a number"
    ):
        bnfold.correct(model, exact, {"x": broken}, verify=False)


def test_the_report(tmp_path: Path) -> None:
    exact, model = quantized()
    _, report = bnfold.correct(model, exact, X)
    assert isinstance(report, CorrectReport)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "op", "bits", "mean", "error", "bias"]
    assert lines[2].split()[:3] == ["conv", "Conv", "8"]
    assert lines[7] == (
        "5 layers corrected on 48 samples (1 had no bias), 0 left; "
        "the integers of 5 weights are the same, bit for bit"
    )
    assert lines[8].endswith("of signal over noise, on 12 samples held back")
