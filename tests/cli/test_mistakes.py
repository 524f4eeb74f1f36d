"""Plausible mistakes on the command line: each ends in one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.command import refused

NETS = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.conv(x))

MADE = Mine()
"""
SIZES = "--input 1,3,8,8"

# the command, and what the line says
MISTAKES = {
    "fold net.pt folded.onnx": "bnfold export MODULE:FACTORY out.onnx --weights net.pt",
    "in.onnx out.onnx": "name a command before in.onnx, such as: bnfold fold in.onnx",
    "flod in.onnx": "did you mean bnfold fold?",
    f"export in.onnx out.onnx {SIZES}": "in.onnx is an ONNX file already: bnfold fold in.onnx folded.onnx",
    f"export net.pt out.onnx {SIZES}": "bnfold export MODULE:FACTORY out.onnx --weights net.pt",
    f"export mistaken.py:Mine out.onnx {SIZES}": "name the module, not its file: mistaken:Mine",
    f"export ./sub/mistaken.py:Mine out.onnx {SIZES}": "name the module, not its file: sub.mistaken:Mine",
    f"export mistaken:mine out.onnx {SIZES}": "mistaken has no 'mine'. Note: it has Mine",
    f"export mistaken:MADE out.onnx --arg width=3 {SIZES}": "mistaken:MADE is a module already",
    "export mistaken:Mine out.onnx --input 1,64": "Give it inputs of the types and sizes that it takes",
    f"export mistaken:Mine out.onnx --weights net.pt {SIZES}": "5 values missing (norm.bias,",
    f"export mistaken:Mine out.onnx --weights wide.pt --arg width=5 {SIZES}": "(--arg NAME=VALUE)",
    f"export mistaken:Mine out.onnx --weights whole.pt {SIZES}": "torch.save(net.state_dict(), path)",
    "export mistaken:Mine out.onnx": "required: --input",
    "fold in.onnx in.onnx": "in.onnx is the input itself; add --force to write over it",
    "fold in.onnx kept.onnx": "kept.onnx exists already; add --force to write over it",
    "fold in.onnx none/out.onnx": "there is no folder none to write out.onnx into; make it first",
    "fold .": "a folder; name the model file in it",
    "verify in.onnx": "required: B.onnx",
    "fold in.onnx --overwrite-input-shape 1,4,8,8": "axis 1 is 4 instead of 3",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_a_line_that_says_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (folder / "mistaken.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(folder))
    conv = nn.Conv2d(3, 4, 3)
    torch.save({f"conv.{name}": value for name, value in conv.state_dict().items()}, "net.pt")
    torch.save(nn.Sequential(conv), "whole.pt")
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3)}, "wide.pt")
    line = refused(capsys, folder, 2, *command.split())
    assert MISTAKES[command] in line
    assert len(line) < 500
    assert "\\x1b" not in line
