"""`bnfold.export`: from a torch module to a folded ONNX file, checked against the module in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.torch_graph.modules import IMAGE, bn, conv, randomize


def small() -> nn.Module:
    torch.manual_seed(3)
    return randomize(nn.Sequential(conv(6, 4, bias=False), bn(4), nn.ReLU(), conv(4, 3)))


def run(path: Path, x: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_the_file_computes_what_the_module_does(tmp_path: Path) -> None:
    module, x = small(), torch.randn(IMAGE)
    report = bnfold.export(module, x, tmp_path / "model.onnx")
    assert len(report.folded) == 1
    assert report.verification.ok
    assert "in float64" in report.verification.evaluator
    with torch.no_grad():
        exact = module.double()(x.double()).numpy()
    error = np.abs(run(tmp_path / "model.onnx", x) - exact).max() / np.abs(exact).max()
    assert error < 1e-5
    assert "BatchNormalization" not in {
        node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_module_in_training_mode_is_exported_in_eval_mode_and_left_as_it_was(tmp_path: Path) -> None:
    module, x = small().train(), torch.randn(IMAGE)
    module[2].eval()
    mean = module[1].running_mean.clone()
    assert bnfold.export(module, x, tmp_path / "model.onnx").verification.ok
    assert [part.training for part in module.modules()] == [True, True, True, False, True]
    assert torch.equal(module[1].running_mean, mean)


def test_dynamic_shapes_opset_and_external_data(tmp_path: Path) -> None:
    module, x = small(), torch.randn(IMAGE)
    report = bnfold.export(
        module,
        (x,),
        tmp_path / "model.onnx",
        dynamic_shapes=({0: torch.export.Dim("n")},),
        opset=20,
        external_data=True,
    )
    assert report.verification.ok
    assert run(tmp_path / "model.onnx", torch.randn(5, *IMAGE[1:])).shape[0] == 5
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]


def test_a_file_that_is_there_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(bnfold.UsageError, match="exists already"):
        bnfold.export(small(), torch.randn(IMAGE), path)
    assert path.read_bytes() == b"mine"
    bnfold.export(small(), torch.randn(IMAGE), path, force=True)
    assert onnx.load(path).graph.node


def test_a_failed_check_writes_nothing_and_names_the_fold(tmp_path: Path, monkeypatch: Any) -> None:
    from bnfold.onnx_graph import operators

    monkeypatch.setitem(operators.ROLES, ("", "Sigmoid"), operators.ROLES["", "Relu"])  # were a rule wrong
    module = randomize(nn.Sequential(conv(6, 4), nn.Sigmoid(), bn(4), conv(4, 4), bn(4)), negative=False)
    norm = module[2]
    with torch.no_grad():  # scales alone, no shift
        norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt())
    with pytest.raises(bnfold.VerifyError, match=r"the first fold that broke it is .*batch_norm"):
        bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    import bnfold.api_export

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bnfold.api_export, "fold_file", interrupted)
    module = small().train()
    with pytest.raises(KeyboardInterrupt):
        bnfold.export(module, torch.randn(IMAGE), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert module.training


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(bnfold.UsageError, match="torch cannot export Branching to ONNX: "):
        bnfold.export(Branching(), torch.randn(IMAGE), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
