"""`bnfold prove`: its statuses, its JSON, its help."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.cli.command import model, refused, run


def test_prove(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(model(seed=1), "other.onnx")
    assert run("fold", "in.onnx", "out.onnx", "--no-verify") == 0
    capsys.readouterr()
    assert run("prove", "in.onnx", "out.onnx", "--json", "same.json") == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert out.startswith("proved: ")
    assert run("prove", "in.onnx", "other.onnx", "--json", "differ.json") == 1
    same, differ = (json.loads((folder / name).read_text()) for name in ("same.json", "differ.json"))
    assert (same["status"], differ["status"]) == ("proved", "refuted")
    assert differ["begins"]["node"] == "conv"
    capsys.readouterr()
    assert run("prove", "--help") == 0
    told = capsys.readouterr().out
    assert all(f'"{key}": ' in told for key in [*same, *differ["refusal"]])
    assert "missing.onnx" in refused(capsys, folder, 2, "prove", "in.onnx", "missing.onnx")


def test_what_cannot_be_told_has_a_status_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, op in (("a", "Riddle"), ("b", "Enigma")):
        strange = model()
        strange.graph.node.append(onnx.helper.make_node(op, ["y"], ["z"], name="riddle", domain="nobody"))
        strange.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
        strange.graph.output[0].name = "z"
        onnx.save(strange, f"{name}.onnx")
    assert run("prove", "a.onnx", "a.onnx") == 0
    assert run("prove", "a.onnx", "b.onnx") == 3
    assert capsys.readouterr().out.splitlines()[1].startswith("undecided: riddle: z: ")
