"""Plausible mistakes in Python: each ends in one line that says what to do, or does what was meant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import bnfold
from bnfold.errors import BnfoldError, first_line
from tests.cli.command import model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.normal_(self.norm.weight)

    def forward(self, image: Any) -> Any:
        return self.norm(self.conv(image))


class Branching(Net):
    def forward(self, image: Any) -> Any:
        return super().forward(image) if image.sum() > 0 else super().forward(-image)


ANY_TORCH: Any = torch
ANY: Any = bnfold  # whose types forbid most of this
NET, X = Net().eval(), torch.randn(2, 3, 8, 8)
ARRAY = X.numpy()


def traced() -> Any:
    return ANY_TORCH.jit.trace(NET, X)


# what is done, and what the line says
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "a module to fold_onnx": (
        lambda: ANY.fold_onnx(NET),
        "not Net: bnfold.fold_module folds it, and bnfold.export makes a file of it",
    ),
    "bytes": (
        lambda: ANY.fold_onnx(Path("in.onnx").read_bytes()),
        "not bytes: onnx.load_model_from_string makes an onnx.ModelProto of them",
    ),
    "a graph": (
        lambda: ANY.fold_onnx(model().graph),
        "not GraphProto: pass the onnx.ModelProto that holds it",
    ),
    "an output path": (
        lambda: ANY.fold_onnx("in.onnx", "out.onnx"),
        "folded, report = bnfold.fold_onnx(model); onnx.save(folded, path)",
    ),
    "inputs of another type": (
        lambda: ANY.fold_onnx("in.onnx", inputs={"x": np.zeros((1, 3, 8, 8), complex)}),
        "the input 'x' takes float32 (N, 3, 8, 8), but complex128 was given",
    ),
    "too many inputs": (
        lambda: ANY.fold_onnx("in.onnx", inputs=[ARRAY, ARRAY]),
        "no input 'inputs[1]' to feed. Note: its inputs are x",
    ),
    "one name to skip": (lambda: ANY.fold_onnx("in.onnx", skip="bn"), "skip=['bn']"),
    "a size of zero": (
        lambda: ANY.fold_onnx("in.onnx", shapes={"x": (0, 3, 8, 8)}),
        "shapes['x']=(0, 3, 8, 8) are not all whole numbers from 1 on",
    ),
    "an unknown precision": (lambda: ANY.fold_onnx("in.onnx", precision="half"), "valid choices are fp16"),
    "a module on other shapes": (
        lambda: ANY.fold_module(NET, torch.randn(1, 64)),
        "Net does not run on these inputs: Expected 3D",
    ),
    "arrays for tensors": (lambda: ANY.fold_module(NET, ARRAY), "torch.from_numpy makes them of these"),
    "a state_dict": (
        lambda: ANY.fold_module(NET.state_dict(), X),
        "make the network, and load that into it with net.load_state_dict()",
    ),
    "a class": (lambda: ANY.fold_module(Net, X), "call the class to make one"),
    "a path to fold_module": (
        lambda: ANY.fold_module("net.pt", X),
        "bnfold.fold_onnx folds a file; load a module first",
    ),
    "a traced module": (lambda: ANY.fold_module(traced(), X), "give the module that it was made of"),
    "a module to fold_program": (
        lambda: ANY.fold_program(NET),
        "fold_program takes what torch.export.export gives, not Net; export the module first",
    ),
    "a file that is there": (
        lambda: ANY.export(NET, X, "in.onnx"),
        "in.onnx exists already; force=True writes over it, or name another file",
    ),
    "a folder that is not there": (
        lambda: ANY.export(NET, X, "none/net.onnx"),
        "none to write net.onnx into; make it first",
    ),
    "inputs by name": (
        lambda: ANY.export(NET, {"image": X}, "net.onnx"),
        "export(module, (), kwargs={...})",
    ),
    "a branch on data": (
        lambda: ANY.export(Branching().eval(), X, "net.onnx"),
        "Rewrite what depends on the numbers in a tensor",
    ),
    "torch's keywords": (
        lambda: ANY.export(NET, X, "net.onnx", dynamic_axes={"image": {0: "n"}}),
        "export has no dynamic_axes, as torch.onnx.export has: dynamic_shapes=",
    ),
    "slimming what is no module": (
        lambda: ANY.compress.slim(NET.state_dict(), X, ratio=0.5),
        "slim takes a torch.nn.Module, not OrderedDict",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "in.onnx")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_line_that_says_what_to_do(mistake: str, folder: None) -> None:
    do, advice = MISTAKES[mistake]
    with pytest.raises(BnfoldError) as caught:
        do()
    told = " ".join(str(caught.value).split())
    assert advice in told
    assert len(told) < 700  # no graph, and no page of context
    assert "\x1b" not in told
    assert "--" not in told  # flags are the command's


@pytest.mark.parametrize("inputs", [ARRAY, [ARRAY], (X,), {"x": X}, X, {"x": ARRAY.astype(np.float64)}])
def test_inputs_are_taken_as_they_are(inputs: Any, folder: None) -> None:
    _, report = bnfold.fold_onnx("in.onnx", inputs=inputs)
    assert report.verification is not None
    assert [output.ok for output in report.verification.outputs] == [True]


def test_tensors_reach_a_process_of_its_own_as_arrays(folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would need torch otherwise, which takes seconds to load."""
    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", None)
    _, report = bnfold.fold_onnx("in.onnx", inputs=[X], apart=True)
    assert report.verification is not None
    assert [output.ok for output in report.verification.outputs] == [True]


def test_a_dict_may_be_the_input_itself(tmp_path: Path) -> None:
    class OfDict(Net):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch["image"])

    folded, _ = bnfold.fold_module(OfDict().eval(), {"image": X})
    assert isinstance(folded.norm, nn.Identity)


def test_what_others_say_in_colours_is_told_without() -> None:
    assert first_line(RuntimeError("\n\x1b[1mload\x1b[0m it\nmore")) == "load it"


def test_two_builds_of_onnxruntime_are_told(monkeypatch: pytest.MonkeyPatch, folder: None) -> None:
    monkeypatch.setattr(
        "bnfold.onnx_graph.run.evaluators.metadata.distributions",
        lambda name: [name] if name in ("onnxruntime", "onnxruntime-gpu") else [],
    )
    said = "onnxruntime, onnxruntime-gpu are installed, and overwrite each other's files: pip uninstall -y "
    for check in ("proof", "run"):
        _, report = bnfold.fold_onnx("in.onnx", check=check)
        assert report.verification is not None
        assert [note[: len(said)] for note in report.verification.notes] == [said]
    left = type(sys)(
        "onnxruntime"
    )  # what pip leaves where it took one of them out: a folder without a package
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    gelu = model()
    gelu.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    gelu.graph.output[0].name = "z"
    gelu.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(BnfoldError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        bnfold.fold_onnx(gelu, check="run")
