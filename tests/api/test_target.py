"""`--target tensorrt` and `--lower-batch-statistics`, on what torch exports: checked, told and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import bnfold
from bnfold.cli.app import main
from bnfold.passes.deploy import rewrite
from tests.deployed import NETS, export, made
from tests.onnx_graph.build import Build


@pytest.mark.parametrize("raw", [False, True], ids=["default", "raw"])
@pytest.mark.parametrize("name", NETS)
def test_plain_onnxruntime_runs_what_torch_computes(name: str, raw: bool, tmp_path: Path) -> None:
    module, inputs = made(name)
    with torch.no_grad():
        exact = module.double()(*(x.double() if x.is_floating_point() else x for x in inputs)).numpy()
    export(module.float(), inputs, tmp_path / "net.onnx", raw)
    model, report = bnfold.fold_onnx(tmp_path / "net.onnx", target="tensorrt")
    assert report.verification.ok
    assert tuple(node.op_type for node in model.graph.node if node.domain) == NETS[name][2]
    assert not [node.op_type for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert [entry.op for entry in report.rewritten] == [f"bnfold.{op}" for op in NETS[name][2]]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = dict(zip([entry.name for entry in session.get_inputs()], map(np.asarray, inputs), strict=True))
    [found] = session.run(None, feed)
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_bnfold_export_takes_the_target(tmp_path: Path) -> None:
    module, inputs = made("batch statistics")
    report = bnfold.export(module, inputs, tmp_path / "net.onnx", target="tensorrt")
    assert report.verification.ok
    assert len(report.rewritten) == 3
    model = onnx.load(tmp_path / "net.onnx")
    assert {node.domain for node in model.graph.node} == {"", "bnfold"}
    report = bnfold.export(module, inputs, tmp_path / "plain.onnx", lower_batch_statistics=True)
    assert report.verification.ok


def training_model() -> onnx.ModelProto:
    g = Build()
    x = g.conv(g.input("x", (2, 3, 6, 6)), 4)
    g.output(g.ops("BatchNormalization", x, *g.norm_parameters(4), count=3, name="norm", training_mode=1)[0])
    return g.model()


def test_the_command_line_tells_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(training_model(), source)
    arguments = ["fold", str(source), str(out), "--target", "tensorrt", "--json", str(tmp_path / "r.json")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "norm  bnfold.BnfoldBatchStatNorm  norm\n1 rewritten for the target\n" in shown
    assert "note: nothing to fold\n" in shown
    assert "verification by proof: proved" in shown
    [entry] = json.loads((tmp_path / "r.json").read_text())["rewritten"]
    assert entry == {"name": "norm", "op": "bnfold.BnfoldBatchStatNorm", "replaces": ["norm"]}
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv", "BnfoldBatchStatNorm"]
    assert main(["fold", str(source), str(out), "--force", "--lower-batch-statistics"]) == 0
    lowered = onnx.load(out)
    assert not lowered.functions
    assert "BatchNormalization" not in [node.op_type for node in lowered.graph.node]
    assert main(["fold", str(source), str(out), "--force"]) == 0  # as ever: not frozen, not lowered
    assert onnx.load(out).graph.node[1].op_type == "BatchNormalization"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "tensort"], "invalid choice: 'tensort' (choose from"),
        (
            ["--target", "tensorrt", "--lower-batch-statistics"],
            "--lower-batch-statistics has nothing to do: --target tensorrt does more",
        ),
    ],
)
def test_bad_usage(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(training_model(), tmp_path / "in.onnx")
    try:
        status = main(["fold", str(tmp_path / "in.onnx"), *arguments])
    except SystemExit as end:
        status = int(str(end.code))
    said = capsys.readouterr().err
    assert status == 2
    assert told in said
    assert said.count("\n") == 1


def test_an_unknown_target_is_told_in_python() -> None:
    with pytest.raises(bnfold.UsageError, match=r"target='trt' is unknown. Note: valid .* onnx, tensorrt"):
        bnfold.fold_onnx(training_model(), target="trt")


def test_a_wrong_rewriting_is_not_blamed_on_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Build()
    x = g.bn(g.conv(g.input("x", (2, 3, 6, 6)), 4))
    g.output(g.op("Relu", g.bn(g.op("Sigmoid", x))))
    wrong = rewrite.materialize
    monkeypatch.setattr(
        rewrite,
        "materialize",
        lambda surgery, term, *rest: wrong(surgery, type(term)(term.array * 1.1), *rest),
    )
    with pytest.raises(bnfold.VerifyError, match="no fold broke it, but the rewriting for the target did"):
        bnfold.fold_onnx(g.model(), target="tensorrt", check="run")
