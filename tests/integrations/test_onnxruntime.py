"""onnxruntime's quantizer behind the fold: what it makes has no batch norm, and fewer integers to convert."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process as of_onnxruntime

import bnfold
from bnfold.integrations.onnxruntime import quant_pre_process
from tests.api.qdq import Reader, images, signal
from tests.onnx_graph.build import Build


def net() -> onnx.ModelProto:
    """Conv, Relu, batch norm, average pool, conv, batch norm: onnxruntime folds the last one alone."""
    g = Build(seed=1)
    y = g.op("Relu", g.conv(g.input("x", ("N", 3, 8, 8)), 16, 3, name="conv1"))
    y = g.op("AveragePool", g.bn(y, name="bn1", signs="positive"), kernel_shape=[2, 2])
    g.output(g.bn(g.conv(y, 4, 1, name="conv2"), name="bn2"))
    return g.model()


def quantized(prepared: Path) -> onnx.ModelProto:
    made = prepared.with_name("int8.onnx")
    logging.disable(logging.WARNING)
    try:
        quantize_static(prepared, made, Reader(images(16)), quant_format=QuantFormat.QDQ, per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(made)


def count(model: onnx.ModelProto, *ops: str) -> int:
    return sum(node.op_type in ops for node in model.graph.node)


def test_the_step_in_front_of_the_quantizer(tmp_path: Path) -> None:
    model, made = net(), {}
    onnx.save(model, tmp_path / "model.onnx")
    before = (tmp_path / "model.onnx").read_bytes()
    for name, step in (("without", of_onnxruntime), ("with", quant_pre_process)):
        step(tmp_path / "model.onnx", tmp_path / "prepared.onnx")
        made[name] = quantized(tmp_path / "prepared.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert [count(each, "BatchNormalization") for each in made.values()] == [1, 0]
    converting = [count(each, "QuantizeLinear", "DequantizeLinear") for each in made.values()]
    assert converting[1] < converting[0]
    with_, without = (signal(model, made[name], images(4, seed=3)) for name in ("with", "without"))
    assert with_ > without - 1  # dB


def test_shapes_are_inferred_and_options_go_on(tmp_path: Path) -> None:
    made = tmp_path / "made.onnx"
    report = quant_pre_process(net(), made, skip=["bn1"], verify=False, skip_optimization=True)
    assert [entry.name for entry in report.kept] == ["bn1"]
    assert report.quantize_for == "int8"
    assert report.verification is None
    prepared = onnx.load(made)
    known = {value.name for value in prepared.graph.value_info}
    inside = {output for node in prepared.graph.node for output in node.output}
    assert inside - known <= {prepared.graph.output[0].name}
    report = quant_pre_process(net(), made, quantize_for=None, skip_symbolic_shape=True)  # replaces the file
    assert report.quantize_for is None


def test_nothing_is_written_where_the_fold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match="no such batch norm"):
        quant_pre_process(net(), tmp_path / "made.onnx", skip=["bn7"])
    assert not list(tmp_path.iterdir())


def test_what_torch_exports_comes_back_as_that() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    module, x = torch.nn.Sequential(*layers).eval(), torch.randn(1, 3, 8, 8)
    torch.nn.init.normal_(module[2].running_mean)
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    text = program.model_proto.SerializeToString()
    folded, report = bnfold.fold_onnx(program)
    assert isinstance(folded, torch.onnx.ONNXProgram)
    assert len(report.folded) == 1
    assert [node.op_type for node in folded.model.graph] == ["Conv", "Relu", "Conv"]
    np.testing.assert_allclose(folded(x)[0], module(x).detach(), rtol=1e-4, atol=1e-6)
    assert folded.exported_program is program.exported_program
    assert program.model_proto.SerializeToString() == text
    with pytest.raises(bnfold.UsageError, match=r"or what torch\.onnx\.export returns, not ExportedProgram"):
        bnfold.fold_onnx(program.exported_program)
