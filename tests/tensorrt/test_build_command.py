"""`bnfold build`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from bnfold.onnx_graph.file.loaded import load
from bnfold.tensorrt import engine
from tests.cli.command import contents, refused, run
from tests.tensorrt import models

TARGET = ("--flavour", "tensorrt-rtx", "--compute-capability", "8.0")
SHAPES = "x:1x6x9x9,4x6x9x9,8x6x9x9"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In it fixed.onnx, open.onnx (its batch), half.onnx (float16), training.onnx (not parsed)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(models.chain(), "fixed.onnx")
    onnx.save(models.chain("N"), "open.onnx")
    onnx.save(models.training(), "training.onnx")
    onnx.save(models.chain(dtype="float16"), "half.onnx")
    return tmp_path


def build(*arguments: str) -> int:
    return run("build", *arguments, *TARGET)


def test_an_engine_and_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert build("fixed.onnx", "fixed.engine", "--json", "report.json") == 0
    assert contents(folder).keys() - before.keys() == {"fixed.engine", "report.json"}
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[2].split()[:2] == ["bn", "BatchNormalization"]
    assert "a layer without a conv or matmul" in lines[2]
    assert lines[3:6] == [
        "1 batch norm: 0 in the layer of a conv or matmul, 1 stand-alone, 0 without a layer",
        "relu: 0 of 1 in the layer of a conv or matmul",
        "note: `bnfold fold` says which of these can vanish from the model, and folds them",
    ]
    assert lines[-1].startswith("wrote fixed.engine (")
    assert "for compute capability 8.0 in" in lines[-1]

    report = json.loads((folder / "report.json").read_text())
    assert report["bytes"] == (folder / "fixed.engine").stat().st_size
    assert [norm["outcome"] for norm in report["batch_norms"]] == ["stand-alone"]
    direct = engine.build(load("fixed.onnx"), flavour="tensorrt-rtx", compute_capabilities=["8.0"])
    assert direct.placement is not None
    assert report["layers"] == direct.placement.to_dict()["layers"]


def test_folded_and_verbose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fold", "open.onnx", "folded.onnx") == 0
    capsys.readouterr()
    assert build("folded.onnx", "folded.engine", "--shapes", SHAPES, "-v") == 0
    out = capsys.readouterr().out.splitlines()
    assert "no batch norm in the model" in out
    assert "relu: 1 of 1 in the layer of a conv or matmul" in out
    assert ["relu", "Relu", "in", "the", "layer", "of", "conv"] in [line.split()[:7] for line in out]
    [conv] = [line for line in out if line.startswith("conv_")]
    assert conv.endswith("conv, relu")


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_an_engine_of_another_precision(
    precision: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model keeps its own; ranges are measured on the usual shape."""
    before = contents(folder)
    options = ("--shapes", SHAPES, "--precision", precision, "--json", "r.json")
    assert build("open.onnx", "half.engine", *options) == 0
    assert contents(folder).items() >= before.items()
    out = capsys.readouterr().out
    assert f"{kind}: 3 nodes converted, 0 left in float32, 2 Casts added\n" in out
    report = json.loads(Path("r.json").read_text())["precision"]
    assert (report["precision"], report["status"]) == (kind, "passed")
    assert build("open.onnx", "whole.engine", "--shapes", SHAPES, "--precision", "fp32") == 0
    assert Path("half.engine").read_bytes()[:4] == b"vtrt"


def test_help_explains_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("open.onnx", "open.engine", "--shapes", SHAPES, "--json", "report.json") == 0
    report = json.loads((folder / "report.json").read_text())
    capsys.readouterr()
    assert run("build", "--help") == 0
    told = capsys.readouterr().out
    for key in (*report, *report["batch_norms"][0], *report["layers"][0]):
        assert f'"{key}": ' in told
    assert max(len(line) for line in told.splitlines()) <= 110


REFUSED: list[tuple[tuple[str, ...], str]] = [
    (("open.onnx", "a.engine"), "sizes are open in the input x: float32 (N, 6, 9, 9)"),
    (("open.onnx", "a.engine", "--shapes", "y:1x6x9x9"), "no input 'y'. Note: its inputs are x"),
    (("open.onnx", "a.engine", "--shapes", "x:1,6,9,9/2,6,9,9"), "is not an input's smallest, usual"),
    (("open.onnx", "a.engine", "--shapes", "x:1x6x9"), "3 axes instead of 4"),
    (("open.onnx", "a.engine", "--shapes", SHAPES, "--shapes", SHAPES), "names one input twice"),
    (("fixed.onnx", "a.engine", "--compute-capability", "9.0"), "valid choices are 7.5, 8.0"),
    (("fixed.onnx", "a.engine", "--timing-cache", "cache"), "which times nothing while it builds"),
    (("fixed.onnx", "a.onnx"), "would be an engine, not an ONNX model"),
    (("fixed.onnx", "fixed.onnx", "--force"), "would be an engine"),
    (("fixed.onnx", "a.engine", "--json", "a.engine"), "has two uses"),
    (("fixed.onnx", "nowhere/a.engine"), "there is no folder nowhere"),
    (("fixed.onnx", "open.onnx.engine", "--json", "open.onnx"), "open.onnx exists already; add --force"),
    (("absent.onnx", "a.engine"), "absent.onnx: there is no such file"),
    (
        ("training.onnx", "a.engine"),
        "training.onnx: TensorRT cannot parse it: node 'bn' (BatchNormalization)",
    ),
    (("text.onnx", "a.engine"), "text.onnx: not an ONNX model"),
    (("half.onnx", "a.engine", "--precision", "fp32"), "the model computes in float16 already"),
    (("half.onnx", "a.engine", "--precision", "fp16"), "the model computes in float16 already"),
    (("fixed.onnx", "a.engine", "--input-data-path", "x.npz"), "without --precision fp16 or bf16"),
    (("fixed.onnx", "a.engine", "--precision", "fp16", "--input-data-path", "x.npz"), "x.npz"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (folder / "text.onnx").write_text("no protobuf at all")
    assert message in refused(capsys, folder, 2, "build", *arguments, *TARGET)


def test_v_lists_what_the_parser_says(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert build("training.onnx", "a.engine", "-v") == 2
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 3
    assert "doesn't support mode than 1 outputs" in err[1]
    assert not (folder / "a.engine").exists()


def test_a_data_file_of_the_model_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(models.chain(), "big.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert build("big.onnx", "big.engine") == 0
    capsys.readouterr()
    message = refused(capsys, folder, 2, "build", "big.onnx", "weights", "--force", *TARGET)
    assert "weights has two uses" in message


def test_a_full_disk_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, 1000

    def full(handle: int, data: Any) -> int:
        nonlocal room
        if handle > 2 and len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    monkeypatch.setattr("os.write", full)
    arguments = ("fixed.onnx", "a.engine", "--json", "report.json", *TARGET)
    assert refused(capsys, folder, 2, "build", *arguments).endswith("No space left on device\n")


def test_nothing_but_one_line_reaches_a_terminal_of_another_process(folder: Path) -> None:
    """TensorRT's own prints go past Python."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments, status, lines in (
        (["fixed.onnx", "a.engine"], 0, 0),
        (["training.onnx", "b.engine"], 2, 1),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bnfold", "build", *arguments, *TARGET],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == status
        assert done.stderr.count("\n") == lines, done.stderr
    assert (folder / "a.engine").is_file()
    assert not (folder / "b.engine").exists()
