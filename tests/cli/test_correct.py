"""`bnfold correct`: files, JSON, exit statuses. tests/api/test_correct.py has what it computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli import correct
from tests.api.qdq import images, net, quantized
from tests.cli.command import contents, refused, run

GIVEN = ["--float", "float.onnx", "--input-data-path", "images.npz"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with float.onnx, int8.onnx, other.onnx (another float model) and images.npz."""
    monkeypatch.chdir(tmp_path)
    exact, model = quantized()
    onnx.save(exact, "float.onnx")
    onnx.save(model, "int8.onnx")
    onnx.save(net(seed=9), "other.onnx")
    np.savez("images.npz", x=images(20, seed=1))
    return tmp_path


def test_it_writes_the_model_and_the_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(files)
    assert run("correct", "int8.onnx", "out.onnx", *GIVEN, "--json", "r.json", "-v") == 0
    out, err = capsys.readouterr()
    head, out = out.split("\n\n")
    assert re.search(r"^inputs x:.*float32\n", head, re.MULTILINE)
    assert re.search(r"^  Add +(\d+) +(\d+)$", head, re.MULTILINE)  # one is new, behind the MatMul
    assert "5 layers corrected on 16 samples" in out
    assert re.search(r"^matmul +MatMul +8 +\S+ -> \S+ +float32, added$", out, re.MULTILINE)
    assert re.search(r"^wrote out\.onnx \(.* -> .*\)$", out, re.MULTILINE)
    assert re.search(r"^bnfold: read, corrected and compared in [\d.]+ s$", err, re.MULTILINE)
    assert before.items() <= contents(files).items()
    exact, model = quantized()
    wanted, report = bnfold.correct(model, exact, {"x": images(20, seed=1)})
    assert onnx.load("out.onnx") == wanted
    data = json.loads(Path("r.json").read_text())
    summary = data["summary"]
    assert data | {"summary": None} == json.loads(report.to_json())
    assert summary["before"]["multiplications"] == summary["after"]["multiplications"] > 0
    assert summary["after"]["operators"]["Add"] == summary["before"]["operators"].get("Add", 0) + 1
    told = set(re.findall(r'"(\w+)":', correct.EPILOG))
    keys = set(data) | set(data["layers"][0]) | set(data["outputs"][0]) | {"node", "op", "reason"}
    assert keys == told


def test_without_an_output_file_it_explains(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(files)
    assert run("correct", "int8.onnx", *GIVEN) == 0
    assert capsys.readouterr().out.endswith("nothing was written: name an output file\n")
    assert contents(files) == before


def test_options_reach_it(files: Path) -> None:
    assert (
        run("correct", "int8.onnx", "a.onnx", *GIVEN, "--deviation", "--no-verify", "--json", "a.json") == 0
    )
    data = json.loads(Path("a.json").read_text())
    assert (data["samples"], data["outputs"]) == (20, [])
    assert "no scale for each channel" in data["layers"][0]["note"]


def test_a_correction_that_makes_it_worse_is_not_written(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = images(20, seed=1) * 8 - 4
    odd[4::5] = images(4, seed=3)
    np.savez("images.npz", x=odd)
    assert "makes the outputs worse" in refused(capsys, files, 1, "correct", "int8.onnx", "out.onnx", *GIVEN)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["int8.onnx", "out.onnx"], "arguments are required: --float, --input-data-path"),
        (["int8.onnx", "out.onnx", *GIVEN[:2], "--input-data-path", "no.npz"], "there is no file no.npz"),
        (["int8.onnx", "out.onnx", "--float", "no.onnx", *GIVEN[2:]], "no.onnx: there is no such file"),
        (
            ["int8.onnx", "out.onnx", "--float", "other.onnx", *GIVEN[2:]],
            "layer 'conv' (Conv) has other weights",
        ),
        (["float.onnx", "out.onnx", *GIVEN], "there is no DequantizeLinear in the model"),
        (["int8.onnx", "int8.onnx", *GIVEN], "int8.onnx is the input itself"),
        (["int8.onnx", "float.onnx", *GIVEN, "--force"], "float.onnx has two uses in this command"),
        (["int8.onnx", "out.onnx", *GIVEN, "--json", "images.npz"], "images.npz has two uses"),
        (["int8.onnx", *GIVEN, "--force"], "--force has nothing to do without an output file"),
    ],
)
def test_bad_usage(files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert told in refused(capsys, files, 2, "correct", *arguments)
