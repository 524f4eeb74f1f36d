"""`bnfold verify`: what it says of two models."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import helper

from tests.cli.command import model, refused, run


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(seed=1), "other.onnx")
    assert run("fold", "in.onnx", "out.onnx") == 0
    assert run("verify", "in.onnx", "out.onnx", "--json", "same.json") == 0
    assert run("verify", "in.onnx", "other.onnx", "--json", "differ.json") == 1
    same, differ = (json.loads((folder / name).read_text()) for name in ("same.json", "differ.json"))
    assert (same["status"], differ["status"]) == ("passed", "failed")
    assert capsys.readouterr().err == ""
    error = refused(capsys, folder, 2, "verify", "in.onnx", "missing.onnx")
    assert "missing.onnx" in error


def test_what_cannot_be_run_is_not_called_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = model()
    strange.graph.node.append(helper.make_node("Riddle", ["y"], ["z"], name="riddle", domain="nobody"))
    strange.opset_import.append(helper.make_opsetid("nobody", 1))
    strange.graph.output[0].name = "z"
    onnx.save(strange, "strange.onnx")
    assert run("fold", "strange.onnx", "out.onnx") == 0
    out, err = capsys.readouterr()
    assert (out.count("proved"), out.count("not run"), err) == (1, 1, "")
    by_run = ("fold", "strange.onnx", "out.onnx", "--force", "--check", "run")
    assert run(*by_run) == 0
    out, err = capsys.readouterr()
    assert out.count("not run") == 1
    assert err.startswith("bnfold: warning: nothing was verified: ")
    assert err.count("\n") == 1
    assert run(*by_run, "--quiet") == 0
    assert capsys.readouterr() == ("", err)
    assert run("verify", "strange.onnx", "out.onnx") == 2


def test_a_crash_of_onnxruntime_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch norm of opset 13 with five outputs, four of them without names, ends onnxruntime 1.32."""
    proto = model()
    proto.opset_import[0].version = 13
    proto.graph.node[-1].output.extend([""] * 4)
    onnx.save(proto, "five.onnx")
    status = run("fold", "five.onnx", "out.onnx")
    _, err = capsys.readouterr()
    assert (status, err.count("\n"), "Traceback" in err) in ((2, 1, False), (0, 0, False))


def test_the_time_of_a_check_can_be_limited(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "took longer" in refused(
        capsys, folder, 2, "fold", "in.onnx", "out.onnx", "--check-timeout", "0.001"
    )
    assert run("fold", "in.onnx", "out.onnx", "--check-timeout", "300") == 0
    capsys.readouterr()
    for flags in (["--check-timeout", "0"], ["--no-verify", "--check-timeout", "9"]):
        refused(capsys, folder, 2, "fold", "in.onnx", "other.onnx", *flags)
