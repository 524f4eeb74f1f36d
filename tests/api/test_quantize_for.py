"""`quantize_for` in every function that merges: the identity stays a branch where it would drown the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bnfold
from bnfold.report.fold import Report
from tests.onnx_graph.build import Build


class Residual(nn.Module):
    """A block that is one convolution in float32, and a convolution and a sum before a quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 48, 1)
        with torch.no_grad():
            self.point.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.wide(x) + self.point(x) + x).relu()


def calls(program: Any) -> list[str]:
    return [node.name for node in program.graph.nodes if node.op == "call_function"]


def test_programs() -> None:
    torch.manual_seed(0)
    program = torch.export.export(Residual().eval(), (torch.randn(1, 48, 6, 6),))
    merged, report = bnfold.fold_program(program)
    assert calls(merged) == ["conv2d", "relu"]
    assert report.quantize_for is None
    for target, names in (("int8", ["conv2d", "add", "relu"]), ("int4", calls(program))):
        folded, report = bnfold.fold_program(program, quantize_for=target)
        assert len(calls(folded)) == len(names), target
        seen(report, target)


def test_files_of_modules(tmp_path: Any) -> None:
    torch.manual_seed(0)
    report = bnfold.export(
        Residual(), torch.randn(1, 48, 6, 6), tmp_path / "x.onnx", quantize_for="int8", verify=False
    )
    seen(report, "int8")


def test_equalize_folds_by_it() -> None:
    g = Build(seed=1)
    x = g.op("Sigmoid", g.input("x", (1, 48, 6, 6)))
    g.output(g.op("Relu", g.op("Add", g.conv(x, 48, 3, pads=1, name="wide"), x)))
    _, report = bnfold.equalize_onnx(g.model(), quantize_for="int8-per-tensor")
    assert report.fold is not None
    seen(report.fold, "int8-per-tensor")
    _, report = bnfold.equalize_onnx(g.model())
    assert report.fold is not None
    assert len(report.fold.merged) == 1


def seen(report: Report, target: str) -> None:
    """The identity stays, and the report says why, and for what."""
    assert report.quantize_for == target
    line = next(line for line in report.apart if line.noise is not None)
    assert line.noise is not None
    assert line.noise.target == target
    assert line.noise.added_db > 0.5
    assert f"rounding would add {line.noise.added_db:.1f} dB" in line.reason


def test_modules_have_no_merging_to_choose() -> None:
    with pytest.raises(bnfold.errors.UsageError, match="fold_module has no quantize_for"):
        bnfold.fold_module(Residual(), torch.randn(1, 48, 6, 6), quantize_for="int8")
