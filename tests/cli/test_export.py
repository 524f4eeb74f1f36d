"""`bnfold export` with the options of the fold; tests/api/test_export.py has what it exports."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from bnfold.cli.example import example
from bnfold.cli.shapes import given as read
from tests.cli.command import outputs, refused, run

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
        with torch.no_grad():
            self.first.weight[1], self.first.bias[1] = 0, 0.5      # dead
            self.first.weight[2], self.first.bias[2] = 0.1, -9     # dead after the ReLU, for x in [0, 1]

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())

class Sized(nn.Module):
    def __init__(self, width, kind):
        super().__init__()
        self.conv, self.norm, self.kind = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), kind

    def forward(self, x):
        return getattr(torch, self.kind)(self.norm(self.conv(x)))

def sized(width, kind="relu"):
    return Sized(width, kind)

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(9, 4), nn.BatchNorm1d(4)

    def forward(self, ids, mask):
        x = self.words(ids).transpose(1, 2) * mask.unsqueeze(1)
        return self.norm(x)
"""
COMMAND = ("export", "nets_of_the_command:Net", "out.onnx", "--input-shape", "2,3,9,9")


@pytest.fixture
def net(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the factory makes, in eval mode."""
    (folder / "nets_of_the_command.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(folder))
    import nets_of_the_command  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "nets_of_the_command")
    return nets_of_the_command.Net().eval()


def weights() -> dict[str, tuple[int, list[int]]]:
    """Of the file that was written: their types and shapes."""
    tensors = onnx.load("out.onnx").graph.initializer
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


def error_of(net: Any) -> float:
    """Against the module, for inputs of [0, 1]."""
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float(np.abs(outputs("out.onnx", x.numpy()) - net(x).numpy()).max())


def test_half_precision(net: Any) -> None:
    assert run(*COMMAND, "--precision", "fp16", "--json", "r.json") == 0
    stored = weights()
    assert stored["first.weight"] == (TensorProto.FLOAT16, [4, 3, 3, 3])
    assert stored["last.weight"] == (TensorProto.FLOAT16, [2, 4, 3, 3])
    report = json.loads(Path("r.json").read_text())
    assert (report["precision"]["precision"], report["precision"]["status"]) == ("float16", "passed")
    assert 1e-6 < error_of(net) < 0.01


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ([], 4),
        (["--drop-dead-channels"], 3),
        (["--drop-dead-channels", "--input-range", "x:0,1"], 2),
    ],
)
def test_dead_channels(net: Any, given: list[str], channels: int) -> None:
    assert run(*COMMAND, *given, "--json", "r.json") == 0
    assert weights()["first.weight"][1] == [channels, 3, 3, 3]
    assert json.loads(Path("r.json").read_text())["verification"]["status"] == "passed"
    assert error_of(net) < 1e-5


def test_names(net: Any) -> None:
    given = ["--input-name", "image", "--output-name", "score", "--drop-dead-channels"]
    assert run(*COMMAND, *given, "--input-range", "image:0,1") == 0
    graph = onnx.load("out.onnx").graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "score"]
    assert weights()["first.weight"][1] == [2, 3, 3, 3]


def test_random_inputs_keep_to_their_ranges(net: Any) -> None:
    torch.manual_seed(0)
    [x] = example(net, [read("2,3,9,9")], {"x": (0.0, 1.0), "y": (5.0, 6.0)}).args
    assert (x.dtype, x.shape) == (torch.float32, (2, 3, 9, 9))
    assert 0 <= float(x.min()) < 0.1
    assert 0.9 < float(x.max()) <= 1
    torch.manual_seed(0)
    [x] = example(net, [read("2,3,9,9")], {}).args
    torch.manual_seed(0)
    assert torch.equal(x, torch.randn(2, 3, 9, 9))


def test_open_sizes_and_arguments_of_the_factory(net: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("export", "nets_of_the_command:sized", "out.onnx", "--arg", "width=2", "--arg", "kind=relu")
    assert run(*command, "--input", "image:batch,3,height=9,9", "--output-names", "score") == 0
    [x], [y] = onnx.load("out.onnx").graph.input, onnx.load("out.onnx").graph.output
    shape = [size.dim_param or size.dim_value for size in x.type.tensor_type.shape.dim]
    assert (x.name, shape, y.name) == ("image", ["batch", 3, "height", 9], "score")
    assert weights()["conv.weight"][1] == [2, 3, 3, 3]
    assert outputs("out.onnx", np.ones((5, 3, 12, 9), np.float32), "image").shape == (5, 2, 10, 7)
    out = capsys.readouterr().out
    assert "inputs image:batch,3,height,9:float32\n" in out
    assert re.search(r"^  BatchNormalization +1 +0$", out, re.MULTILINE)  # before: as torch exports it


def test_an_expression_in_place_of_the_factory(net: Any) -> None:
    command = ("export", "nets_of_the_command:sized(width=1 + 2)", "out.onnx", "--input", "1,3,9,9")
    assert run(*command, "--no-verify", "--target", "tensorrt") == 0
    assert weights()["conv.weight"][1] == [3, 3, 3, 3]


def test_integers_and_booleans(net: Any) -> None:
    command = ("export", "nets_of_the_command:Text", "out.onnx", "--input", "ids:batch,5:int64")
    assert run(*command, "--input", "mask:batch,5:bool") == 0
    kinds = [entry.type.tensor_type.elem_type for entry in onnx.load("out.onnx").graph.input]
    assert kinds == [TensorProto.INT64, TensorProto.BOOL]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--input-range", "x:0,1"], "--input-range has nothing to do without --drop-dead-channels"),
        (["--drop-dead-channels", "--input-range", "z:0,1"], "a range was given for 'z'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--check-timeout", "0.01"], "the check took longer than 0.01 s (--check-timeout): ended"),
        (["--arg", "width"], "'width' is not a name and a value, such as width=2"),
        (["--arg", "width=3"], "Net.__init__() got an unexpected keyword argument 'width'"),
        (["--input", "z:1,2:float31"], "is not an input, such as 1,3,224,224 or ids:batch,128:int64"),
        (["--input", "1,2"], "Net.forward takes x, and 2 inputs are given"),
        (["--check-timeout", "9", "--no-verify"], "--check-timeout has nothing to do with --no-verify"),
    ],
)
def test_bad_usage(
    net: Any, folder: Path, capfd: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert told in refused(capfd, folder, 2, *COMMAND, *given)
